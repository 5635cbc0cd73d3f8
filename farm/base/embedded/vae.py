"""The embedded base's autoencoder: 64 px images to 8 x 16 x 16 latents.

Owns its architecture, training and PSNR. It downsamples by 4: downsampling by 8 with sixteen
channels learned more slowly (18 dB after 800 steps; this one exceeds that within 400).
Legend: N images, C channels, H W px.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
import torch
from diffusers import AutoencoderKL
from numpy.typing import NDArray
from torch import Tensor, nn

from farm.base.embedded.checkpoint import load_checkpoint, save_checkpoint
from farm.base.embedded.dataset import batch_at
from farm.base.embedded.progress import StageRun

NUM_LATENT_CHANNELS = 8


def build_vae() -> AutoencoderKL:
    """Build the autoencoder with new weights from torch's global generator."""
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(16, 24, 48),
        layers_per_block=1,
        latent_channels=NUM_LATENT_CHANNELS,
        norm_num_groups=8,
        sample_size=64,
        scaling_factor=1.0,
        mid_block_add_attention=False,
    )


def to_unit(pictures_NHWC: NDArray[np.uint8]) -> Tensor:
    """uint8 (N, H, W, 3) to float (N, 3, H, W) in [-1, 1]."""
    return torch.from_numpy(pictures_NHWC).permute(0, 3, 1, 2).float().div_(127.5).sub_(1.0)


def train_vae(
    album: NDArray[np.uint8],
    stage: StageRun,
    *,
    batch_size: int = 16,
    learning_rate: float = 1.5e-3,
) -> AutoencoderKL:
    """Train on an album with squared error, a small absolute error and a very small KL term.
    Resumes from the stage's checkpoint.
    """
    torch.manual_seed(stage.seed)
    vae = build_vae().to(stage.device, memory_format=torch.channels_last).train()
    optimizer = torch.optim.AdamW(
        vae.parameters(), lr=learning_rate, betas=(0.9, 0.99), weight_decay=1e-4
    )
    for step in range(load_checkpoint(stage.checkpoint, vae, optimizer), stage.num_steps):
        _set_rate(optimizer, learning_rate * one_cycle(step, stage.num_steps))
        torch.manual_seed(stage.seed * 1_000_003 + step)
        pictures = to_unit(batch_at(album, stage.seed, step, batch_size)).to(stage.device)
        loss, parts = _vae_loss(vae, pictures.contiguous(memory_format=torch.channels_last))
        _descend(optimizer, vae.parameters(), loss)
        if step % 50 == 0 or step == stage.num_steps - 1:
            stage.progress.log("vae", step, **parts)
        if (step + 1) % 250 == 0:
            save_checkpoint(stage.checkpoint, step + 1, vae, optimizer)
    return vae.cpu().eval()


def refine_decoder(
    vae: AutoencoderKL,
    album: NDArray[np.uint8],
    stage: StageRun,
    *,
    batch_size: int = 16,
    learning_rate: float = 1e-3,
) -> AutoencoderKL:
    """Train only the decoder, on squared error; the encoder and all latents stay unchanged."""
    vae = vae.to(stage.device, memory_format=torch.channels_last).requires_grad_(False)
    decoding = nn.ModuleList([vae.post_quant_conv, vae.decoder]).requires_grad_(True)
    optimizer = torch.optim.AdamW(
        decoding.parameters(), lr=learning_rate, betas=(0.9, 0.99), weight_decay=1e-4
    )
    for step in range(load_checkpoint(stage.checkpoint, decoding, optimizer), stage.num_steps):
        _set_rate(optimizer, learning_rate * one_cycle(step, stage.num_steps))
        torch.manual_seed(stage.seed * 1_000_003 + step)
        pictures = to_unit(batch_at(album, stage.seed + 1, step, batch_size)).to(stage.device)
        pictures = pictures.contiguous(memory_format=torch.channels_last)
        with torch.no_grad():
            latents = vae.encode(pictures).latent_dist.sample()
        squared = (vae.decode(latents).sample - pictures).square().mean()
        _descend(optimizer, decoding.parameters(), squared)
        if step % 50 == 0 or step == stage.num_steps - 1:
            psnr_db = -10 * math.log10(squared.item() / 4)
            stage.progress.log("decoder", step, psnr_db=psnr_db)
        if (step + 1) % 250 == 0:
            save_checkpoint(stage.checkpoint, step + 1, decoding, optimizer)
    return vae.cpu().requires_grad_(True).eval()


def one_cycle(step: int, num_steps: int, warm_share: float = 0.05) -> float:
    """Factor on the peak learning rate: a short linear warm-up, then a cosine decay to 0.01."""
    done = (step + 1) / num_steps
    if done < warm_share:
        return done / warm_share
    return 0.01 + 0.99 * (1 + math.cos(math.pi * (done - warm_share) / (1 - warm_share))) / 2


def _set_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = learning_rate


def _descend(
    optimizer: torch.optim.Optimizer, parameters: Iterable[nn.Parameter], loss: Tensor
) -> None:
    optimizer.zero_grad(set_to_none=True)
    torch.autograd.backward(loss)
    nn.utils.clip_grad_norm_(parameters, 1.0)
    optimizer.step()


def _vae_loss(vae: AutoencoderKL, pictures: Tensor) -> tuple[Tensor, dict[str, float]]:
    posterior = vae.encode(pictures).latent_dist
    rebuilt = vae.decode(posterior.sample()).sample
    squared = (rebuilt - pictures).square().mean()
    absolute = (rebuilt - pictures).abs().mean()
    kl = posterior.kl().mean() / posterior.mean[0].numel()
    psnr = -10 * torch.log10(squared.detach() / 4)
    return squared + 0.02 * absolute + 1e-5 * kl, {
        "psnr_db": psnr.item(),
        "absolute": absolute.item(),
        "kl": kl.item(),
    }


@torch.no_grad()
def standardize(vae: AutoencoderKL, pictures_NHWC: NDArray[np.uint8]) -> None:
    """Normalise every latent channel to mean 0 and deviation 1, by folding both into the two 1 x 1
    convolutions.

    Stable Diffusion has one scaling factor for all channels and no shift; here it stays 1.
    Decoded images do not change.
    """
    latents = torch.cat(
        [
            vae.encode(to_unit(part)).latent_dist.mean
            for part in np.array_split(pictures_NHWC, max(1, len(pictures_NHWC) // 64))
        ]
    )
    mean, deviation = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
    encode, decode = vae.quant_conv, vae.post_quant_conv
    count = len(mean)
    decode.bias += (decode.weight[:, :, 0, 0] @ mean).reshape(-1)
    decode.weight *= deviation[None, :, None, None]
    encode.weight[:count] /= deviation[:, None, None, None]
    encode.bias[:count] = (encode.bias[:count] - mean) / deviation
    encode.bias[count:] -= 2 * deviation.log()


@torch.no_grad()
def measure_psnr(vae: AutoencoderKL, pictures_NHWC: NDArray[np.uint8]) -> float:
    """Mean PSNR in dB of images reconstructed from the mean of their latents."""
    values = []
    for start in range(0, len(pictures_NHWC), 64):
        pictures = to_unit(pictures_NHWC[start : start + 64]).to(vae.dtype)
        rebuilt = vae.decode(vae.encode(pictures).latent_dist.mean).sample.clamp(-1, 1)
        error = (rebuilt - pictures).float().square().mean(dim=(1, 2, 3)) / 4
        values.append(-10 * torch.log10(error.clamp_min(1e-10)))
    return float(torch.cat(values).mean())
