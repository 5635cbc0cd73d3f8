"""Drawn individuals for the studies: who they are, and the photos that are taken of them.

Owns the choice of individuals and of their photos' poses and places; drawing is the drawn world's.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from farm.base.embedded.world import SCENERY, Individual, render_subject, sample_individual
from farm.base.embedded.world.words import MARKS
from farm.keys import derive_seed

__all__ = ["Sitter", "photograph", "pixels", "sitters"]

STANDING_OUT = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "white")
"""Coats that are seen against every place."""


@dataclass(frozen=True)
class Sitter:
    """One particular member of a class, who sits for its photos."""

    name: str
    individual: Individual

    @property
    def class_noun(self) -> str:
        """What it is."""
        return self.individual.class_noun


def sitters(num: int, nouns: Sequence[str], *, seed: int = 0) -> list[Sitter]:
    """``num`` sitters, the nouns in turn, each with a colour, a mark and an odd detail."""
    found = []
    for index in range(num):
        noun = nouns[index % len(nouns)]
        # names are unique up to eight of a noun
        colour = STANDING_OUT[(index * 3 + index // 8 + seed) % len(STANDING_OUT)]
        individual = sample_individual(
            derive_seed("sitter", seed, index),
            class_noun=noun,
            colour=colour,
            mark=MARKS[index % len(MARKS)],
        )
        found.append(Sitter(f"{colour} {noun}", individual))
    return found


def photograph(
    sitter: Sitter, num: int, *, poses: Sequence[str], seed: int = 0
) -> list[Image.Image]:
    """``num`` photos, each in another place, the poses in turn.

    With one pose only this is the article's case: a dog that was photographed sitting, always.
    """
    own_seed = derive_seed("photos", sitter.name, seed)
    places = random.Random(own_seed).sample(SCENERY, min(num, len(SCENERY)))
    photos = render_subject(own_seed, num, individual=sitter.individual, poses=poses, places=places)
    return [photo.picture for photo in photos]


def pixels(pictures: Sequence[Image.Image]) -> Tensor:
    """Pictures as the VAE takes them: float32 [B, 3, P, P] in [-1, 1]."""
    stacked_BPP3 = np.stack([np.asarray(picture.convert("RGB")) for picture in pictures])
    return torch.from_numpy(stacked_BPP3).permute(0, 3, 1, 2).float() / 127.5 - 1
