"""One job's data for the slot trainer: cached latents, cached prompts, a recipe.

Owns the values and their checks. ``farm.training.lane.encode`` creates them from photos.

Legend: N cached crops, M prior images, C H W latent; the axis of length 2 holds a
latent's mean and standard deviation.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from farm.base.conditioning import Conditioning, TokenIds
from farm.recipe import Recipe
from farm.training.plan.shape import LaneShape

__all__ = ["Moments", "PriorSet", "TrainingJob", "moment_rows"]

Moments = Tensor | np.ndarray[tuple[int, ...], np.dtype[np.floating]]
"""[N, 2, C, H, W] on the CPU; a read-only view of shared memory is fine."""


@dataclass(frozen=True)
class PriorSet:
    """Class images as the trainer needs them; many jobs share one."""

    moments: Moments
    """[M, 2, C, H, W]."""
    conditioning: Conditioning
    """One row, the class prompt, or M rows."""
    tokens: TokenIds | None = None
    """1 or M rows; only for text-encoder adapters."""
    frames: Tensor | None = None
    """int64 [M, 6], for bases that read them; None means uncropped images."""


@dataclass(frozen=True)
class TrainingJob:
    """Everything one slot needs to train one subject."""

    key: str
    recipe: Recipe
    seed: int
    """Root of the job's random streams; usually the recipe's seed."""
    instance_moments: Moments
    """[N, 2, C, H, W]: several crops per photo, in any order."""
    instance_conditioning: Conditioning
    """One row, the instance prompt, or N rows, a caption for each crop."""
    instance_tokens: TokenIds | None = None
    """1 or N rows; only for text-encoder adapters."""
    prior: PriorSet | None = None
    instance_frames: Tensor | None = None
    """int64 [N, 6], how each crop was cut, for bases that read it; see ``whole_frames``."""

    def __post_init__(self) -> None:
        if self.num_instances < 1:
            raise ValueError(f"job {self.key} has no instance latents")
        if self.recipe.uses_prior and (self.prior is None or len(self.prior.moments) < 1):
            raise ValueError(f"job {self.key} trains with prior preservation but has no prior set")
        _check_rows("instance prompts", len(self.instance_conditioning), self.num_instances)
        if self.recipe.text_encoder_modules:
            self._check_tokens()

    def _check_tokens(self) -> None:
        if self.instance_tokens is None:
            raise ValueError(f"job {self.key} adapts the text encoder but has no tokens")
        _check_rows("instance tokens", len(self.instance_tokens), self.num_instances)
        if self.recipe.uses_prior and (self.prior is None or self.prior.tokens is None):
            raise ValueError(f"job {self.key} adapts the text encoder; its prior has no tokens")

    def check_fits(self, shape: LaneShape, latent_shape: tuple[int, int, int]) -> None:
        """Check that a trainer of this shape can train the job.

        Raises:
            ValueError: naming what differs.
        """
        limits = (
            ("rank", self.recipe.rank, shape.max_rank),
            ("instance_rows", self.instance_rows, shape.instance_rows),
            ("prior_rows", self.prior_rows, shape.prior_rows),
        )
        for name, wanted, most in limits:
            if wanted > most:
                raise ValueError(f"job {self.key} needs {name} {wanted}; the trainer has {most}")
        if set(self.recipe.target_modules) != set(shape.target_modules) or set(
            self.recipe.text_encoder_modules
        ) != set(shape.text_encoder_modules):
            raise ValueError(f"job {self.key} adapts other modules than the trainer")
        moments = [self.instance_moments]
        if self.prior is not None and self.prior_rows:
            moments.append(self.prior.moments)
        for tensor in moments:
            if tuple(tensor.shape[1:]) != (2, *latent_shape):
                raise ValueError(
                    f"job {self.key} has latents of shape {tuple(tensor.shape[1:])}; "
                    f"the trainer has {(2, *latent_shape)}"
                )

    @property
    def num_instances(self) -> int:
        """N."""
        return len(self.instance_moments)

    @property
    def num_priors(self) -> int:
        """M; 0 if the recipe uses no prior."""
        return len(self.prior.moments) if self.prior is not None and self.recipe.uses_prior else 0

    @property
    def instance_rows(self) -> int:
        """Photo rows per step."""
        return self.recipe.instance_rows

    @property
    def prior_rows(self) -> int:
        """Class rows per step; 0 if the recipe uses no prior."""
        return self.recipe.prior_rows if self.recipe.uses_prior else 0


def moment_rows(moments: Moments, indices: list[int]) -> Tensor:
    """The chosen latents' moments: a float32 copy [rows, 2, C, H, W] on the CPU."""
    if isinstance(moments, np.ndarray):
        return torch.from_numpy(moments[indices].astype(np.float32))
    return moments[indices].float()


def _check_rows(what: str, found: int, wanted: int) -> None:
    if found not in (1, wanted):
        raise ValueError(f"{found} {what} for {wanted} latents; give one, or one for each")
