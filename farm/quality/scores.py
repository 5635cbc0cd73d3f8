"""The scores: what is made of embeddings of photos, of generated pictures and of prompts.

Owns the formulas, each with its source. Pure: vectors in, numbers out; which pictures are drawn
and with which model they are embedded is told elsewhere (``card.py``, ``scorer.py``).

Legend: G generated pictures, P photos of the subject, K texts, D width. All vectors are unit
vectors, so a dot product is a cosine.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from farm.quality.intervals import Estimate, Indices, estimate, estimate_of

__all__ = [
    "Poses",
    "copying",
    "diversity",
    "drift",
    "fidelity",
    "likeness",
    "photo_likeness",
    "pose_labels",
    "poses",
    "preservation",
    "prompt_fidelity",
]


def likeness(pictures_GD: Tensor, photos_PD: Tensor) -> list[float]:
    """Each picture's mean cosine with all photos."""
    return [float(value) for value in (pictures_GD @ photos_PD.T).mean(1)]


def fidelity(pictures_GD: Tensor, photos_PD: Tensor, seed: int = 0) -> Estimate | None:
    """Subject fidelity: mean pairwise cosine of generated and real (DreamBooth §4.1).

    With a DINO scorer this is the paper's DINO score, with CLIP its CLIP-I. Higher is better.
    """
    return estimate(likeness(pictures_GD, photos_PD), seed=seed)


def preservation(class_pictures_GD: Tensor, photos_PD: Tensor, seed: int = 0) -> Estimate | None:
    """PRES: likeness of pictures of the bare class to the subject (DreamBooth §4.3, Table 3).

    Lower is better: a high value means that every dog has become this dog.
    """
    return estimate(likeness(class_pictures_GD, photos_PD), seed=seed)


def prompt_fidelity(pictures_GD: Tensor, texts_GD: Tensor, seed: int = 0) -> Estimate | None:
    """CLIP-T: cosine of each picture with its own prompt, identifier left out. Higher is better."""
    return estimate([float(value) for value in (pictures_GD * texts_GD).sum(1)], seed=seed)


def diversity(pictures_GD: Tensor, seed: int = 0) -> Estimate | None:
    """DIV: mean pairwise distance among pictures of one prompt. Higher is better.

    The paper measures distance with LPIPS; here it is 1 − cosine in the scorer's space, which
    needs no third network. Pairs of a resampled picture with itself are left out: they would pull
    the interval towards zero.
    """
    distance_GG = 1 - (pictures_GD @ pictures_GD.T).double().numpy()

    def mean_distance(rows: Indices) -> float:
        distinct = rows[:, None] != rows[None, :]
        return float(distance_GG[np.ix_(rows, rows)][distinct].mean()) if distinct.any() else np.nan

    return estimate_of(mean_distance, len(pictures_GD), seed=seed)


def drift(base_GD: Tensor, tuned_GD: Tensor, seed: int = 0) -> Estimate | None:
    """Drift: distance between base and adapter pictures of one seed and one unrelated prompt.

    Lower is better; 0 means the adapter changed nothing that it was not asked to (the measure of
    peft's image-generation benchmark).
    """
    return estimate([float(value) for value in 1 - (base_GD * tuned_GD).sum(1)], seed=seed)


def copying(pictures_GD: Tensor, photos_PD: Tensor, seed: int = 0) -> Estimate | None:
    """Copying: each picture's cosine with its nearest photo. Near 1, the photos are repeated."""
    return estimate([float(value) for value in (pictures_GD @ photos_PD.T).amax(1)], seed=seed)


@dataclass(frozen=True)
class PhotoLikeness:
    """How alike the photos are among themselves: the yardstick for fidelity and copying."""

    mean: float
    """Mean cosine of two different photos; the paper's "real images" row."""
    nearest: float
    """Mean cosine of a photo with the one most like it."""


def photo_likeness(photos_PD: Tensor) -> PhotoLikeness | None:
    """The photos among themselves; None for a single photo."""
    num = len(photos_PD)
    if num < 2:
        return None
    cosine_PP = photos_PD @ photos_PD.T
    others = ~torch.eye(num, dtype=torch.bool)
    nearest = cosine_PP.masked_fill(~others, -1).amax(1).mean()
    return PhotoLikeness(float(cosine_PP[others].mean()), float(nearest))


@dataclass(frozen=True)
class Poses:
    """Which of the known poses a set of pictures shows."""

    counts: dict[str, int]
    entropy_bits: float
    """0 when all pictures share one pose; log2 of the number of poses when they are even."""
    effective: float
    """2 to the entropy: as many even poses would have this entropy."""
    num: int


def pose_labels(pictures_GD: Tensor, texts_KD: Tensor) -> list[int]:
    """Each picture's pose: the text most like it, of texts that differ in the pose alone."""
    return [int(label) for label in (pictures_GD @ texts_KD.T).argmax(1)]


def poses(labels: Sequence[int], names: Sequence[str]) -> Poses:
    """The spread of poses.

    Args:
        labels: each picture's pose as an index of ``names``.
    """
    counts = {name: list(labels).count(index) for index, name in enumerate(names)}
    entropy = _entropy_bits(list(counts.values()))
    return Poses(counts, entropy, 2.0**entropy, len(labels))


def _entropy_bits(counts: Sequence[int]) -> float:
    total = sum(counts)
    shares = [count / total for count in counts if count]
    return abs(-sum(share * math.log2(share) for share in shares))
