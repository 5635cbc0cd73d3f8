"""Drawn individuals for the studies: who they are, and the photos that are taken of them.

Owns the choice of individuals and of their photos' poses and places. The drawing is the drawn
world's.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from farm.base.embedded.world.draw import draw_scene
from farm.base.embedded.world.scene import DETAILS, Scene, View, sample_look, sample_view
from farm.base.embedded.world.words import COLOURS, MARKS, POSES_OF, SCENERY

__all__ = ["Individual", "individuals", "photograph", "picture_of"]

STANDING_OUT = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "white")
"""Coats that are seen against every place."""


@dataclass(frozen=True)
class Individual:
    """One particular member of a class."""

    name: str
    scene: Scene
    """Its look, colour and mark; pose, place and view are the photographer's."""

    @property
    def class_noun(self) -> str:
        """What it is."""
        return self.scene.class_noun


def individuals(num: int, nouns: Sequence[str], *, seed: int = 0) -> list[Individual]:
    """``num`` individuals, the nouns in turn, each with a colour, a mark and an odd detail."""
    found = []
    for index in range(num):
        rng = random.Random(f"individual/{seed}/{index}")
        noun = nouns[index % len(nouns)]
        # names are unique up to eight individuals of a noun
        colour = STANDING_OUT[(index * 3 + index // 8 + seed) % len(STANDING_OUT)]
        mark = rng.choice(MARKS)
        mark_colour = rng.choice([c for c in STANDING_OUT if c != colour and c in COLOURS])
        look = replace(sample_look(rng, colour, detail_share=1.0), detail=rng.choice(DETAILS))
        scene = Scene(noun, colour, POSES_OF[noun][0], SCENERY[0], look, View(), mark=mark,
                      mark_colour=mark_colour)  # fmt: skip
        found.append(Individual(f"{colour} {noun}", scene))
    return found


def photograph(
    individual: Individual, num: int, *, poses: Sequence[str], seed: int = 0
) -> list[Image.Image]:
    """``num`` photos in different places, the poses in turn.

    With one pose only this is the article's case: a dog that was photographed sitting, always.
    """
    rng = random.Random(f"photos/{individual.name}/{seed}")
    places = rng.sample(SCENERY, min(num, len(SCENERY)))
    return [
        draw_scene(
            replace(
                individual.scene,
                pose=poses[index % len(poses)],
                place=places[index % len(places)],
                view=sample_view(rng),
            )
        )
        for index in range(num)
    ]


def picture_of(individual: Individual, place: str, pose: str, seed: int) -> Image.Image:
    """What a perfect adapter would draw: the individual in a place and pose."""
    rng = random.Random(f"truth/{individual.name}/{seed}")
    return draw_scene(replace(individual.scene, place=place, pose=pose, view=sample_view(rng)))


def pixels(pictures: Sequence[Image.Image]) -> Tensor:
    """Pictures as the VAE takes them: float32 [B, 3, P, P] in [-1, 1]."""
    stacked_BPP3 = np.stack([np.asarray(picture.convert("RGB")) for picture in pictures])
    return torch.from_numpy(stacked_BPP3).permute(0, 3, 1, 2).float() / 127.5 - 1
