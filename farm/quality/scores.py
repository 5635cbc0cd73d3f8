"""The scores, computed from embeddings of photos, generated images and prompts.

Owns the formulas, each with its source. Pure functions: which images are generated and which model
embeds them is decided in ``card.py`` and ``scorer.py``.

Legend: G generated images, P photos of the subject, K texts, D width. All vectors are unit vectors,
so a dot product is a cosine.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from farm.quality.intervals import Indices, ScoreEstimate, estimate, estimate_of

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
    """Each image's mean cosine with all photos."""
    return [float(value) for value in (pictures_GD @ photos_PD.T).mean(1)]


def fidelity(pictures_GD: Tensor, photos_PD: Tensor, seed: int = 0) -> ScoreEstimate | None:
    """Subject fidelity: mean pairwise cosine of generated images and photos (DreamBooth §4.1).

    With a DINO scorer this is the paper's DINO score, with CLIP its CLIP-I. Higher is better.
    """
    return estimate(likeness(pictures_GD, photos_PD), seed=seed)


def preservation(
    class_pictures_GD: Tensor, photos_PD: Tensor, seed: int = 0
) -> ScoreEstimate | None:
    """PRES: similarity of class images to the subject (DreamBooth §4.3, Table 3).

    Lower is better: a high value means that every dog now looks like this dog.
    """
    return estimate(likeness(class_pictures_GD, photos_PD), seed=seed)


def prompt_fidelity(pictures_GD: Tensor, texts_GD: Tensor, seed: int = 0) -> ScoreEstimate | None:
    """CLIP-T: cosine of each image and its prompt without the identifier. Higher is better."""
    return estimate([float(value) for value in (pictures_GD * texts_GD).sum(1)], seed=seed)


def diversity(pictures_GD: Tensor, seed: int = 0) -> ScoreEstimate | None:
    """DIV: mean pairwise distance among images of one prompt. Higher is better.

    The paper measures distance with LPIPS; here it is 1 − cosine in the scorer's space, which
    needs no third network. Pairs of a resampled image with itself are left out, because they would
    bias the interval towards zero.
    """
    distance_GG = 1 - (pictures_GD @ pictures_GD.T).double().numpy()

    def mean_distance(rows: Indices) -> float:
        distinct = rows[:, None] != rows[None, :]
        return float(distance_GG[np.ix_(rows, rows)][distinct].mean()) if distinct.any() else np.nan

    return estimate_of(mean_distance, len(pictures_GD), seed=seed)


def drift(base_GD: Tensor, tuned_GD: Tensor, seed: int = 0) -> ScoreEstimate | None:
    """Drift: distance between base and adapter images of the same seed and unrelated prompt.

    Lower is better; 0 means that the adapter does not affect unrelated prompts (the measure of
    peft's image-generation benchmark).
    """
    return estimate([float(value) for value in 1 - (base_GD * tuned_GD).sum(1)], seed=seed)


def copying(pictures_GD: Tensor, photos_PD: Tensor, seed: int = 0) -> ScoreEstimate | None:
    """Copying: each image's cosine with its nearest photo. Near 1, the photos are copied."""
    return estimate([float(value) for value in (pictures_GD @ photos_PD.T).amax(1)], seed=seed)


@dataclass(frozen=True)
class PhotoLikeness:
    """Similarity of the photos to each other, the reference for fidelity and copying."""

    mean: float
    """Mean cosine of two different photos; the paper's "real images" row."""
    nearest: float
    """Mean cosine of a photo and its most similar photo."""


def photo_likeness(photos_PD: Tensor) -> PhotoLikeness | None:
    """Similarity of the photos to each other; None for a single photo."""
    num = len(photos_PD)
    if num < 2:
        return None
    cosine_PP = photos_PD @ photos_PD.T
    others = ~torch.eye(num, dtype=torch.bool)
    nearest = cosine_PP.masked_fill(~others, -1).amax(1).mean()
    return PhotoLikeness(float(cosine_PP[others].mean()), float(nearest))


@dataclass(frozen=True)
class Poses:
    """The poses in a set of images."""

    counts: dict[str, int]
    entropy_bits: float
    """0 if all images have one pose; log2 of the number of poses if they are equally frequent."""
    effective: float
    """2 to the entropy: the number of equally frequent poses with this entropy."""
    num: int


def pose_labels(pictures_GD: Tensor, texts_KD: Tensor) -> list[int]:
    """Each image's pose: the most similar of texts that differ only in the pose."""
    return [int(label) for label in (pictures_GD @ texts_KD.T).argmax(1)]


def poses(labels: Sequence[int], names: Sequence[str]) -> Poses:
    """The distribution of poses.

    Args:
        labels: each image's pose as an index into ``names``.
    """
    counts = {name: list(labels).count(index) for index, name in enumerate(names)}
    entropy = _entropy_bits(list(counts.values()))
    return Poses(counts, entropy, 2.0**entropy, len(labels))


def _entropy_bits(counts: Sequence[int]) -> float:
    total = sum(counts)
    shares = [count / total for count in counts if count]
    return abs(-sum(share * math.log2(share) for share in shares))
