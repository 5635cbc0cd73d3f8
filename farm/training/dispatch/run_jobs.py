"""The jobs of a run in little memory: columns for decisions, full specifications on demand.

Owns the columns: preparation and dispatcher need a few fields of each job, and its full
specification (``job_blocks``) only to lease it.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from farm.recipe import Recipe
from farm.training.dispatch.job_blocks import JobBlocks, batches, encode
from farm.training.dispatch.messages import Assignment

__all__ = ["JobColumns", "RunJobs"]


@dataclass
class JobColumns:
    """One entry per job, in the manifest's order; recipes and prior sets by index."""

    keys: list[str] = field(default_factory=list)
    subjects: list[str] = field(default_factory=list)
    recipes: list[Recipe] = field(default_factory=list)
    """The distinct ones."""
    recipe_of: array[int] = field(default_factory=lambda: array("I"))
    priors: list[str] = field(default_factory=list)
    """Distinct keys of prior sets."""
    prior_of: array[int] = field(default_factory=lambda: array("i"))
    """-1 without prior preservation."""
    priorities: array[int] = field(default_factory=lambda: array("q"))

    @classmethod
    def of(cls, assignments: Iterable[Assignment]) -> JobColumns:
        """The columns of assignments, which are iterated once and not kept."""
        columns = cls()
        recipes: dict[Recipe, int] = {}
        priors: dict[str, int] = {}
        last, number = None, 0
        for item in assignments:
            spec = item.spec
            recipe, prior_key = spec.subject.recipe, spec.prior_key
            if recipe is not last:  # subjects often share one, and hashing it is slow
                last, number = recipe, recipes.setdefault(recipe, len(recipes))
            prior = -1 if prior_key is None else priors.setdefault(prior_key, len(priors))
            columns.keys.append(spec.key)
            columns.subjects.append(spec.subject.id)
            columns.recipe_of.append(number)
            columns.prior_of.append(prior)
            columns.priorities.append(spec.subject.priority)
        columns.recipes, columns.priors = list(recipes), list(priors)
        return columns


class RunJobs:
    """All jobs of a run by key, one per key."""

    def __init__(self, columns: JobColumns, blocks: JobBlocks) -> None:
        """From columns and blocks of the same jobs in the same order."""
        self.columns, self.blocks = columns, blocks
        self.number = {key: number for number, key in enumerate(columns.keys)}
        """Of each key, in the manifest's order."""

    @classmethod
    def of(cls, assignments: Iterable[Assignment]) -> RunJobs:
        """From assignments in memory; of equal keys the last one is used."""
        return cls.pack({item.spec.key: item for item in assignments}.values())

    @classmethod
    def pack(cls, assignments: Iterable[Assignment]) -> RunJobs:
        """From assignments with distinct keys, which are iterated once and not kept."""
        blocks = JobBlocks()
        return cls(JobColumns.of(_packed(assignments, blocks)), blocks)

    def __len__(self) -> int:
        return len(self.columns.keys)

    def __iter__(self) -> Iterator[str]:
        return iter(self.columns.keys)

    def __contains__(self, key: str) -> bool:
        return key in self.number

    def assignments(self) -> Iterator[Assignment]:
        """Everything about every job, in the manifest's order; a few are in memory at a time."""
        return iter(self.blocks)

    def assignment(self, key: str) -> Assignment:
        """Everything about a job.

        Raises:
            KeyError: if the run has no such job.
        """
        return self.blocks.job(self.number[key])

    def subject(self, key: str) -> str:
        """The subject's id, or the key itself for a job that is not in the run."""
        number = self.number.get(key)
        return key if number is None else self.columns.subjects[number]

    def subjects(self) -> dict[str, str]:
        """The subject's id of every key."""
        return dict(zip(self.columns.keys, self.columns.subjects, strict=True))

    def prior_key(self, key: str) -> str | None:
        """The prior set that a job trains against."""
        prior = self.columns.prior_of[self.number[key]]
        return None if prior < 0 else self.columns.priors[prior]


def _packed(assignments: Iterable[Assignment], blocks: JobBlocks) -> Iterator[Assignment]:
    """The assignments, once each block of them is compressed."""
    for batch in batches(assignments):
        blocks.add([encode(item) for item in batch])
        yield from batch
