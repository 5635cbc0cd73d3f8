"""The jobs of a run in little memory: columns for decisions, full specifications on demand.

Owns both. A job's full specification takes twenty kilobytes as an object; the dispatcher needs a
few fields of each job, and the full specification only to lease it.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from farm.recipe import Recipe
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

    def __init__(self, columns: JobColumns, load: Callable[[int], Assignment]) -> None:
        """``load`` returns a job's assignment by its number in the columns."""
        self.columns, self._load = columns, load
        self.number = {key: number for number, key in enumerate(columns.keys)}
        """Of each key, in the manifest's order."""

    @classmethod
    def of(cls, assignments: Sequence[Assignment]) -> RunJobs:
        """From assignments in memory; of equal keys the last one is used."""
        items = list({item.spec.key: item for item in assignments}.values())
        return cls(JobColumns.of(items), items.__getitem__)

    def __len__(self) -> int:
        return len(self.columns.keys)

    def __iter__(self) -> Iterator[str]:
        return iter(self.columns.keys)

    def __contains__(self, key: str) -> bool:
        return key in self.number

    def assignment(self, key: str) -> Assignment:
        """Everything about a job.

        Raises:
            KeyError: if the run has no such job.
        """
        return self._load(self.number[key])

    def subject(self, key: str) -> str:
        """The subject's id, or the key itself for a job that is not in the run."""
        number = self.number.get(key)
        return key if number is None else self.columns.subjects[number]

    def prior_key(self, key: str) -> str | None:
        """The prior set that a job trains against."""
        prior = self.columns.prior_of[self.number[key]]
        return None if prior < 0 else self.columns.priors[prior]
