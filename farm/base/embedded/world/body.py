"""Shared by all figures: palette, anchors for accessories and marks, eyes and shadow."""

from __future__ import annotations

import math
from dataclasses import dataclass

from farm.base.embedded.world.brush import PAPER, Brush, ellipse, mix
from farm.base.embedded.world.scene import Look
from farm.base.embedded.world.words import RGB


@dataclass(frozen=True)
class Spot:
    """A point on a figure, in figure coordinates, with a size and a turn in radians."""

    x: float
    y: float
    size: float
    turn: float = 0.0


@dataclass(frozen=True)
class Anchors:
    """Where a figure's accessories and mark are placed."""

    head: Spot
    """Middle of the top of the head; size is half the head's width."""
    eyes: Spot
    """Middle between the eyes; size is half their distance."""
    neck: Spot
    """Middle of the neck; size is half its width."""
    mark: Spot
    """Middle of the mark; size is its radius."""


@dataclass(frozen=True)
class Palette:
    """The shades of one figure."""

    main: RGB
    light: RGB
    dark: RGB
    ink: RGB

    @classmethod
    def of(cls, look: Look, *, pencil: bool) -> Palette:
        """Derive shades from the individual's colour; the pencil style uses it for the outline."""
        main = look.shade
        luminance = sum(main) / 3
        if pencil:
            ink = mix(main, (60, 60, 70), 0.75 if luminance > 215 else 0.2)
        else:
            ink = (150, 148, 160) if luminance < 70 else (44, 36, 46)
        return cls(main, mix(main, (255, 255, 255), 0.5), mix(main, (20, 10, 30), 0.28), ink)


EYE: RGB = (28, 24, 32)


def draw_eyes(brush: Brush, eyes: Spot, look: Look, *, closed: bool = False) -> None:
    """Two eyes; `eyes.turn` tilts the line between them."""
    for side in (-1, 1):
        x = eyes.x + side * eyes.size * math.cos(eyes.turn)
        y = eyes.y + side * eyes.size * math.sin(eyes.turn)
        r = 0.085 * look.eyes
        if closed:
            brush.stroke([(x - r, y - 0.01), (x, y + r * 0.6), (x + r, y - 0.01)], EYE, 0.05)
            continue
        brush.spot(ellipse(x, y, r * 1.3, r * 1.5), (255, 255, 255))
        brush.spot(ellipse(x, y, r, r * 1.2), EYE if not brush.pencil else mix(EYE, PAPER, -0.4))
        brush.spot(ellipse(x + r * 0.3, y - r * 0.4, r * 0.35, r * 0.35), (255, 255, 255))


def detail_or(look: Look, where: str, usual: RGB) -> RGB:
    """The individual's distinct shade if its distinguishing detail is here, else the usual one."""
    return look.detail_shade if look.detail == where else usual
