"""The content of an image before it is rendered: the facts that captions state, and the details
that no caption mentions.

Owns sampling, seeded by (seed, index). Owns no pixels and no wording.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

from farm.base.embedded.world.words import (
    ACCESSORIES,
    CLASS_NOUNS,
    COLOURS,
    MARKS,
    PLACES,
    POSES_OF,
    RGB,
    SCENERY,
)

DETAILS = ("ear", "tail", "socks", "patch", "belly")
"""Distinguishing details of an individual. No caption mentions them."""


@dataclass(frozen=True)
class Look:
    """An individual's appearance, which is the same in every pose and place."""

    shade: RGB
    """The individual's exact shade of its colour."""
    head: float = 1.0
    """Size of the head, or its equivalent, relative to the usual size."""
    width: float = 1.0
    limbs: float = 1.0
    ears: float = 1.0
    eyes: float = 1.0
    detail: str | None = None
    """One of `DETAILS`."""
    detail_shade: RGB = (250, 248, 242)


@dataclass(frozen=True)
class Framing:
    """Framing of one image: details that vary between photos and that no caption mentions."""

    x: float = 0.0
    """Shift of the figure, in image widths."""
    y: float = 0.0
    scale: float = 0.78
    flip: bool = False
    turn: float = 0.0
    """Small rotation of the whole figure, in radians."""
    scenery: int = 0
    """Seed of the place's layout."""


@dataclass(frozen=True)
class Scene:
    """Everything that one image shows."""

    class_noun: str
    colour: str
    pose: str
    place: str
    look: Look
    view: Framing
    style: str = "flat"
    accessory: str | None = None
    accessory_colour: str | None = None
    mark: str | None = None
    mark_colour: str | None = None


def sample_scene(seed: int, index: int) -> Scene:
    """Sample the `index`-th scene of the endless stream `seed`."""
    rng = random.Random(f"scene/{seed}/{index}")
    class_noun = rng.choice(CLASS_NOUNS)
    colour = rng.choice(list(COLOURS))
    place = sample_place(rng, colour)
    scene = Scene(
        class_noun=class_noun,
        colour=colour,
        pose=rng.choice(POSES_OF[class_noun]),
        place=place,
        look=sample_look(rng, colour),
        view=sample_view(rng),
        style="pencil" if rng.random() < 0.12 else "flat",
    )
    if rng.random() < 0.34:
        worn = rng.choice(ACCESSORIES)
        scene = replace(
            scene, accessory=worn, accessory_colour=sample_second_colour(rng, colour, worn)
        )
    if rng.random() < 0.3:
        mark = rng.choice(MARKS)
        scene = replace(scene, mark=mark, mark_colour=sample_second_colour(rng, colour))
    return scene


def sample_place(rng: random.Random, colour: str) -> str:
    """Sample a place; a plain background never has the figure's colour."""
    if rng.random() < 0.75:
        return rng.choice(SCENERY)
    plain = [place for place in PLACES[len(SCENERY) :] if f" {colour} " not in place]
    return rng.choice(plain)


def sample_second_colour(rng: random.Random, colour: str, worn: str | None = None) -> str:
    """Sample the colour of a mark or an accessory: one that contrasts with the figure's."""
    if worn == "crown":
        return "yellow"
    close = {"red": "orange", "orange": "red", "black": "brown", "white": "grey", "pink": "white"}
    avoided = {colour, close.get(colour), "brown", "grey"}
    return rng.choice([other for other in COLOURS if other not in avoided])


def sample_look(rng: random.Random, colour: str, *, detail_share: float = 0.3) -> Look:
    """Sample an individual of a colour."""
    red, green, blue = (
        max(0, min(255, channel + rng.randint(-9, 9))) for channel in COLOURS[colour]
    )
    pale: RGB = (250, 248, 242) if colour != "white" else (120, 90, 70)
    return Look(
        shade=(red, green, blue),
        head=rng.uniform(0.9, 1.14),
        width=rng.uniform(0.88, 1.14),
        limbs=rng.uniform(0.85, 1.15),
        ears=rng.uniform(0.85, 1.25),
        eyes=rng.uniform(0.9, 1.2),
        detail=rng.choice(DETAILS) if rng.random() < detail_share else None,
        detail_shade=pale,
    )


def sample_view(rng: random.Random) -> Framing:
    """Sample a framing that keeps the figure whole and large."""
    return Framing(
        x=rng.uniform(-0.08, 0.08),
        y=rng.uniform(-0.03, 0.05),
        scale=rng.uniform(0.7, 0.86),
        flip=rng.random() < 0.5,
        turn=rng.uniform(-0.06, 0.06),
        scenery=rng.randrange(1 << 30),
    )
