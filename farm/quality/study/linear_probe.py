"""A linear probe on a scorer's embedding: ridge regression onto the indicators of given classes.

Legend: G images, D width, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["LinearProbe", "fit_probe"]

RIDGE = 0.02
"""Regularisation of the probe; small, because unit vectors differ little."""


@dataclass(frozen=True)
class LinearProbe:
    """Assigns embeddings to classes."""

    mean_D: Tensor
    weight_DK: Tensor

    def __call__(self, pictures_GD: Tensor) -> list[int]:
        """The class of each image."""
        return [int(k) for k in ((pictures_GD - self.mean_D) @ self.weight_DK).argmax(1)]


def fit_probe(by_class: Sequence[Tensor]) -> LinearProbe:
    """Fit a probe to the embeddings of each class."""
    vectors_GD = torch.cat(list(by_class)).double()
    labels_G = torch.cat([torch.full((len(part),), k) for k, part in enumerate(by_class)])
    targets_GK = torch.nn.functional.one_hot(labels_G, len(by_class)).double()
    mean_D = vectors_GD.mean(0)
    centred_GD = vectors_GD - mean_D
    square_DD = centred_GD.T @ centred_GD + RIDGE * torch.eye(len(mean_D), dtype=torch.float64)
    weight_DK = torch.linalg.solve(square_DD, centred_GD.T @ (targets_GK - targets_GK.mean(0)))
    return LinearProbe(mean_D.float(), weight_DK.float())
