"""Subjects: one fixed individual of the drawn world, photographed many times.

Owns the individual (its colour, build, marks, and an odd detail that no caption describes) and its
photos, each with its scene, so that pose, place and the rest are known. The photos are demos,
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
    """Who the subject is: what every photo of it shares."""

    class_noun: str
    colour: str
    look: Look
    mark: str | None = None
    mark_colour: str | None = None


@dataclass(frozen=True)
class RenderedPhoto:
    """One photo of a subject and everything that it shows."""

    picture: Image.Image
    scene: Scene


def sample_individual(
    seed: int,
    *,
    class_noun: str | None = None,
    colour: str | None = None,
    mark: str | None = None,
) -> Individual:
    """Draw the individual of a seed; what is given is kept.

    Every individual has an odd detail. Two in three bear a mark.
    """
    rng = random.Random(f"individual/{seed}")
    drawn_noun, drawn_colour = rng.choice(CLASS_NOUNS), rng.choice(list(COLOURS))
    noun, main = class_noun or drawn_noun, colour or drawn_colour
    look = sample_look(rng, main, detail_share=1.0)
    detail = rng.choice(DETAILS)
    drawn_mark = rng.choice(MARKS) if rng.random() < 0.67 else None
    mark_colour = sample_second_colour(rng, main)
    return Individual(
        class_noun=noun,
        colour=main,
        look=replace(look, detail=detail),
        mark=mark or drawn_mark,
        mark_colour=mark_colour if mark or drawn_mark else None,
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
    """Photograph one individual `num_photos` times.

    Args:
        seed: of the individual, and of how it is photographed.
        individual: whom to photograph, instead of the seed's own.
        poses: the poses to take turns with; one pose alone makes a subject that is always seen
        alike. None: all of its
            class.
        places: the places to take turns with. None: anywhere.
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
    """Pictures of ever different individuals of a class, as `a photo of a cat` should bring
    them.
    """
    photos = []
    for index in range(num_pictures):
        rng = random.Random(f"class/{seed}/{index}")
        colour = rng.choice(list(COLOURS))
        look, pose = sample_look(rng, colour), rng.choice(POSES_OF[class_noun])
        place, view = sample_place(rng, colour), sample_view(rng)
        scene = Scene(class_noun, colour, pose, place, look, view)
        photos.append(RenderedPhoto(render_scene(scene, size_px=size_px), scene))
    return photos
