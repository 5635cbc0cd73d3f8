"""Subjects of the synthetic world for the studies, and their photos.

Owns the choice of individuals and of their photos' poses and places; the synthetic world renders
them.
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

__all__ = ["RenderedSubject", "pixels", "render_photos", "sample_subjects"]

STANDING_OUT = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "white")
"""Colours that are visible in every place."""


@dataclass(frozen=True)
class RenderedSubject:
    """One particular member of a class."""

    name: str
    individual: Individual

    @property
    def class_noun(self) -> str:
        """The individual's class."""
        return self.individual.class_noun


def sample_subjects(num: int, nouns: Sequence[str], *, seed: int = 0) -> list[RenderedSubject]:
    """``num`` subjects, with the nouns in turn, each with a colour, a mark and a detail."""
    found = []
    for index in range(num):
        noun = nouns[index % len(nouns)]
        # names are unique for up to eight subjects per noun
        colour = STANDING_OUT[(index * 3 + index // 8 + seed) % len(STANDING_OUT)]
        individual = sample_individual(
            derive_seed("sitter", seed, index),
            class_noun=noun,
            colour=colour,
            mark=MARKS[index % len(MARKS)],
        )
        found.append(RenderedSubject(f"{colour} {noun}", individual))
    return found


def render_photos(
    subject: RenderedSubject, num: int, *, poses: Sequence[str], seed: int = 0
) -> list[Image.Image]:
    """``num`` photos, each in a different place, with the poses in turn.

    A single pose reproduces the article's case: all photos show a sitting dog.
    """
    own_seed = derive_seed("photos", subject.name, seed)
    places = random.Random(own_seed).sample(SCENERY, min(num, len(SCENERY)))
    photos = render_subject(
        own_seed, num, individual=subject.individual, poses=poses, places=places
    )
    return [photo.picture for photo in photos]


def pixels(pictures: Sequence[Image.Image]) -> Tensor:
    """Images as input of the VAE: float32 [B, 3, P, P] in [-1, 1]."""
    stacked_BPP3 = np.stack([np.asarray(picture.convert("RGB")) for picture in pictures])
    return torch.from_numpy(stacked_BPP3).permute(0, 3, 1, 2).float() / 127.5 - 1
