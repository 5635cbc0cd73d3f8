"""The jobs of a run as preparation names them: compact, with the amount of work in each.

Owns the way from valid subjects to jobs. Subjects are read one at a time, and their specifications
are kept compressed (``RunJobs``), so that a run of a hundred thousand jobs is prepared in little
memory.
"""

from __future__ import annotations

from array import array
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from farm.intake.job import PriorSpec, job_spec
from farm.intake.subject import Subject
from farm.recipe import Recipe
from farm.training.dispatch.messages import AdapterNames, Assignment
from farm.training.dispatch.run_jobs import RunJobs
from farm.training.lane.settings import JobKind
from farm.training.run.request import RunBase

__all__ = ["CheckedSubjects", "JobSet", "jobs_of"]


class CheckedSubjects(Protocol):
    """The part of a ``CheckReport`` that jobs are named from."""

    @property
    def good_subjects(self) -> Sequence[Subject]:
        """The subjects that can be trained."""

    def photo_digests(self, subject: Subject) -> Sequence[str]:
        """sha256 of each of its photos."""

    def class_image_digests(self, subject: Subject) -> Sequence[str]:
        """sha256 of each of its class images."""


@dataclass
class JobSet:
    """The jobs, and per job, in the same order, what the plan counts."""

    run: RunJobs = field(default_factory=lambda: RunJobs.of(()))
    names: dict[str, AdapterNames] = field(default_factory=dict)
    """The names of each job's adapter."""
    num_photos: array[int] = field(default_factory=lambda: array("I"))
    num_prompts: array[int] = field(default_factory=lambda: array("I"))
    """Sample prompts of the job's own subject."""
    classes: list[tuple[str, str]] = field(default_factory=list)
    """Distinct pairs of class noun and class prompt."""
    class_of: array[int] = field(default_factory=lambda: array("I"))

    @classmethod
    def of(cls, assignments: Iterable[Assignment]) -> JobSet:
        """From jobs with distinct keys, which are iterated once and not kept."""
        found = cls()
        classes: dict[tuple[str, str], int] = {}
        found.run = RunJobs.pack(found._counted(assignments, classes))
        found.classes = list(classes)
        return found

    def _counted(
        self, assignments: Iterable[Assignment], classes: dict[tuple[str, str], int]
    ) -> Iterator[Assignment]:
        for item in assignments:
            subject = item.spec.subject
            self.names[item.spec.key] = item.names
            self.num_photos.append(len(item.spec.photo_digests))
            self.num_prompts.append(len(subject.sample_prompts))
            kind = (subject.class_noun, subject.class_prompt)
            self.class_of.append(classes.setdefault(kind, len(classes)))
            yield item

    def left(self, committed: Collection[str]) -> list[int]:
        """The numbers of the jobs that are not committed."""
        return [number for number, key in enumerate(self.run) if key not in committed]

    def recipe(self, number: int) -> Recipe:
        """The recipe of a job."""
        columns = self.run.columns
        return columns.recipes[columns.recipe_of[number]]

    def priors(self, numbers: Iterable[int]) -> list[PriorSpec]:
        """The distinct prior sets of some jobs, those of the highest priority first."""
        columns = self.run.columns
        first: dict[int, tuple[int, int]] = {}
        for number in numbers:
            prior, place = columns.prior_of[number], (-columns.priorities[number], number)
            if prior >= 0 and place < first.get(prior, (1 << 64, 0)):
                first[prior] = place
        specs = (self.run.blocks.job(number).spec.prior for _, number in sorted(first.values()))
        return [spec for spec in specs if spec is not None]

    def num_crops(self, numbers: Iterable[int]) -> int:
        """Crops of the photos of some jobs."""
        recipes, recipe_of = self.run.columns.recipes, self.run.columns.recipe_of
        each = [recipe.crops_per_photo * (2 if recipe.flip else 1) for recipe in recipes]
        return sum(self.num_photos[number] * each[recipe_of[number]] for number in numbers)

    def kinds(self, numbers: Iterable[int]) -> list[tuple[JobKind, int]]:
        """Kinds of some jobs and the number of jobs of each, in the order of the jobs."""
        counts: defaultdict[tuple[int, int], int] = defaultdict(int)
        for number in numbers:
            counts[self.run.columns.recipe_of[number], self.class_of[number]] += 1
        return [
            (JobKind(self.run.columns.recipes[recipe], *self.classes[kind]), num)
            for (recipe, kind), num in counts.items()
        ]


def jobs_of(check: CheckedSubjects, base: RunBase) -> JobSet:
    """The jobs of all valid subjects; subjects with identical jobs share one."""
    sharers: dict[str, list[Subject]] = {}
    jobs = JobSet.of(_named(check, base, sharers))
    changed = {}
    for key, subjects in sharers.items():
        own = jobs.run.assignment(key)
        names = tuple((it.namespace, it.name) for it in subjects)
        prompts = tuple(map(_prompts, subjects))
        shared = replace(own, names=own.names + names, prompts=own.prompts + prompts)
        changed[jobs.run.number[key]] = shared
        jobs.names[key] = shared.names
    jobs.run.blocks.replace(changed)
    return jobs


def _named(
    check: CheckedSubjects, base: RunBase, sharers: dict[str, list[Subject]]
) -> Iterator[Assignment]:
    """A job for each distinct key; later subjects of a key are collected in ``sharers``."""
    seen: set[str] = set()
    for subject in check.good_subjects:
        spec = job_spec(
            subject,
            check.photo_digests(subject),
            base_fingerprint=base.fingerprint,
            resolution_px=base.resolution_px,
            class_image_digests=check.class_image_digests(subject),
        )
        if spec.key in seen:
            sharers.setdefault(spec.key, []).append(subject)
            continue
        seen.add(spec.key)
        yield Assignment(spec, ((subject.namespace, subject.name),), (_prompts(subject),))


def _prompts(subject: Subject) -> tuple[str, ...]:
    return tuple(map(subject.prompt, subject.sample_prompts))
