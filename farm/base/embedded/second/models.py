"""The models of an edition: autoencoder, UNet and scorer, with new weights."""

from __future__ import annotations

from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPModel, CLIPTokenizer

from farm.base.embedded.scorer import build_scorer as new_scorer
from farm.base.embedded.second.edition import Edition

__all__ = ["build_scorer", "build_unet", "build_vae"]

GROUPS = 8


def build_vae(edition: Edition) -> AutoencoderKL:
    """Build the autoencoder from torch's global generator."""
    num = len(edition.vae_channels)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * num,
        up_block_types=("UpDecoderBlock2D",) * num,
        block_out_channels=edition.vae_channels,
        layers_per_block=1,
        latent_channels=edition.latent_channels,
        norm_num_groups=GROUPS,
        sample_size=edition.picture_px,
        scaling_factor=1.0,
        mid_block_add_attention=False,
    )


def build_unet(edition: Edition) -> UNet2DConditionModel:
    """Build the UNet from torch's global generator; all levels but the first attend to the text."""
    rest = len(edition.unet_channels) - 1
    return UNet2DConditionModel(
        sample_size=edition.latent_px,
        in_channels=edition.latent_channels,
        out_channels=edition.latent_channels,
        block_out_channels=edition.unet_channels,
        layers_per_block=1,
        down_block_types=("DownBlock2D", *("CrossAttnDownBlock2D",) * rest),
        up_block_types=(*("CrossAttnUpBlock2D",) * rest, "UpBlock2D"),
        cross_attention_dim=edition.scorer_width,
        attention_head_dim=edition.attention_heads,
        norm_num_groups=GROUPS,
    )


def build_scorer(edition: Edition, tokenizer: CLIPTokenizer) -> CLIPModel:
    """Build the scorer from torch's global generator."""
    return new_scorer(
        tokenizer,
        width=edition.scorer_width,
        side_px=edition.picture_px,
        patch_px=edition.picture_px // 8,
        vision_layers=edition.scorer_layers,
    )
