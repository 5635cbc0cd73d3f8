"""Our plain generating loop equals plain diffusers for the same seeds."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest
import torch

from farm.base.generate import generate_images
from farm.base.loading import load_base
from farm.schedulers import SchedulerName

PROMPTS = ["a photo of sks cat", "a mushroom"]


@pytest.mark.proves("Stable Diffusion 1.x and 2.x", "generate")
@pytest.mark.parametrize("name", get_args(SchedulerName))
@pytest.mark.parametrize("build", ["tiny", "tiny-v"])
def test_pictures_equal_those_of_the_plain_pipeline(build: str, name: SchedulerName) -> None:
    base = load_base(build)
    ours = generate_images(base, PROMPTS, [3, 4], steps=4, guidance=4.0, scheduler=name)
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


def test_a_batch_that_does_not_fit_is_generated_in_smaller_ones(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    base = load_base("tiny")
    whole = generate_images(base, PROMPTS * 2, [1, 2, 3, 4], steps=3, batch=4)
    denoise, sizes = base.denoise, []

    def small_memory(latents: torch.Tensor, *more: object) -> torch.Tensor:
        sizes.append(len(latents))
        if len(latents) > 2:
            raise torch.OutOfMemoryError("pretend")
        return denoise(latents, *more)

    monkeypatch.setattr(base, "denoise", small_memory)
    parts = generate_images(base, PROMPTS * 2, [1, 2, 3, 4], steps=3, batch=4)
    assert (parts.int() - whole.int()).abs().max() <= 1
    assert [size for size in sizes if size > 2] == [8, 4]
    monkeypatch.setattr("farm.base.generate.generate_latents", out_of_memory)
    with pytest.raises(torch.OutOfMemoryError):
        generate_images(base, PROMPTS, [1, 2], steps=3)


def out_of_memory(*_: object, **__: object) -> torch.Tensor:
    raise torch.OutOfMemoryError("pretend")


def test_few_pictures_at_a_time_through_the_vae_are_the_same_pictures(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    base = load_base("tiny")
    pixels = torch.rand(5, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    moments = base.encode_photos(pixels)
    pictures = base.decode(moments[:, 0])
    sizes: list[int] = []
    vae = base.pipeline().vae
    for part in (vae.encoder, vae.decoder):
        part.register_forward_pre_hook(lambda _, given: sizes.append(len(given[0])))
    monkeypatch.setattr(base._vae, "max_pixels", 2 * 64 * 64)
    torch.testing.assert_close(base.encode_photos(pixels), moments, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(base.decode(moments[:, 0]), pictures, atol=1e-4, rtol=1e-4)
    assert sizes == [2, 2, 1, 2, 2, 1]


def test_a_picture_does_not_depend_on_its_batch() -> None:
    base = load_base("tiny")
    together = generate_images(base, PROMPTS * 2, [1, 2, 3, 4], steps=3, batch=4)
    alone = generate_images(base, [PROMPTS[1]], [2], steps=3)
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
