"""Loss curves as SVG path data for the template.

Owns scaling, thinning and smoothing. Generates no markup.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["WIDTH", "HEIGHT", "LossPlot", "loss_plot"]

WIDTH, HEIGHT = 640.0, 200.0
LEFT, RIGHT, TOP, BOTTOM = 44.0, 12.0, 10.0, 26.0
MAX_POINTS = 240
"""Maximum number of points of a curve: more than its width in pixels has no effect."""


@dataclass(frozen=True)
class LossPlot:
    """A loss curve, scaled to the view box 0 0 WIDTH HEIGHT."""

    raw: str
    """SVG path of the training loss."""
    smooth: str
    """SVG path of its running mean."""
    evaluations: tuple[tuple[float, float], ...]
    evaluation_path: str
    kept_x: float | None
    """Position of the committed step."""
    ticks_x: tuple[tuple[float, str], ...]
    ticks_y: tuple[tuple[float, str], ...]
    summary: str
    """Text alternative for screen readers."""


def loss_plot(
    losses: Sequence[float],
    evaluations: Sequence[tuple[int, float]] = (),
    kept_step: int | None = None,
) -> LossPlot | None:
    """Scale a subject's curves; None if there are no finite values."""
    points = [(step, loss) for step, loss in enumerate(losses, 1) if math.isfinite(loss)]
    marks = [(step, loss) for step, loss in evaluations if math.isfinite(loss)]
    if len(points) + len(marks) < 2:
        return None
    last = max([step for step, _ in [*points, *marks]])
    smooth = _running_mean(points)
    # the loss of single timesteps has extreme peaks; the axis is scaled to the smoothed curve
    top = max([loss for _, loss in [*smooth, *marks]]) * 1.25 or 1.0

    def place(step: float, loss: float) -> tuple[float, float]:
        x = LEFT + (WIDTH - LEFT - RIGHT) * step / last
        y = HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * min(loss, top) / top
        return round(x, 1), round(y, 1)

    placed_marks = tuple(place(*mark) for mark in marks)
    return LossPlot(
        raw=_path([place(*point) for point in _thin(points)]),
        smooth=_path([place(*point) for point in _thin(smooth)]),
        evaluations=placed_marks,
        evaluation_path=_path(list(placed_marks)),
        kept_x=place(kept_step, 0)[0] if kept_step and kept_step <= last else None,
        ticks_x=tuple((place(step, 0)[0], f"{step:g}") for step in _ticks(last)),
        ticks_y=tuple((place(0, loss)[1], f"{loss:.2g}") for loss in _ticks(top, 3)),
        summary=_summary(points, marks, smooth),
    )


def _summary(
    points: list[tuple[int, float]],
    marks: list[tuple[int, float]],
    smooth: list[tuple[int, float]],
) -> str:
    parts = []
    if smooth:
        first, last = smooth[min(9, len(smooth) - 1)][1], smooth[-1][1]
        parts.append(f"Training loss over {len(points)} steps, from {first:.3f} to {last:.3f}.")
    if marks:
        parts.append(f"Evaluation loss from {marks[0][1]:.3f} to {marks[-1][1]:.3f}.")
    return " ".join(parts)


def _running_mean(points: list[tuple[int, float]]) -> list[tuple[int, float]]:
    """Exponential moving average with bias correction."""
    result, mean, weight = [], 0.0, 0.0
    for step, loss in points:
        mean, weight = 0.95 * mean + 0.05 * loss, 0.95 * weight + 0.05
        result.append((step, mean / weight))
    return result


def _thin(points: list[tuple[int, float]]) -> list[tuple[int, float]]:
    stride = max(1, math.ceil(len(points) / MAX_POINTS))
    return points[::stride] + ([points[-1]] if points and (len(points) - 1) % stride else [])


def _path(points: list[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{x:g} {y:g}" for x, y in points) if len(points) > 1 else ""


def _ticks(last: float, num: int = 5) -> list[float]:
    """Round numbers from 0 to at most ``last``."""
    rough = last / num
    power = 10.0 ** math.floor(math.log10(rough)) if rough > 0 else 1.0
    unit = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough)
    return [index * unit for index in range(int(last / unit + 1e-9) + 1)]
