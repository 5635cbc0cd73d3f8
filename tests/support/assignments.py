"""Job specs without photos, for tests that only count and order jobs."""

from __future__ import annotations

from farm.intake.job import JobSpec, job_spec
from farm.intake.subject import Photo, Subject
from farm.keys import bytes_digest
from farm.recipe import Recipe
from farm.training.dispatch.messages import Assignment

FINGERPRINT = "f" * 64
PLAIN = Recipe(steps=10, prior_rows=0)


def spec(name: str, recipe: Recipe = PLAIN, *, noun: str = "cat", priority: int = 0) -> JobSpec:
    subject = Subject(
        id=name,
        class_noun=noun,
        photos=(Photo(f"/photos/{name}.png"),),
        recipe=recipe,
        priority=priority,
    )  # type: ignore[call-arg]  # the rest follows from these
    digests = [bytes_digest(name.encode())]
    return job_spec(subject, digests, base_fingerprint=FINGERPRINT, resolution_px=64)


def assignment(
    name: str, recipe: Recipe = PLAIN, *, noun: str = "cat", priority: int = 0
) -> Assignment:
    return Assignment(spec(name, recipe, noun=noun, priority=priority), (("default", name),))
