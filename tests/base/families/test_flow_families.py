"""The flow-transformer families: equal to diffusers' pipelines, scripts and adapter loaders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import Krea2Pipeline, QwenImagePipeline
from peft import PeftModel
from support.adapters import random_weights
from support.families import FLOW_FAMILIES, PROMPTS, plain_image, save_tom
from support.jobs import assert_close, build_job, open_trainer, train_alone

from farm.adapters.bank.bank import Bank
from farm.adapters.bank.layout import denoiser_layers
from farm.adapters.files.folder import load_adapter
from farm.base.families.registry import family_of
from farm.base.fingerprint import fingerprint_folder
from farm.base.generate import generate_images
from farm.base.interface import Base
from farm.base.loading import load_base
from farm.base.random_weights import build_pipeline
from farm.errors import UserError
from farm.recipe import Recipe

VARIANTS = (
    "tiny-klein-distilled",
    "tiny-flux-schnell",
    "tiny-sd3-clip",
    "tiny-krea2-distilled",
)
ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
NO_NEGATIVE = (
    "tiny-klein",
    "tiny-klein-distilled",
    "tiny-flux",
    "tiny-flux-schnell",
    "tiny-flux2-dev",
    "tiny-krea2-distilled",
)
"""Their pipelines take no negative prompt at this guidance."""


@pytest.fixture(scope="module", params=FLOW_FAMILIES)
def base(request: pytest.FixtureRequest) -> Base:
    return load_base(request.param)


def image_of(pipeline: Any, prompt: str, seed: int, **options: Any) -> np.ndarray:
    """The plain pipeline's image at this guidance."""
    guidance: dict[str, Any] = {"guidance_scale": 3.0}
    if isinstance(pipeline, QwenImagePipeline):
        guidance = {"true_cfg_scale": 3.0, "negative_prompt": ""}
    elif isinstance(pipeline, Krea2Pipeline) and pipeline.config.is_distilled:
        guidance = {"guidance_scale": 0.0}
    return plain_image(pipeline, prompt, seed, num_inference_steps=3, **{**guidance, **options})


@pytest.mark.proves("every flow family", "generate")
@pytest.mark.parametrize("name", [*FLOW_FAMILIES, *VARIANTS])
def test_images_equal_those_of_the_plain_pipeline(name: str) -> None:
    """Two prompts of different lengths in one batch, each as if it were alone."""
    base = load_base(name)
    ours = generate_images(base, PROMPTS, [3, 4], steps=3, guidance=3.0).numpy().astype(float)
    for image, prompt, seed in zip(ours, PROMPTS, (3, 4), strict=True):
        assert np.abs(image - image_of(base.pipeline(), prompt, seed)).max() <= 1.0
    assert ours[0].std() > 10
    if name not in NO_NEGATIVE:
        (ours,) = generate_images(
            base, PROMPTS[:1], [3], steps=3, guidance=3.0, negative_prompt="blurry"
        )
        theirs = image_of(base.pipeline(), PROMPTS[0], 3, negative_prompt="blurry")
        assert np.abs(ours.numpy() - theirs).max() <= 1.0


def test_guidance_costs_a_second_row_only_where_the_family_has_it() -> None:
    assert load_base("tiny-klein").needs_unprompted(3.0)
    assert not load_base("tiny-klein").needs_unprompted(1.0)
    assert not load_base("tiny-klein-distilled").needs_unprompted(3.0)
    assert not load_base("tiny-flux").needs_unprompted(3.0)
    assert load_base("tiny-z-image").needs_unprompted(0.5)
    assert load_base("tiny-krea2").needs_unprompted(0.5)
    assert not load_base("tiny-krea2-distilled").needs_unprompted(3.0)
    assert not load_base("tiny-flux2-dev").needs_unprompted(3.0)
    assert not load_base("tiny-qwen-image").needs_unprompted(1.0)


def test_a_training_target_is_the_official_scripts(base: Base) -> None:
    """``noise - latent`` at ``(1 - σ) · latent + σ · noise``, σ by the scheduler's own table."""
    schedule, scheduler = base.schedule, base.pipeline().scheduler
    plain = type(scheduler).from_config(scheduler.config)
    latents, noise = torch.randn(2, *base.latent_shape(64, 64)), torch.randn(2, 4, 8, 8)
    noise = torch.randn_like(latents)
    indices = torch.tensor([100, 700])  # of the script's table, which begins with noise
    ours = schedule.num_timesteps - 1 - indices
    sigmas = plain.sigmas[indices].view(-1, 1, 1, 1)
    noisy = (1 - sigmas) * latents + sigmas * noise
    torch.testing.assert_close(schedule.add_noise(latents, noise, ours), noisy)
    torch.testing.assert_close(schedule.target(latents, noise, ours), noise - latents)
    torch.testing.assert_close(schedule.model_timesteps(ours), plain.timesteps[indices].float())


def test_photos_are_encoded_as_the_pipeline_decodes_them(base: Base) -> None:
    pixels = torch.rand(1, 3, 64, 64) * 2 - 1
    moments = base.encode_photos(pixels)
    assert moments.shape == (1, 2, *base.latent_shape(64, 64))
    decoded = base.decode(moments[:, 0])
    vae = base.pipeline().vae
    if vae.config.get("latents_mean"):  # a VAE of videos
        pixels = pixels.unsqueeze(2)
    with torch.no_grad():
        wanted = vae.decode(vae.encode(pixels).latent_dist.mode()).sample
    wanted = (wanted.view(decoded.shape) / 2 + 0.5).clamp(0, 1)
    torch.testing.assert_close(decoded, wanted, atol=1e-5, rtol=1e-4)


