"""What each of an adapter's sample pictures shows, told from their order.

Owns the order in which training saves them: progress pictures step by step, then the final sample
prompts, then the judge's gallery and class pictures (see ``farm.training.lane.finalizer``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["Sample", "SamplePlan", "sample_plan"]


@dataclass(frozen=True)
class Sample:
    """One picture: its place among the files, and what it shows."""

    index: int
    text: str
    step: int | None = None
    similarity: float | None = None
    """To the photos, where the judge measured it; tells the best picture."""


@dataclass(frozen=True)
class SamplePlan:
    """All pictures of one adapter by purpose."""

    progress: tuple[Sample, ...]
    """Of the first sample prompt, steps rising; the last one is the finished adapter."""
    gallery: tuple[Sample, ...]
    class_pictures: tuple[Sample, ...]


def sample_plan(
    num: int, prompts: Sequence[str], sample_every: int, card: Mapping[str, Any]
) -> SamplePlan:
    """Assign ``num`` pictures to their purposes.

    Args:
        prompts: the subject's sample prompts, identifier put in.
        card: the quality card; it names the gallery's prompts.
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
    if num_judged > num:  # the files are not what the card says: show none wrongly
        judged, noun_pictures = [], []
    return SamplePlan(
        tuple(progress) if sample_every and len(progress) > 1 else (),
        (*final, *judged),
        tuple(noun_pictures),
    )
