"""Which of a subject's saved steps to keep, judged by its pictures.

Owns the rule on scores. The cheaper rule, on the evaluation loss alone, runs inside training for
every subject (``farm.training.slots.evaluation``); this one needs images of every saved step and
is for studies and audits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from farm.quality.intervals import Estimate

__all__ = ["ScoredStep", "keep_best"]


@dataclass(frozen=True)
class ScoredStep:
    """What one saved step is worth."""

    step: int
    fidelity: Estimate
    preservation: Estimate | None = None
    """PRES; lower is better."""


def keep_best(steps: Sequence[ScoredStep]) -> ScoredStep:
    """The earliest step whose fidelity the best one does not beat beyond doubt.

    The rule of one interval: scores of a few pictures are noisy, and every further step costs
    the class something, so a later step must earn its place. A step stands when the best
    step's mean lies inside its own interval.

    Raises:
        ValueError: for no steps.
    """
    if not steps:
        raise ValueError("no step to keep")
    top = max(steps, key=lambda scored: scored.fidelity.mean)
    good = [scored for scored in steps if scored.fidelity.high >= top.fidelity.mean]
    return min(good, key=lambda scored: scored.step)