def test_sizes_that_the_patches_do_not_fit_are_refused(base: Base) -> None:
    with pytest.raises(UserError, match="72x64 px does not fit") as refused:
        base.latent_shape(72, 64)
    assert "multiples of 16 px" in refused.value.remedy


@pytest.mark.proves("every flow family", "train")
def test_four_slots_train_what_each_alone_trains(base: Base) -> None:
    jobs = [build_job(base, number, steps=3, rank=2 + number) for number in range(3)]
    trainer = open_trainer(base, num_slots=4, max_rank=4)
    slots = {job.key: trainer.admit(job) for job in jobs}
    while trainer.active_slots:
        trainer.step()
    together = {job.key: trainer.bank.slot_weights(slots[job.key]) for job in jobs}
    trainer.close()
    for job in jobs[:2]:
        assert_close(together[job.key], train_alone(base, job), 5e-3)


@pytest.mark.proves("every flow family", "diffusers file")
@pytest.mark.proves("every flow family", "PEFT file")
def test_an_adapter_file_gives_the_same_image_in_diffusers_and_in_peft(
    base: Base, tmp_path: Path
) -> None:
    weights = random_weights(base, 1, alpha=6.0, strength=0.4)
    save_tom(tmp_path, base, weights, forms=("diffusers", "peft"))
    bare = image_of(base.pipeline(), PROMPTS[0], 5)
    bank = Bank(base, num_slots=1, max_rank=4, target_modules=ATTENTION)
    bank.set_slot(0, weights)
    try:
        (ours,) = generate_images(
            base, PROMPTS[:1], [5], steps=3, guidance=3.0,
            routing=lambda images_R: bank.route(torch.zeros_like(images_R)),
        )  # fmt: skip
    finally:
        bank.close()
    pipeline = build_pipeline(base.name)  # type: ignore[arg-type]
    pipeline.load_lora_weights(tmp_path, weight_name="pytorch_lora_weights.safetensors")
    theirs = image_of(pipeline, PROMPTS[0], 5)
    assert np.abs(ours.numpy() - theirs).max() <= 2.0
    assert np.abs(bare - theirs).max() > 10
    plain = build_pipeline(base.name)  # type: ignore[arg-type]
    PeftModel.from_pretrained(plain.transformer, tmp_path / "peft")
    assert np.abs(image_of(plain, PROMPTS[0], 5) - theirs).max() <= 1.0
    back = load_adapter(tmp_path / "pytorch_lora_weights.safetensors", base)
    assert back.alphas == weights.alphas
    assert all(torch.equal(back.layers[n].down, one.down) for n, one in weights.layers.items())


@pytest.mark.proves("every flow family", "load")
def test_a_folder_loads_by_its_pipeline_and_has_one_fingerprint(base: Base, tmp_path: Path) -> None:
    base.pipeline().save_pretrained(tmp_path, safe_serialization=True)
    loaded = load_base(str(tmp_path))
    assert type(loaded) is family_of(base.name, base.family.pipeline)
    assert loaded.fingerprint == fingerprint_folder(tmp_path)
    with torch.no_grad():
        wanted, found = (one.encode_prompts(PROMPTS).hidden_RTD for one in (base, loaded))
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("z-image", 6_154_908_736),
        ("klein-4b", 3_875_544_576),
        ("flux1-dev", 11_901_408_320),
        ("sd35-medium", 2_243_171_520),
        ("flux2-dev", 32_223_281_152),
        ("qwen-image", 20_430_401_088),
        ("krea2", 12_820_073_036),
    ],
)
def test_the_build_of_the_true_shape_has_the_models_own_size(name: str, parameters: int) -> None:
    pipeline = build_pipeline(name, device="meta")  # type: ignore[arg-type]
    assert sum(p.numel() for p in pipeline.transformer.parameters()) == parameters


RECIPE_LAYERS = {
    # per block: 4 or 8 of its attention, and what else the script names
    "klein-4b": 5 * 4 + 20 * 2,
    "z-image": (30 + 2 + 2) * 4,
    "flux1-dev": 19 * (8 + 4) + 38 * 3,
    "sd35-medium": 24 * 8 - 1,  # the last block has no text output
    "sdxl": 70 * 2 * 4,
}


@pytest.mark.parametrize("name", RECIPE_LAYERS)
def test_the_familys_recipe_adapts_the_layers_of_its_official_script(name: str) -> None:
    base = load_base(name, device="meta")
    recipe = Recipe.model_validate(base.recipe)
    layers = denoiser_layers(base, recipe.target_modules)
    assert len(layers) == RECIPE_LAYERS[name]
    assert recipe.resolution_px in (None, 512)
    assert (recipe.steps, recipe.rank, recipe.text_encoder_learning_rate) == (500, 4, 5e-6)


def test_a_base_smaller_than_the_scripts_images_keeps_its_own_size() -> None:
    assert "resolution_px" not in load_base("tiny-klein").recipe


def test_counts_of_the_denoiser_are_its_own(base: Base) -> None:
    counts = base.denoiser_counts()
    assert counts is not None
    assert counts.adapter_parameters(ATTENTION, 4) > 0
    assert counts.forward_flops(16_384) > 2 * counts.forward_flops(1024)
