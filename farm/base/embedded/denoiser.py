"""The embedded base's UNet: its architecture, noise schedule and training.

Legend: N rows, C latent channels, H W latent positions, T tokens, D text width.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from farm.base.embedded.checkpoint import load_checkpoint, save_checkpoint
from farm.base.embedded.progress import ProgressLog
from farm.base.embedded.scorer import WIDTH, encode_texts
from farm.base.embedded.vae import NUM_LATENT_CHANNELS
from farm.base.embedded.world.captions import write_caption, write_short_caption
from farm.base.embedded.world.scene import Scene

NUM_TRAIN_TIMESTEPS = 1000
AVERAGE_EVERY = 10
"""Steps between two updates of the weights' average."""
MIDDLE_TIMESTEPS = (200, 800)
"""Timesteps at which an image's layout is decided: above them noise hides it, below them it is
fixed. Half of the rows train here, as in Esser et al. 2024, section 3.1."""


def build_denoiser() -> UNet2DConditionModel:
    """Build the UNet with new weights from torch's global generator."""
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=NUM_LATENT_CHANNELS,
        out_channels=NUM_LATENT_CHANNELS,
        block_out_channels=(48, 80, 112),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=WIDTH,
        attention_head_dim=4,
        norm_num_groups=8,
    )


def build_schedule() -> DDIMScheduler:
    """The noise schedule. Its last step is pure noise (zero terminal SNR), so that the mean of the
    noise carries no information about the image.

    v-prediction stays well-posed there. `clip_sample` would damage latents, which exceed 1;
    "trailing" spacing starts sampling at the last training timestep.
    """
    return DDIMScheduler(
        num_train_timesteps=NUM_TRAIN_TIMESTEPS,
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.02,
        prediction_type="v_prediction",
        clip_sample=False,
        set_alpha_to_one=True,
        timestep_spacing="trailing",
        steps_offset=1,  # not read with "trailing"; the pipeline warns about any other value
    )


@dataclass(frozen=True)
class DenoiserPlan:
    """Training hyperparameters of the denoiser."""

    num_steps: int = 45_000
    batch_size: int = 32
    learning_rate: float = 1e-3
    num_warmup_steps: int = 150
    decay_share: float = 0.43
    """Final fraction of the steps, over which the learning rate falls to zero. It is constant until
    then, so a training stopped earlier can be extended."""
    average_decay: float = 0.998
    hard_nouns: tuple[str, ...] = ("fish", "teapot")
    """Classes whose shapes are learned last; a share of the rows shows one of them."""
    hard_share: float = 0.25
    seed: int = 0
    checkpoint_every: int = 500
    """A multiple of `AVERAGE_EVERY`."""

    def rate_at(self, step: int) -> float:
        """Learning rate of a step, counted from 0."""
        warm = min(1.0, (step + 1) / self.num_warmup_steps)
        left = (self.num_steps - step) / (self.num_steps * self.decay_share)
        return self.learning_rate * min(warm, 1.0, max(0.0, left))


@dataclass(frozen=True)
class LatentSet:
    """Training data of the denoiser: latents of rendered scenes, and the frozen text encoder."""

    latents_NCHW: Tensor
    scenes: list[Scene]
    tokenizer: CLIPTokenizer
    text_encoder: CLIPTextModel

    def places_of(self, nouns: tuple[str, ...]) -> list[int]:
        """Indices of the images of some classes."""
        return [place for place, scene in enumerate(self.scenes) if scene.class_noun in nouns]

    @torch.no_grad()
    def sample(self, plan: DenoiserPlan, hard: list[int], step: int) -> tuple[Tensor, Tensor]:
        """Latents (N, C, H, W) and prompt embeddings (N, T, D) of one step; a tenth of the
        prompts are empty.
        """
        rng = random.Random(f"denoiser/{plan.seed}/{step}")
        whole = range(len(self.scenes))
        chosen = [
            rng.choice(hard if hard and rng.random() < plan.hard_share else whole)
            for _ in range(plan.batch_size)
        ]
        texts = []
        for index in chosen:
            kind = rng.random()
            write = write_caption if kind < 0.68 else write_short_caption
            texts.append("" if kind < 0.1 else write(self.scenes[index], rng).text)
        ids = encode_texts(self.tokenizer, texts).to(self.latents_NCHW.device)
        return self.latents_NCHW[chosen], self.text_encoder(ids)[0]


