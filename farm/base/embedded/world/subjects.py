"""Subjects: one fixed individual of the synthetic world with many photos.

Owns the individual (its colour, appearance, mark, and a detail that no caption mentions) and its
photos, each with its scene, so that pose, place and all other facts are known. Used by the demo,
tests and measurements.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

from PIL import Image

from farm.base.embedded.world.render import PICTURE_PX, render_scene
from farm.base.embedded.world.scene import (
    DETAILS,
    Look,
    Scene,
    sample_look,
    sample_place,
    sample_second_colour,
    sample_view,
)
from farm.base.embedded.world.words import CLASS_NOUNS, COLOURS, MARKS, POSES_OF


@dataclass(frozen=True)
class Individual:
    """The subject's identity: everything that its photos share."""

    class_noun: str
    colour: str
    look: Look
    mark: str | None = None
    mark_colour: str | None = None


@dataclass(frozen=True)
class RenderedPhoto:
    """One photo of a subject, and its scene."""

    picture: Image.Image
    scene: Scene


def sample_individual(
    seed: int,
    *,
    class_noun: str | None = None,
    colour: str | None = None,
    mark: str | None = None,
) -> Individual:
    """Sample the individual of a seed; the given attributes are kept.

    Every individual has a distinguishing detail. Two thirds have a mark.
    """
    rng = random.Random(f"individual/{seed}")
    any_noun, any_colour = rng.choice(CLASS_NOUNS), rng.choice(list(COLOURS))
    noun, main = class_noun or any_noun, colour or any_colour
    look = sample_look(rng, main, detail_share=1.0)
    detail = rng.choice(DETAILS)
    any_mark = rng.choice(MARKS) if rng.random() < 0.67 else None
    mark_colour = sample_second_colour(rng, main)
    return Individual(
        class_noun=noun,
        colour=main,
        look=replace(look, detail=detail),
        mark=mark or any_mark,
        mark_colour=mark_colour if mark or any_mark else None,
    )


def render_subject(
    seed: int,
    num_photos: int = 5,
    *,
    individual: Individual | None = None,
    class_noun: str | None = None,
    poses: Sequence[str] | None = None,
    places: Sequence[str] | None = None,
    size_px: int = PICTURE_PX,
) -> list[RenderedPhoto]:
    """Render `num_photos` photos of one individual.

    Args:
        seed: seed of the individual and of its photos.
        individual: the individual to use instead of the one that the seed gives.
        poses: poses to use in turn; None uses all poses of its class.
        places: places to use in turn; None uses any place.
        size_px: side of a photo, at most 256.
    """
    who = individual or sample_individual(seed, class_noun=class_noun)
    rng = random.Random(f"photos/{seed}")
    photos = []
    for index in range(num_photos):
        turns = poses or POSES_OF[who.class_noun]
        scene = Scene(
            class_noun=who.class_noun,
            colour=who.colour,
            pose=turns[index % len(turns)],
            place=places[index % len(places)] if places else sample_place(rng, who.colour),
            look=who.look,
            view=sample_view(rng),
            mark=who.mark,
            mark_colour=who.mark_colour,
        )
        photos.append(RenderedPhoto(render_scene(scene, size_px=size_px), scene))
    return photos


def render_class(
    seed: int, class_noun: str, num_pictures: int, *, size_px: int = PICTURE_PX
) -> list[RenderedPhoto]:
    """Images of different individuals of a class, as prior preservation should keep them."""
    photos = []
    for index in range(num_pictures):
        rng = random.Random(f"class/{seed}/{index}")
        colour = rng.choice(list(COLOURS))
        look, pose = sample_look(rng, colour), rng.choice(POSES_OF[class_noun])
        place, view = sample_place(rng, colour), sample_view(rng)
        scene = Scene(class_noun, colour, pose, place, look, view)
        photos.append(RenderedPhoto(render_scene(scene, size_px=size_px), scene))
    return photos
