"""The opening image of the README: photos of subjects beside images that their adapters generate.

Owns the choice of the shown images. Of several seeds for each prompt, it shows the image on which
the mark reader finds the subject's mark, and of those the one most similar to the photos; how many
of all images have the mark is reported beside it.

Legend: G images, P pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np
from PIL import Image

from farm.base.embedded.marks.network import MarkReader, load_mark_reader, read_marks
from farm.base.embedded.world.subjects import Individual
from farm.base.embedded.world.words import POSES_OF, SCENERY
from farm.keys import derive_seed
from farm.quality.card import pillow
from farm.quality.evaluation_images import ImageRow, generate_rows
from farm.quality.protocol import ScoringBudget
from farm.quality.scores import likeness
from farm.quality.study.bench import Bench
from farm.quality.study.grids import Cell, labelled_grid
from farm.quality.study.rendered_subjects import RenderedSubject

__all__ = ["Opening", "generate_opening"]

PLACES = tuple(SCENERY[index] for index in (0, 2, 5, 6, 9))
"""Places that look different from each other."""
NUM_POSES = 2
"""Poses that the prompts name in turn: the first ones, in which the base's figures are whole."""
READER_PX = 64


@dataclass(frozen=True)
class Opening:
    """The sheet, and how often the mark is read."""

    sheet: Image.Image
    candidates: int
    """Images generated for each image shown."""
    shown_with_mark: float
    """Share of the shown images with the subject's mark, its kind and its colour."""
    all_with_mark: float
    """The same of all generated images."""

    def numbers(self) -> dict[str, float]:
        """Without the sheet, for the results."""
        return {
            "candidates": self.candidates,
            "shown_with_mark": self.shown_with_mark,
            "all_with_mark": self.all_with_mark,
        }


def generate_opening(
    bench: Bench,
    subjects: Sequence[RenderedSubject],
    photos: Mapping[str, Sequence[Image.Image]],
    *,
    candidates: int,
    budget: ScoringBudget,
) -> Opening:
    """Generate and choose the images of every subject.

    Args:
        photos: by class noun, which is also the trainee's key.
        candidates: seeds per prompt.
    """
    reader = load_mark_reader()
    rows, shown, every = [], [], []
    for subject in subjects:
        noun = subject.class_noun
        images = [
            ImageRow(bench.slots[noun], prompt, derive_seed("opening", prompt, index))
            for prompt in _prompts(noun)
            for index in range(candidates)
        ]
        pictures_GPP3 = generate_rows(bench.base, bench.trainer.bank, images, budget)
        pictures = pillow(pictures_GPP3)
        marks = _marks(reader, pictures, subject.individual)
        alike = likeness(
            bench.scorer.embed_images(pictures_GPP3), bench.scorer.embed_images(photos[noun])
        )
        chosen = [
            max(range(start, start + candidates), key=lambda one: marks[one] + alike[one])
            for start in range(0, len(pictures), candidates)
        ]
        shown += [marks[one] == 1 for one in chosen]
        every += [mark == 1 for mark in marks]
        rows.append(
            Cell(f"one {noun}", [*photos[noun][:2], None, *(pictures[one] for one in chosen)])
        )
    headings = ["photo", "photo", "", *PLACES]
    sheet = labelled_grid(rows, headings, cell_px=128)
    return Opening(sheet, candidates, round(fmean(shown), 4), round(fmean(every), 4))


def _prompts(noun: str) -> list[str]:
    poses = POSES_OF[noun][:NUM_POSES]
    return [
        f"a sks {noun} {poses[index % len(poses)]} {place}" for index, place in enumerate(PLACES)
    ]


def _marks(
    reader: MarkReader, pictures: Sequence[Image.Image], individual: Individual
) -> list[float]:
    """Of each image: 1 with the individual's mark, 0.5 with its kind in another colour, else 0."""
    side = (READER_PX, READER_PX)
    found = read_marks(reader, np.stack([np.asarray(one.resize(side)) for one in pictures]))
    return [
        0.0 if one.kind != individual.mark else 1.0 if one.colour == individual.mark_colour else 0.5
        for one in found
    ]
