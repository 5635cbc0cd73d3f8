"""Our plain drawing loop gives what plain diffusers gives for the same seeds."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest
import torch

from farm.base.draw import draw_pictures
from farm.base.load import load_base
from farm.base.model import SchedulerName

PROMPTS = ["a photo of sks cat", "a mushroom"]


@pytest.mark.parametrize("name", get_args(SchedulerName))
@pytest.mark.parametrize("build", ["tiny", "tiny-v"])
def test_pictures_equal_those_of_the_plain_pipeline(build: str, name: SchedulerName) -> None:
    base = load_base(build)
    ours = draw_pictures(base, PROMPTS, [3, 4], steps=4, guidance=4.0, scheduler=name)
    pipeline = base.pipeline()
    pipeline.scheduler = base.scheduler(name)
    theirs = pipeline(
        PROMPTS,
        num_inference_steps=4,
        guidance_scale=4.0,
        generator=[torch.Generator().manual_seed(seed) for seed in (3, 4)],
        output_type="np",
    ).images
    assert np.abs(ours.numpy().astype(float) - theirs * 255).max() <= 1.0


def test_a_picture_does_not_depend_on_its_batch() -> None:
    base = load_base("tiny")
    together = draw_pictures(base, PROMPTS * 2, [1, 2, 3, 4], steps=3, batch=4)
    alone = draw_pictures(base, [PROMPTS[1]], [2], steps=3)
    assert (together[1].int() - alone[0].int()).abs().max() <= 1


def test_moments_resample_to_what_the_vae_samples() -> None:
    base = load_base("tiny")
    pixels = torch.rand(2, 3, 64, 64) * 2 - 1
    moments = base.encode_photos(pixels)
    assert moments.shape == (2, 2, 4, 8, 8)
    noise = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    vae = base.pipeline().vae
    distribution = vae.encode(pixels).latent_dist
    expected = (distribution.mean + distribution.std * noise) * vae.config.scaling_factor
    torch.testing.assert_close(moments[:, 0] + moments[:, 1] * noise, expected)
