"""Train the embedded base from scratch: one command, resumable, deterministic in its seed.

Owns the order of the stages and the location of their results. A stage whose result is in the
working folder is skipped, and an interrupted stage resumes from its last checkpoint. Stages:
tokenizer; album of rendered images; scorer; autoencoder; latents; denoiser; then, with the denoiser
unchanged, further training of the autoencoder's decoder and of the scorer; the text encoder's
identifiers; the folders.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CLIPModel, CLIPTokenizer

from farm.base.embedded.dataset import HELD_OUT_SEED, load_dataset, scenes_of
from farm.base.embedded.denoiser import DenoiserPlan, LatentSet, train_denoiser
from farm.base.embedded.folder import text_tower, write_base, write_scorer
from farm.base.embedded.identifiers.training import LegibilityPlan, make_legible
from farm.base.embedded.progress import ProgressLog, StageRun
from farm.base.embedded.samples import NUM_STEPS, generate_sample_grid
from farm.base.embedded.scorer import measure_scorer, train_scorer
from farm.base.embedded.tokenizer import build_tokenizer
from farm.base.embedded.vae import measure_psnr, refine_decoder, standardize, to_unit, train_vae

__all__ = ["TrainingPlan", "train_embedded"]

DOCUMENTED_MINUTES = 300.0
"""Approximate duration of the default plan on two cores of a 2023 server."""


@dataclass(frozen=True)
class TrainingPlan:
    """Number of images and steps of each stage."""

    num_pictures: int = 24_000
    num_held_out: int = 1_000
    num_scorer_steps: int = 1_900
    num_more_scorer_steps: int = 7_000
    num_vae_steps: int = 6_000
    num_decoder_steps: int = 1_000
    denoiser: DenoiserPlan = DenoiserPlan()
    identifiers: LegibilityPlan = LegibilityPlan()
    num_sampling_steps: int = NUM_STEPS
    """Of the images that show the progress."""

    def scaled(self, minutes: float) -> TrainingPlan:
        """The plan with its steps scaled to a time budget on the documented machine."""
        share = minutes / DOCUMENTED_MINUTES

        def part(count: int) -> int:
            return max(2, round(count * share))

        return TrainingPlan(
            num_pictures=max(64, min(self.num_pictures, part(self.num_pictures))),
            num_held_out=max(32, min(self.num_held_out, part(self.num_held_out))),
            num_scorer_steps=part(self.num_scorer_steps),
            num_more_scorer_steps=part(self.num_more_scorer_steps),
            num_vae_steps=part(self.num_vae_steps),
            num_decoder_steps=part(self.num_decoder_steps),
            denoiser=replace(self.denoiser, num_steps=part(self.denoiser.num_steps)),
            identifiers=replace(self.identifiers, num_steps=part(self.identifiers.num_steps)),
            num_sampling_steps=self.num_sampling_steps,
        )


def train_embedded(
    out: Path,
    *,
    seed: int = 0,
    device: str = "cpu",
    minutes: float | None = None,
    plan: TrainingPlan | None = None,
) -> Path:
    """Train everything in `out` and write `out/weights` and `out/scorer`; a rerun resumes.

    Args:
        out: the working folder: checkpoints, caches, `progress.jsonl`, sample grids, results.
        seed: root seed of all random streams.
        device: where to train.
        minutes: scale the default number of steps to about this duration on two CPU cores.
        plan: sizes to use instead of the defaults.

    Returns:
        The folder that `StableDiffusionPipeline.from_pretrained` loads.
    """
    chosen = plan or TrainingPlan()
    if minutes is not None:
        chosen = chosen.scaled(minutes)
    chosen = replace(chosen, denoiser=replace(chosen.denoiser, seed=seed))
    work = _Work(out, seed, torch.device(device), chosen, ProgressLog(out / "progress.jsonl"))
    tokenizer = build_tokenizer(out / "tokenizer")
    scorer = work.scorer(tokenizer)
    vae = work.vae()
    denoiser = work.denoiser(tokenizer, scorer, vae)
    vae = work.refined_vae(vae)
    weights, illegible = out / "weights", out / "stages" / "illegible"
    write_base(illegible, tokenizer, text_tower(scorer), vae, denoiser)
    make_legible(illegible, out / "stages" / "identifiers", weights, chosen.identifiers)
    write_scorer(out / "scorer", work.refined_scorer(tokenizer, scorer), tokenizer)
    return weights


@dataclass(frozen=True)
class _Work:
    """The stages of one training; each reads its result if it exists."""

    out: Path
    seed: int
    device: torch.device
    plan: TrainingPlan
    progress: ProgressLog

    def _run(self, stage: str, num_steps: int) -> StageRun:
        checkpoint = self.out / "stages" / f"{stage}.safetensors"
        return StageRun(num_steps, self.progress, checkpoint, self.seed, self.device)

    def scorer(self, tokenizer: CLIPTokenizer) -> CLIPModel:
        """Train the scorer, or read it. Its text tower at this stage becomes the base's text
        encoder.
        """
        return self._scorer("scorer", tokenizer, self.plan.num_scorer_steps)

    def refined_scorer(self, tokenizer: CLIPTokenizer, scorer: CLIPModel) -> CLIPModel:
        """Train both towers of the scorer further; the base keeps the earlier text tower."""
        return self._scorer("scorer-refined", tokenizer, self.plan.num_more_scorer_steps, scorer)

    def _scorer(
        self, stage: str, tokenizer: CLIPTokenizer, num_steps: int, start: CLIPModel | None = None
    ) -> CLIPModel:
        folder = self.out / "stages" / stage
        if (folder / "config.json").exists():
            read: CLIPModel = CLIPModel.from_pretrained(folder)
            return read.eval()
        scorer = train_scorer(
            self.pictures(),
            tokenizer,
            self._run(stage, num_steps),
            learning_rate=1.5e-3 if start is None else 1.2e-3,
            start=start,
        )
        scenes = scenes_of(HELD_OUT_SEED, self.plan.num_held_out)
        accuracies = measure_scorer(scorer, tokenizer, self.held_out(), scenes)
        self.progress.log(f"{stage}_held_out", num_steps, **accuracies)
        scorer.save_pretrained(folder)
        return scorer

    def vae(self) -> AutoencoderKL:
        """Train the autoencoder and normalise its latents, or read it."""
        folder = self.out / "stages" / "vae"
        if (folder / "config.json").exists():
            read: AutoencoderKL = AutoencoderKL.from_pretrained(folder)
            return read.eval()
        vae = train_vae(self.pictures(), self._run("vae", self.plan.num_vae_steps))
        standardize(vae, self.pictures()[:2000])
        psnr_db = measure_psnr(vae, self.held_out())
        self.progress.log("vae_held_out", self.plan.num_vae_steps, psnr_db=psnr_db)
        vae.save_pretrained(folder)
        return vae

    def denoiser(
        self, tokenizer: CLIPTokenizer, scorer: CLIPModel, vae: AutoencoderKL
    ) -> UNet2DConditionModel:
        """Train the denoiser; write a sample grid with every second checkpoint."""
        plan = self.plan.denoiser
        text_encoder = text_tower(scorer)
        data = LatentSet(
            self.latents(vae).to(self.device),
            scenes_of(self.seed, self.plan.num_pictures),
            tokenizer,
            text_encoder.to(self.device),
        )

        def show(step: int, denoiser: UNet2DConditionModel) -> None:
            if step % (2 * plan.checkpoint_every) == 0 or step == plan.num_steps:
                folder = self.out / "interim"
                write_base(folder, tokenizer, text_tower(scorer), _copy(vae), denoiser)
                path = self.out / "samples" / f"step-{step:06d}.png"
                generate_sample_grid(folder, path, num_steps=self.plan.num_sampling_steps)

        checkpoint = self.out / "stages" / "denoiser.safetensors"
        return train_denoiser(data, plan, self.progress, checkpoint, on_checkpoint=show)

    def refined_vae(self, vae: AutoencoderKL) -> AutoencoderKL:
        """Train the decoder further; the encoder is frozen, so the latents do not change."""
        folder = self.out / "stages" / "vae-refined"
        if (folder / "config.json").exists():
            read: AutoencoderKL = AutoencoderKL.from_pretrained(folder)
            return read.eval()
        run = self._run("decoder", self.plan.num_decoder_steps)
        refined = refine_decoder(vae, self.pictures(), run)
        psnr_db = measure_psnr(refined, self.held_out())
        self.progress.log("decoder_held_out", self.plan.num_decoder_steps, psnr_db=psnr_db)
        refined.save_pretrained(folder)
        return refined

    def pictures(self) -> NDArray[np.uint8]:
        """The training album."""
        return load_dataset(self.out / "cache" / "album.npy", self.seed, self.plan.num_pictures)

    def held_out(self) -> NDArray[np.uint8]:
        """Images that no stage trains on."""
        return load_dataset(
            self.out / "cache" / "held-out.npy", HELD_OUT_SEED, self.plan.num_held_out
        )

    @torch.no_grad()
    def latents(self, vae: AutoencoderKL) -> Tensor:
        """The album's latents (N, C, H, W), encoded once."""
        path = self.out / "cache" / "latents.safetensors"
        if path.exists():
            cached: Tensor = load_file(path)["latents"]
            return cached
        pictures = self.pictures()
        parts = [
            vae.encode(to_unit(pictures[start : start + 64])).latent_dist.mean
            for start in range(0, len(pictures), 64)
        ]
        latents: Tensor = (torch.cat(parts) * vae.config.scaling_factor).contiguous()
        save_file({"latents": latents}, path)
        return latents


def _copy(vae: AutoencoderKL) -> AutoencoderKL:
    twin = AutoencoderKL.from_config(vae.config)
    twin.load_state_dict(vae.state_dict())
    twin.eval()
    return twin
