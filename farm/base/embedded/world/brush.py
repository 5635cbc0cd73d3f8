"""Drawing primitives: polygons in figure coordinates, drawn with outlines on a Pillow canvas.

Owns the canvas, the affine placement, colour mixing and the pencil style; contains no figures and
no places. Figure coordinates: x to the right, y down, a whole figure within about [-1, 1] in both.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from farm.base.embedded.world.words import RGB

Polygon = NDArray[np.float64]
"""(N, 2) corners, in figure coordinates."""

CANVAS_PX = 256
"""Side of the canvas; the image is a downscaled copy of it."""

PAPER: RGB = (252, 250, 244)


def mix(first: RGB, second: RGB, share: float) -> RGB:
    """Blend `share` of the second colour into the first."""
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(first, second, strict=True))
    return (red, green, blue)


def ellipse(x: float, y: float, rx: float, ry: float, turn: float = 0.0) -> Polygon:
    """An ellipse as a polygon; `turn` in radians, clockwise on the screen."""
    angles = np.linspace(0, 2 * math.pi, 32, endpoint=False)
    return rotate(np.stack([np.cos(angles) * rx, np.sin(angles) * ry], 1), turn) + (x, y)


def rotate(polygon: Polygon, turn: float) -> Polygon:
    """Rotate points about the origin by `turn` radians, clockwise on the screen."""
    cos, sin = math.cos(turn), math.sin(turn)
    turned: Polygon = polygon @ np.array([[cos, sin], [-sin, cos]])
    return turned


def corners(*points: tuple[float, float]) -> Polygon:
    """A polygon with sharp corners."""
    return np.array(points, dtype=np.float64)


def blob(*points: tuple[float, float]) -> Polygon:
    """A smooth closed curve through the points (Catmull-Rom)."""
    knots = np.array(points, dtype=np.float64)
    before, after, beyond = (np.roll(knots, shift, 0) for shift in (1, -1, -2))
    parts = []
    for t in np.linspace(0, 1, 7, endpoint=False):
        parts.append(
            0.5
            * (
                2 * knots
                + (after - before) * t
                + (2 * before - 5 * knots + 4 * after - beyond) * t**2
                + (3 * knots - before - 3 * after + beyond) * t**3
            )
        )
    return np.stack(parts, 1).reshape(-1, 2)


def box(x: float, y: float, half_width: float, half_height: float, corner: float = 0.1) -> Polygon:
    """A rounded rectangle about its centre."""
    angles = np.linspace(0, math.pi / 2, 5)
    arc = np.stack([np.cos(angles), np.sin(angles)], 1) * corner
    quarter = arc + (half_width - corner, half_height - corner)
    flipped = quarter[::-1]
    outline = [quarter, flipped * (-1, 1), quarter * (-1, -1), flipped * (1, -1)]
    return np.concatenate(outline) + (x, y)


def limb(points: Sequence[tuple[float, float]], start: float, end: float) -> Polygon:
    """A tapering tube with round ends along a path of points; `start` and `end` are half widths."""
    path = np.array(points, dtype=np.float64)
    if len(path) > 2:
        path = _smooth_path(path)
    step = np.gradient(path, axis=0)
    normal = np.stack([-step[:, 1], step[:, 0]], 1)
    normal /= np.linalg.norm(normal, axis=1, keepdims=True) + 1e-9
    width = np.linspace(start, end, len(path))[:, None]
    left, right = path + normal * width, path - normal * width
    return np.concatenate(
        [left, _cap(path[-1], left[-1] - path[-1]), right[::-1], _cap(path[0], right[0] - path[0])]
    )


def _cap(centre: Polygon, spoke: Polygon) -> Polygon:
    turns = np.linspace(0, -math.pi, 7)[1:-1]
    return np.stack([rotate(spoke[None], turn)[0] + centre for turn in turns])


def _smooth_path(path: Polygon) -> Polygon:
    padded = np.concatenate([2 * path[:1] - path[1:2], path, 2 * path[-1:] - path[-2:-1]])
    pieces = []
    for index in range(len(path) - 1):
        p0, p1, p2, p3 = padded[index : index + 4]
        t = np.linspace(0, 1, 6, endpoint=index == len(path) - 2)[:, None]
        cubic = (3 * p1 - p0 - 3 * p2 + p3) * t**3
        pieces.append(
            0.5 * (2 * p1 + (p2 - p0) * t + (2 * p0 - 5 * p1 + 4 * p2 - p3) * t**2 + cubic)
        )
    return np.concatenate(pieces)


def star(x: float, y: float, size: float) -> Polygon:
    """A five-pointed star, one point up."""
    angles = np.arange(10) * math.pi / 5 - math.pi / 2
    radius = np.where(np.arange(10) % 2 == 0, size, size * 0.45)
    return np.stack([np.cos(angles) * radius + x, np.sin(angles) * radius + y], 1)


@dataclass
class Brush:
    """Draws polygons in figure coordinates on a canvas, in one of the two styles."""

    image: Image.Image
    origin: tuple[float, float] = (CANVAS_PX / 2, CANVAS_PX / 2)
    """Canvas position of the figure's origin, in canvas px."""
    scale: float = CANVAS_PX / 2
    """Canvas px per figure unit."""
    flip: bool = False
    turn: float = 0.0
    ink: RGB = (40, 34, 44)
    line_px: float = 5.0
    """Width of the outline in canvas px; 4 of them make one px of the image."""
    pencil: bool = False
    _draw: ImageDraw.ImageDraw = field(init=False)

    def __post_init__(self) -> None:
        self._draw = ImageDraw.Draw(self.image)

    def place(self, polygon: Polygon) -> list[tuple[float, float]]:
        """Transform figure coordinates to canvas px."""
        turned = rotate(polygon, self.turn) if self.turn else polygon
        x = turned[:, 0] * (-self.scale if self.flip else self.scale) + self.origin[0]
        y = turned[:, 1] * self.scale + self.origin[1]
        return list(zip(x.tolist(), y.tolist(), strict=True))

    def layer(self, *parts: tuple[Polygon, RGB]) -> None:
        """Draw parts as one body: one outline around their union, then every fill."""
        placed = [(self.place(polygon), fill) for polygon, fill in parts]
        for points, _ in placed:
            closed = [*points, points[0], points[1]]
            self._draw.line(closed, fill=self.ink, width=round(2 * self.line_px), joint="curve")
        for points, fill in placed:
            self._draw.polygon(points, fill=self.tint(fill))

    def spot(self, polygon: Polygon, fill: RGB) -> None:
        """Draw a part without an outline."""
        self._draw.polygon(self.place(polygon), fill=self.tint(fill))

    def stroke(self, points: Sequence[tuple[float, float]], fill: RGB, width: float) -> None:
        """Draw a line of `width` figure units along the points."""
        placed = self.place(np.array(points, dtype=np.float64))
        self._draw.line(placed, fill=fill, width=round(width * self.scale), joint="curve")

    def tint(self, colour: RGB) -> RGB:
        """The colour as it appears in this style: the pencil style is mostly white."""
        return mix(colour, PAPER, 0.62) if self.pencil else colour
