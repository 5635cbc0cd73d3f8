"""How to train one subject: the recipe, frozen and validated, with the reason for each number.

Owns the fields, their ranges and the presets. Lies on the ground floor because the manifest
names recipes and the trainer obeys them. The training code reads every field; none is decoration.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

__all__ = ["BASE_RECIPES", "PRESETS", "WIDE_MODULES", "EarlyStop", "PresetName", "Recipe"]

LearningRateSchedule = Literal["constant", "cosine", "linear"]
PresetName = Literal["object", "live", "style"]
"""``object``: things; ``live``: people and animals; ``style``: a look rather than a thing."""


class EarlyStop(BaseModel):
    """Stop a subject when its evaluation loss on fixed noise no longer falls (DVAR, NeurIPS'23)."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    every_steps: int = Field(25, ge=1, le=10_000)
    """Steps between two evaluations; each costs about one forward pass of all slots."""
    patience: int = Field(4, ge=1, le=1_000)
    """Evaluations without improvement before the slot is freed."""
    min_steps: int = Field(100, ge=0, le=100_000)
    """Steps before which no subject stops: the loss of the first steps is noise."""
    min_delta: float = Field(0.01, ge=0, lt=1)
    """Relative fall of the loss that counts as an improvement."""


class Recipe(BaseModel):
    """One subject's training, whole. Two equal recipes on equal inputs give equal adapters."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    steps: int = Field(800, ge=1, le=100_000)
    """Optimiser steps. 800 with prior preservation is the diffusers DreamBooth recipe for faces;
    objects need about half."""
    instance_rows: int = Field(1, ge=1, le=64)
    """Photo samples per step. Small adapters tolerate large batches badly; more slots, not more
    rows, fill a GPU."""
    prior_rows: int = Field(1, ge=0, le=64)
    """Class samples per step; 0 trains without prior preservation."""
    prior_weight: float = Field(1.0, ge=0, le=100)
    """λ, the weight of the prior loss (DreamBooth, eq. 2: 1)."""
    num_prior_images: int = Field(200, ge=0, le=100_000)
    """Class images drawn by the untouched base, shared by all subjects of the class (the paper's
    order: 200 × a few photos; diffusers says 200 to 300)."""
    rank: int = Field(4, ge=1, le=256)
    """LoRA rank; 4 is diffusers' default, about 3 MB on Stable Diffusion v1-5."""
    alpha: float | None = Field(None, gt=0, le=1024)
    """LoRA scale numerator; the update is scaled by alpha/rank. None means alpha = rank."""
    learning_rate: float = Field(1e-4, gt=0, le=1)
    """AdamW step size; 1e-4 constant is the diffusers README recipe."""
    learning_rate_schedule: LearningRateSchedule = "constant"
    """Shape after warm-up; cosine and linear end at zero with the last step."""
    warmup_steps: int = Field(0, ge=0, le=100_000)
    """Steps of linear warm-up from zero."""
    adam_beta1: float = Field(0.9, ge=0, lt=1)
    """AdamW's decay of the first moment."""
    adam_beta2: float = Field(0.999, ge=0, lt=1)
    """AdamW's decay of the second moment."""
    adam_epsilon: float = Field(1e-8, gt=0, le=1)
    """AdamW's denominator floor."""
    weight_decay: float = Field(1e-2, ge=0, le=1)
    """AdamW's decoupled weight decay (the diffusers scripts' default)."""
    max_grad_norm: float = Field(1.0, gt=0, le=1e6)
    """Norm to which this slot's gradient is clipped (the diffusers scripts' default)."""
    snr_gamma: float | None = Field(None, gt=0, le=1e3)
    """Min-SNR weighting (Hang et al. 2023; 5 is their value). None weighs all timesteps alike."""
    noise_offset: float = Field(0.0, ge=0, le=1)
    """Strength of a per-channel offset of the noise; helps very dark and very bright pictures."""
    resolution_px: int | None = Field(None, ge=32, le=4096)
    """Side of the square crops; None takes the base's own."""
    crops_per_photo: int = Field(4, ge=1, le=64)
    """Crops cached per photo; 1 is the centre crop alone."""
    flip: bool = True
    """Whether mirrored crops are cached too; switch off where text or one-sided marks matter."""
    target_modules: tuple[str, ...] = ("to_q", "to_k", "to_v", "to_out.0")
    """Endings of the denoiser's module names that get an adapter; attention by default."""
    text_encoder_modules: tuple[str, ...] = ()
    """The same for the text encoder, such as ``("q_proj", "k_proj", "v_proj", "out_proj")``."""
    checkpoint_every: int = Field(100, ge=1, le=100_000)
    """Steps between two resumable checkpoints: what a lost lane costs at the most."""
    sample_every: int = Field(0, ge=0, le=100_000)
    """Steps between two sets of sample pictures; 0 draws them at the end only."""
    early_stop: EarlyStop | None = None
    """Stop on the evaluation loss; None trains all steps."""
    keep_best: bool = False
    """Commit the checkpoint with the best score rather than the last one."""
    seed: int = Field(0, ge=0, lt=2**63)
    """Root of every random stream of the job."""

    @model_validator(mode="after")
    def _prior_is_whole(self) -> Recipe:
        if self.prior_rows and not self.num_prior_images:
            raise ValueError(
                "num_prior_images must be positive while prior_rows is; "
                "set prior_rows to 0 to train without prior preservation"
            )
        if self.warmup_steps >= self.steps and self.warmup_steps:
            raise ValueError("warmup_steps must be smaller than steps")
        return self

    @property
    def scale(self) -> float:
        """The factor on the adapter's output, alpha over rank."""
        return (self.alpha if self.alpha is not None else float(self.rank)) / self.rank

    @property
    def uses_prior(self) -> bool:
        """Whether the job needs a prior set."""
        return self.prior_rows > 0 and self.prior_weight > 0


PRESETS: dict[PresetName, dict[str, object]] = {
    # diffusers README: 500 steps at 1e-4 without prior; HF's DreamBooth study: prior matters little
    # for things, so it is kept at a light weight to hold the class.
    "object": {"steps": 500, "learning_rate": 1e-4, "prior_weight": 0.5, "rank": 4},
    # diffusers README, prior recipe: 200 class images, weight 1, 800 steps; faces need the most.
    "live": {"steps": 800, "learning_rate": 1e-4, "prior_weight": 1.0, "rank": 8},
    # HF advanced DreamBooth: styles want rank, min-SNR and no class to preserve.
    "style": {
        "steps": 1000,
        "learning_rate": 1e-4,
        "prior_rows": 0,
        "num_prior_images": 0,
        "rank": 16,
        "snr_gamma": 5.0,
        "flip": True,
    },
}
"""Starting points by kind of subject; a manifest's own fields win."""

WIDE_MODULES = (
    "to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2", "proj_in", "proj_out",
    "conv1", "conv2",
)  # fmt: skip
"""Attention, feed-forward layers and convolutions of a UNet: what small bases need, where
attention alone takes on a subject's colours but hardly its marks and shape."""

BASE_RECIPES: dict[str, dict[str, object]] = {
    # measured on drawn subjects: 1e-4 in attention leaves this base as it was
    "embedded": {
        "learning_rate": 2e-3,
        "learning_rate_schedule": "cosine",
        "rank": 8,
        "target_modules": WIDE_MODULES,
        # the article's study holds its classes with 48; 200 take four times longer to generate
        # than 60 steps of training take
        "num_prior_images": 48,
    },
}
"""What a base needs other than Stable Diffusion does, by its name; above the presets, which are
made for Stable Diffusion, and below every field that a manifest writes."""
