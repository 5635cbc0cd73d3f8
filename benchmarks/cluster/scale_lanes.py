"""Simulated jobs and lanes for ``scale.py``: real specifications, and training in virtual time."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field

from farm.intake.job import JobSpec, job_spec
from farm.intake.subject import Photo, Subject
from farm.keys import bytes_digest
from farm.recipe import Recipe
from farm.training.dispatch.messages import Assignment, JobResult, LaneOrders, LaneReport
from farm.training.plan.shape import LaneShape

STEPS, CHECKPOINT_STEPS, SLOTS, PHOTOS = 800, 100, 8, 5
RECIPES = tuple(Recipe(steps=STEPS, rank=rank) for rank in (4, 8, 16))
JOB_S = 120.0
"""Virtual seconds that a slot trains one job."""
REPLACED_S = 180.0
"""Virtual seconds from the loss of a lane to its replacement's first report."""


def make_subject(index: int) -> Subject:
    """One subject of a manifest, of one of three recipes."""
    name = f"subject-{index:07d}"
    return Subject(
        id=name,
        class_noun="cat",
        photos=tuple(Photo(f"s3://studio/{name}/{photo:02d}.jpg") for photo in range(PHOTOS)),
        recipe=RECIPES[index % len(RECIPES)],
    )  # type: ignore[call-arg]


def make_jobs(number: int) -> Iterator[Assignment]:
    """Jobs as a manifest gives them: five photos, default prompts, one of three recipes."""
    digests = [bytes_digest(str(photo).encode()) for photo in range(PHOTOS)]
    specs = [
        job_spec(
            Subject(
                id="s",
                class_noun="cat",
                photos=tuple(Photo(f"{photo}.jpg") for photo in range(PHOTOS)),
                recipe=Recipe(steps=STEPS, prior_rows=0, rank=rank),
            ),  # type: ignore[call-arg]
            digests,
            base_fingerprint="f" * 64,
            resolution_px=512,
        )
        for rank in (4, 8, 16)
    ]
    for index in range(number):
        yield _job(specs[index % len(specs)], index)


def _job(spec: JobSpec, index: int) -> Assignment:
    name = f"subject-{index:07d}"
    digest = bytes_digest(name.encode())
    digests = tuple(bytes_digest(f"{name}/{photo}".encode()) for photo in range(PHOTOS))
    photos = tuple(Photo(f"s3://studio/{name}/{photo:02d}.jpg") for photo in range(PHOTOS))
    subject = spec.subject.model_copy(update={"id": name, "name": name, "photos": photos})
    changed = {"key": digest[:32], "subject": subject, "photo_digests": digests}
    return Assignment(spec.model_copy(update=changed), (("default", name),))


@dataclass
class FakeLane:
    """A lane that trains in virtual time."""

    place: str
    life: int = 0
    held: dict[str, float] = field(default_factory=dict)
    """Steps by job."""
    results: list[JobResult] = field(default_factory=list)
    shape: LaneShape | None = None
    at: float = 0.0
    steps_trained: float = 0.0

    def train(self, now: float, checkpoints: dict[str, int], pace: random.Random) -> None:
        """Train until ``now``; finished jobs become results."""
        gained = (now - self.at) * STEPS / JOB_S
        self.at = now
        for key, step in list(self.held.items()):
            step += gained * pace.uniform(0.9, 1.1)
            if step >= STEPS:
                self.steps_trained += STEPS - self.held.pop(key)
                self.results.append(JobResult(key, "committed", step=STEPS, seconds=JOB_S))
                checkpoints.pop(key, None)
                continue
            self.steps_trained += step - self.held[key]
            self.held[key] = step
            if step >= CHECKPOINT_STEPS:
                checkpoints[key] = int(step) // CHECKPOINT_STEPS * CHECKPOINT_STEPS

    def report(self) -> LaneReport:
        """What it reports now."""
        return LaneReport(
            lane=self.place,
            incarnation=f"i{self.life}",
            slots=SLOTS,
            held={key: int(step) for key, step in self.held.items()},
            results=tuple(self.results),
            want=SLOTS - len(self.held),
            shape=self.shape,
            rows_per_s=SLOTS * 2.0,
            pid=1,
        )

    def obey(self, orders: LaneOrders, checkpoints: dict[str, int]) -> None:
        """Take new jobs, where their checkpoints left them."""
        self.results = []
        for key in orders.drop:
            self.held.pop(key, None)
        for lease in orders.leases:
            key = lease.assignment.spec.key
            self.held[key] = checkpoints.get(key, 0) if lease.may_resume else 0
        if orders.leases:
            self.shape = orders.shape
        elif not self.held:
            self.shape = None

    def die(self) -> None:
        """Lose everything that no checkpoint holds."""
        self.life += 1
        self.held, self.results, self.shape = {}, [], None
