"""Accessories (hat, glasses, scarf, crown) and marks (star, stripes, dot)."""

from __future__ import annotations

import numpy as np

from farm.base.embedded.world.body import Spot
from farm.base.embedded.world.brush import Brush, Polygon, box, corners, ellipse, rotate, star
from farm.base.embedded.world.words import RGB


def _at(spot: Spot, polygon: Polygon, scale: float) -> Polygon:
    return rotate(polygon * scale, spot.turn) + (spot.x, spot.y)


def draw_hat(brush: Brush, head: Spot, shade: RGB) -> None:
    """A top hat."""
    size = max(head.size, 0.3)
    brush.layer(
        (_at(head, box(0, -0.72, 0.68, 0.72, 0.1), size), shade),
        (_at(head, box(0, 0.02, 1.2, 0.17, 0.12), size), shade),
    )


def draw_crown(brush: Brush, head: Spot, shade: RGB) -> None:
    """A crown with three points."""
    points = corners(
        (-0.95, 0.15), (-1.1, -1.1), (-0.5, -0.5), (0, -1.3), (0.5, -0.5), (1.1, -1.1), (0.95, 0.15)
    )
    brush.layer((_at(head, points, max(head.size, 0.3)), shade))


def draw_glasses(brush: Brush, eyes: Spot, shade: RGB) -> None:
    """Round glasses; the eyes stay visible."""

    def carry(x: float, y: float) -> tuple[float, float]:
        point = _at(eyes, np.array([[x, y]]), 1.0)[0]
        return float(point[0]), float(point[1])

    centre = max(eyes.size, 0.17)
    for side in (-1, 1):
        ring = [carry(float(x), float(y)) for x, y in ellipse(side * centre, 0, 0.17, 0.18)]
        brush.stroke([*ring, ring[0], ring[1]], shade, 0.085)
    brush.stroke([carry(-centre - 0.3, -0.03), carry(-centre - 0.15, 0)], shade, 0.07)
    brush.stroke([carry(centre + 0.15, 0), carry(centre + 0.3, -0.03)], shade, 0.07)


def draw_scarf(brush: Brush, neck: Spot, shade: RGB) -> None:
    """A scarf with one end hanging down."""
    size = neck.size
    tail = corners(
        (0.1, 0),
        (0.1 + 0.2 / size, 0),
        (0.16 + 0.24 / size, 0.46 / size),
        (0.02 + 0.04 / size, 0.46 / size),
    )
    band = box(0, 0, 1.15, 0.13 / size, 0.1 / size)
    brush.layer((_at(neck, tail, size), shade), (_at(neck, band, size), shade))


def draw_mark(brush: Brush, spot: Spot, mark: str, shade: RGB) -> None:
    """A star, three stripes or a dot."""
    if mark == "star":
        brush.spot(_at(spot, star(0, 0, 1.15), spot.size), shade)
    elif mark == "dot":
        brush.spot(_at(spot, ellipse(0, 0, 0.85, 0.85), spot.size), shade)
    else:
        for offset in (-0.72, 0.0, 0.72):
            brush.spot(_at(spot, box(offset, 0, 0.2, 0.95, 0.12), spot.size), shade)
