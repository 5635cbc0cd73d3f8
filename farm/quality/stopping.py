"""When a subject has learned enough, and which of its steps to keep: pure decisions on curves.

Owns the rules on the evaluation loss (same photos, noise and timesteps at every evaluation, so that
its fall is learning and not luck; the idea of DVAR, Voronov et al., NeurIPS'23) and on scores. The
trainer measures the loss and frees slots; it is told nothing of pictures.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from farm.quality.intervals import Estimate
from farm.recipe import EarlyStop

__all__ = ["Curve", "ScoredStep", "StopDecision", "best_step", "decide", "keep_best"]

Curve = Sequence[tuple[int, float]]
"""(step, evaluation loss), steps rising."""

DIVERGED_RATIO = 1.5
"""A loss this many times the first one is not learning any more."""


@dataclass(frozen=True)
class StopDecision:
    """Whether to stop now, and why."""

    stops: bool
    reason: str
    best_step: int | None
    """The step with the best loss so far."""


def decide(curve: Curve, rule: EarlyStop) -> StopDecision:
    """Stop when the evaluation loss has not fallen for ``rule.patience`` evaluations, or diverges.

    An evaluation counts as a fall only when it is lower than the best by ``rule.min_delta``,
    relatively; nothing stops before ``rule.min_steps``, except a loss that is not finite.
    """
    if not curve:
        return StopDecision(False, "not evaluated yet", None)
    step, loss = curve[-1]
    best = best_step(curve, rule.min_delta)
    if not math.isfinite(loss):
        return StopDecision(True, f"the evaluation loss is {loss} at step {step}", best)
    if step < rule.min_steps:
        return StopDecision(False, f"before step {rule.min_steps}", best)
    if loss > DIVERGED_RATIO * curve[0][1]:
        ratio = loss / curve[0][1]
        return StopDecision(True, f"diverged: the loss is {ratio:.1f} times the first", best)
    waited = sum(1 for at, _ in curve if best is not None and at > best)
    if waited >= rule.patience:
        return StopDecision(True, f"no better for {waited} evaluations since step {best}", best)
    return StopDecision(False, "still learning", best)


def best_step(curve: Curve, min_delta: float = 0.0) -> int | None:
    """The earliest step whose loss no later one undercuts by ``min_delta``, relatively."""
    best: tuple[int, float] | None = None
    for step, loss in curve:
        if math.isfinite(loss) and (best is None or loss < best[1] * (1 - min_delta)):
            best = (step, loss)
    return best[0] if best else None


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
