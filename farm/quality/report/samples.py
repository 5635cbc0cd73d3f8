"""The purpose of each of an adapter's sample images, derived from their order.

Owns the order in which training saves them: progress images step by step, then the final sample
prompts, then the evaluation's gallery and class images (see ``farm.training.lane.finalizer``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["Sample", "SamplePlan", "sample_plan"]


@dataclass(frozen=True)
class Sample:
    """One image: its position among the files, and what it shows."""

    index: int
    text: str
    step: int | None = None
    similarity: float | None = None
    """Similarity to the photos, if it was measured; used to find the best image."""


@dataclass(frozen=True)
class SamplePlan:
    """All images of one adapter by purpose."""

    progress: tuple[Sample, ...]
    """Images of the first sample prompt by increasing step; the last is the finished adapter."""
    gallery: tuple[Sample, ...]
    class_pictures: tuple[Sample, ...]


def sample_plan(
    num: int, prompts: Sequence[str], sample_every: int, card: Mapping[str, Any]
) -> SamplePlan:
    """Assign ``num`` images to their purposes.

    Args:
        prompts: the subject's sample prompts, with the identifier.
        card: the quality card, which contains the gallery's prompts.
    """
    judged_prompts = list(card.get("gallery", ()))
    num_class = int(card.get("num_class_pictures", 0))
    num_judged = len(judged_prompts) + num_class
    num_own = max(0, num - num_judged)
    per_round = max(1, len(prompts))
    rounds = num_own // per_round
    progress = [
        Sample(number * per_round, prompts[0], step=sample_every * (number + 1))
        for number in range(rounds)
        if prompts
    ]
    final = [
        Sample((rounds - 1) * per_round + index, text)
        for index, text in enumerate(prompts)
        if rounds
    ]
    each = dict(enumerate(card.get("gallery_similarity", ())))
    judged = [
        Sample(num_own + index, text, similarity=each.get(index))
        for index, text in enumerate(judged_prompts)
    ]
    first_class = num_own + len(judged_prompts)
    noun_pictures = [
        Sample(first_class + index, "without the identifier") for index in range(num_class)
    ]
    if num_judged > num:  # the files do not match the card: show none rather than mislabel them
        judged, noun_pictures = [], []
    return SamplePlan(
        tuple(progress) if sample_every and len(progress) > 1 else (),
        (*final, *judged),
        tuple(noun_pictures),
    )
