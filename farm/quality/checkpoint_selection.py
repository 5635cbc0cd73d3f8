"""Selects the saved step of a subject to keep, by the scores of its images.

The cheaper rule, on the evaluation loss alone, runs during training for every subject
(``farm.training.slots.evaluation``); this one needs images of every saved step and is for studies.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from farm.quality.intervals import ScoreEstimate

__all__ = ["ScoredStep", "keep_best"]


@dataclass(frozen=True)
class ScoredStep:
    """Scores of one saved step."""

    step: int
    fidelity: ScoreEstimate
    preservation: ScoreEstimate | None = None
    """PRES; lower is better."""


def keep_best(steps: Sequence[ScoredStep]) -> ScoredStep:
    """The earliest step whose fidelity is not significantly below the best.

    Scores of a few images are noisy, and every further step costs some class preservation, so a
    later step must be clearly better. A step qualifies if the best step's mean is inside its
    interval.

    Raises:
        ValueError: for no steps.
    """
    if not steps:
        raise ValueError("there are no steps to choose from")
    top = max(steps, key=lambda scored: scored.fidelity.mean)
    good = [scored for scored in steps if scored.fidelity.high >= top.fidelity.mean]
    return min(good, key=lambda scored: scored.step)