def sample_timesteps(num_rows: int, generator: torch.Generator) -> Tensor:
    """Timesteps (N,): the first half of the rows covers the whole schedule evenly, the second half
    its middle (stratified; Salimans & Ho 2022, appendix D)."""
    num_whole = (num_rows + 1) // 2
    start, end = MIDDLE_TIMESTEPS
    parts = []
    for count, low, high in (
        (num_whole, 0, NUM_TRAIN_TIMESTEPS),
        (num_rows - num_whole, start, end),
    ):
        strata = (torch.arange(count) + torch.rand(count, generator=generator)) / max(1, count)
        parts.append(low + (strata * (high - low)).long())
    return torch.cat(parts)


def v_loss(
    denoiser: UNet2DConditionModel,
    alphas_bar: Tensor,
    latents_NCHW: Tensor,
    prompts_NTD: Tensor,
    generator: torch.Generator,
) -> Tensor:
    """Mean squared error of v."""
    timesteps = sample_timesteps(len(latents_NCHW), generator).to(latents_NCHW.device)
    noise = torch.randn(latents_NCHW.shape, generator=generator).to(latents_NCHW.device)
    signal = alphas_bar[timesteps].sqrt()[:, None, None, None]
    spread = (1 - alphas_bar[timesteps]).sqrt()[:, None, None, None]
    noisy = signal * latents_NCHW + spread * noise
    target = signal * noise - spread * latents_NCHW
    predicted = denoiser(noisy, timesteps, prompts_NTD).sample
    return torch.nn.functional.mse_loss(predicted, target)


def train_denoiser(
    data: LatentSet,
    plan: DenoiserPlan,
    progress: ProgressLog,
    checkpoint: Path,
    *,
    on_checkpoint: Callable[[int, UNet2DConditionModel], None] | None = None,
) -> UNet2DConditionModel:
    """Train, or resume from a checkpoint file; returns the averaged weights."""
    device = data.latents_NCHW.device
    torch.manual_seed(plan.seed)
    denoiser = build_denoiser().to(device, memory_format=torch.channels_last).train()
    optimizer = torch.optim.AdamW(
        denoiser.parameters(),
        lr=plan.learning_rate,
        betas=(0.9, 0.99),
        weight_decay=0.01,
        fused=True,
    )
    average = {name: tensor.detach().clone() for name, tensor in denoiser.state_dict().items()}
    first = load_checkpoint(checkpoint, denoiser, optimizer, average)
    alphas_bar = build_schedule().alphas_cumprod.to(device)
    window: list[Tensor] = []
    started_s = time.monotonic()
    hard = data.places_of(plan.hard_nouns)
    for step in range(first, plan.num_steps):
        for group in optimizer.param_groups:
            group["lr"] = plan.rate_at(step)
        generator = torch.Generator().manual_seed(plan.seed * 1_000_003 + step)
        latents, prompts = data.sample(plan, hard, step)
        latents = latents.contiguous(memory_format=torch.channels_last)
        loss = v_loss(denoiser, alphas_bar, latents, prompts, generator)
        _update(denoiser, optimizer, loss)
        if (step + 1) % AVERAGE_EVERY == 0:
            decay = min(plan.average_decay, (step + 1) / (step + 20)) ** AVERAGE_EVERY
            _follow(average, denoiser, decay)
        window.append(loss.detach())
        if (step + 1) % 50 == 0:
            mean = torch.stack(window).mean().item()
            rate_s = (time.monotonic() - started_s) / (step + 1 - first)
            progress.log(
                "denoiser", step + 1, loss=mean, learning_rate=plan.rate_at(step), step_s=rate_s
            )
            window.clear()
        is_due = (step + 1) % plan.checkpoint_every == 0 or step + 1 == plan.num_steps
        if is_due:
            save_checkpoint(checkpoint, step + 1, denoiser, optimizer, average)
            if on_checkpoint is not None:
                on_checkpoint(step + 1, averaged(average))
    return averaged(average)


def _update(denoiser: UNet2DConditionModel, optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    optimizer.zero_grad(set_to_none=True)
    torch.autograd.backward(loss)
    torch.nn.utils.clip_grad_norm_(denoiser.parameters(), 1.0)
    optimizer.step()


@torch.no_grad()
def _follow(average: dict[str, Tensor], denoiser: UNet2DConditionModel, decay: float) -> None:
    state = denoiser.state_dict()
    torch._foreach_lerp_(list(average.values()), [state[name] for name in average], 1 - decay)


def averaged(average: dict[str, Tensor]) -> UNet2DConditionModel:
    """A UNet with the averaged weights."""
    denoiser = build_denoiser()
    denoiser.load_state_dict(average)
    return denoiser.eval()
