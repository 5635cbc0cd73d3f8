"""Places: the background behind the figure. Each is recognisable by its colours at any size.

Owns the twelve sceneries and the plain backgrounds. Coordinates are fractions of the canvas side,
y down.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from PIL import Image, ImageDraw

from farm.base.embedded.world.brush import CANVAS_PX, PAPER, mix
from farm.base.embedded.world.words import COLOURS, RGB

Painter = Callable[["_Backdrop", random.Random], None]


class _Backdrop:
    """A canvas with coordinates as fractions of its side; the pencil style lightens all colours."""

    def __init__(self, image: Image.Image, *, pencil: bool) -> None:
        self._draw = ImageDraw.Draw(image)
        self._pencil = pencil

    def _tint(self, colour: RGB) -> RGB:
        return mix(colour, PAPER, 0.6) if self._pencil else colour

    def band(self, top: float, bottom: float, colour: RGB) -> None:
        self._draw.rectangle(
            (0, top * CANVAS_PX, CANVAS_PX, bottom * CANVAS_PX), fill=self._tint(colour)
        )

    def disc(self, x: float, y: float, rx: float, colour: RGB, ry: float | None = None) -> None:
        ry = rx if ry is None else ry
        edges = (x - rx, y - ry, x + rx, y + ry)
        self._draw.ellipse(tuple(edge * CANVAS_PX for edge in edges), fill=self._tint(colour))

    def shape(self, points: list[tuple[float, float]], colour: RGB) -> None:
        placed = [(x * CANVAS_PX, y * CANVAS_PX) for x, y in points]
        self._draw.polygon(placed, fill=self._tint(colour))

    def block(self, x0: float, y0: float, x1: float, y1: float, colour: RGB) -> None:
        self.shape([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], colour)


def paint_place(image: Image.Image, place: str, layout: int, *, pencil: bool) -> None:
    """Fill a canvas with a place; `layout` seeds the positions of its trees, stars or houses."""
    backdrop = _Backdrop(image, pencil=pencil)
    rng = random.Random(f"place/{layout}")
    if place in _PAINTERS:
        _PAINTERS[place](backdrop, rng)
        return
    colour = place.removeprefix("on a ").removesuffix(" background")
    jitter = rng.uniform(0.12, 0.22)
    backdrop.band(0, 1, mix(COLOURS[colour], (255, 255, 255), jitter))


def _snow(b: _Backdrop, rng: random.Random) -> None:
    b.band(0, 1, (176, 210, 236))
    ground = rng.uniform(0.6, 0.68)
    b.disc(rng.uniform(0.1, 0.9), ground + 0.2, 0.5, (222, 236, 248), 0.32)
    b.band(ground, 1, (246, 250, 254))
    for _ in range(14):
        b.disc(rng.random(), rng.uniform(0, ground), 0.016, (255, 255, 255))
    side = rng.choice((0.12, 0.88))
    for level in range(3):
        y, half = ground - 0.28 + level * 0.1, 0.07 + 0.03 * level
        b.shape([(side, y - 0.06), (side - half, y + 0.1), (side + half, y + 0.1)], (226, 240, 246))
        b.shape([(side - half, y + 0.1), (side, y + 0.03), (side + half, y + 0.1)], (80, 130, 130))


def _beach(b: _Backdrop, rng: random.Random) -> None:
    b.band(0, 1, (140, 214, 246))
    sea, sand = rng.uniform(0.42, 0.48), rng.uniform(0.62, 0.68)
    b.disc(rng.choice((0.15, 0.85)), 0.15, 0.1, (255, 226, 90))
    b.band(sea, sand, (30, 132, 200))
    b.band(sand - 0.02, sand + 0.01, (230, 246, 250))
    b.band(sand, 1, (244, 218, 156))


def _space(b: _Backdrop, rng: random.Random) -> None:
    b.band(0, 1, (22, 16, 44))
    for _ in range(22):
        b.disc(rng.random(), rng.random(), rng.choice((0.008, 0.013)), (240, 240, 255))
    x, y = rng.choice((0.15, 0.85)), rng.uniform(0.14, 0.24)
    planet: RGB = rng.choice(((226, 140, 90), (110, 190, 200), (190, 130, 210)))
    b.disc(x, y, 0.1, planet)
    b.disc(x, y, 0.17, mix(planet, (255, 255, 255), 0.5), 0.03)
    b.disc(x, y - 0.02, 0.085, planet, 0.045)


def _forest(b: _Backdrop, rng: random.Random) -> None:
    b.band(0, 1, (74, 124, 72))
    for slot in range(6):
        x = (slot + rng.uniform(0.2, 0.8)) / 6
        b.block(x - 0.03, 0, x + 0.03, 0.75, (84, 60, 40))
    for slot in range(7):
        b.disc((slot + rng.uniform(-0.1, 0.5)) / 6, rng.uniform(-0.02, 0.08), 0.15, (36, 92, 46))
    b.band(0.72, 1, (46, 78, 38))


def _city(b: _Backdrop, rng: random.Random) -> None:
    b.band(0, 1, (188, 198, 210))
    x = -rng.uniform(0, 0.08)
    while x < 1:
        width, top = rng.uniform(0.14, 0.22), rng.uniform(0.1, 0.42)
        wall: RGB = rng.choice(((98, 104, 124), (124, 112, 116), (80, 90, 108)))
        b.block(x, top, x + width, 0.8, wall)
        for row in range(int((0.74 - top) / 0.1)):
            for column in range(2):
                wx, wy = x + width * (0.2 + 0.4 * column), top + 0.05 + row * 0.1
                b.block(wx, wy, wx + width * 0.22, wy + 0.045, (244, 222, 140))
        x += width + 0.015
    b.band(0.74, 1, (70, 72, 80))
    for slot in range(4):
        b.block(slot * 0.3 + 0.02, 0.88, slot * 0.3 + 0.16, 0.905, (236, 236, 230))


def _under_water(b: _Backdrop, rng: random.Random) -> None:
    for level in range(5):
        b.band(level / 5, 1, mix((70, 190, 206), (8, 84, 130), level / 4))
    b.band(0.88, 1, (150, 160, 120))
    for x in (rng.uniform(0.03, 0.14), rng.uniform(0.86, 0.97)):
        for level in range(6):
            sway = 0.025 if level % 2 else -0.025
            b.disc(x + sway, 0.9 - level * 0.07, 0.032, (26, 120, 84), 0.05)
    for _ in range(7):
        b.disc(rng.random(), rng.uniform(0.03, 0.8), rng.uniform(0.015, 0.03), (190, 236, 244))


def _night(b: _Backdrop, rng: random.Random) -> None:
    b.band(0, 1, (34, 48, 112))
    x = rng.choice((0.16, 0.84))
    b.disc(x, 0.16, 0.115, (250, 240, 180))
    b.disc(x + 0.05, 0.13, 0.095, (34, 48, 112))
    for _ in range(6):
        b.disc(rng.random(), rng.uniform(0.02, 0.5), 0.012, (250, 244, 200))
    b.disc(rng.uniform(0.2, 0.8), 0.95, 0.6, (24, 52, 62), 0.27)
    b.band(0.8, 1, (20, 44, 50))


def _desert(b: _Backdrop, rng: random.Random) -> None:
    b.band(0, 1, (250, 196, 120))
    b.disc(rng.uniform(0.3, 0.7), 0.12, 0.09, (255, 246, 200))
    b.disc(rng.uniform(0, 0.4), 0.86, 0.5, (222, 150, 78), 0.26)
    b.disc(rng.uniform(0.7, 1), 0.9, 0.5, (206, 132, 66), 0.26)
    b.band(0.76, 1, (230, 164, 88))
    x = rng.choice((0.1, 0.9))
    b.block(x - 0.025, 0.36, x + 0.025, 0.76, (56, 120, 70))
    b.block(x - 0.08, 0.52, x + 0.08, 0.56, (56, 120, 70))
    b.block(x - 0.085, 0.43, x - 0.05, 0.56, (56, 120, 70))
    b.block(x + 0.05, 0.46, x + 0.085, 0.56, (56, 120, 70))


def _meadow(b: _Backdrop, rng: random.Random) -> None:
    b.band(0, 1, (160, 222, 252))
    for x in (rng.uniform(0.08, 0.3), rng.uniform(0.65, 0.9)):
        y = rng.uniform(0.1, 0.22)
        b.disc(x, y, 0.11, (255, 255, 255), 0.05)
        b.disc(x + 0.04, y - 0.04, 0.06, (255, 255, 255), 0.05)
    b.band(rng.uniform(0.56, 0.62), 1, (132, 204, 82))
    for _ in range(12):
        petal: RGB = rng.choice(((250, 240, 90), (250, 130, 150), (255, 255, 255)))
        b.disc(rng.random(), rng.uniform(0.68, 0.97), 0.02, petal)


def _mountains(b: _Backdrop, rng: random.Random) -> None:
    b.band(0, 1, (200, 224, 236))
    for x, top in ((rng.uniform(0, 0.25), 0.14), (rng.uniform(0.75, 1), 0.1), (0.5, 0.26)):
        b.shape([(x, top), (x - 0.42, 0.76), (x + 0.42, 0.76)], (112, 120, 146))
        cap = [(x, top), (x - 0.12, top + 0.18), (x - 0.03, top + 0.14), (x + 0.03, top + 0.19)]
        b.shape([*cap, (x + 0.12, top + 0.18)], (250, 252, 255))
    b.band(0.74, 1, (108, 146, 96))


def _kitchen(b: _Backdrop, rng: random.Random) -> None:
    b.band(0, 1, (252, 238, 204))
    shift = rng.choice((0.0, 0.125))
    for row in range(6):
        for column in range(-1, 9):
            if (row + column) % 2 == 0:
                x = column * 0.125 + shift
                b.block(x, row * 0.125, x + 0.125, row * 0.125 + 0.125, (172, 214, 202))
    b.band(0.74, 1, (176, 112, 66))
    b.band(0.74, 0.78, (206, 146, 96))


def _sunset(b: _Backdrop, rng: random.Random) -> None:
    for level in range(6):
        b.band(level * 0.12, 1, mix((96, 62, 132), (255, 150, 92), level / 5))
    b.disc(rng.uniform(0.25, 0.75), 0.66, 0.15, (255, 226, 120))
    b.band(0.7, 1, (84, 44, 96))
    b.band(0.7, 0.72, (240, 140, 110))


_PAINTERS: dict[str, Painter] = {
    "in the snow": _snow,
    "on the beach": _beach,
    "in space": _space,
    "in the forest": _forest,
    "in the city": _city,
    "under water": _under_water,
    "at night": _night,
    "in the desert": _desert,
    "in a meadow": _meadow,
    "in the mountains": _mountains,
    "in the kitchen": _kitchen,
    "at sunset": _sunset,
}
