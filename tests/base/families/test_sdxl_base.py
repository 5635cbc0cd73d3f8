"""Stable Diffusion XL as a base: equal to diffusers' own calls and to its plain pipeline."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import EulerDiscreteScheduler, UNet2DConditionModel

from farm.base.builds.unet import SDXL_BUILDS
from farm.base.conditioning import whole_frames
from farm.base.families.counting import layer_widths
from farm.base.fingerprint import fingerprint_folder
from farm.base.generate import generate_images
from farm.base.interface import Base
from farm.base.loading import load_base
from farm.errors import BaseModelError
from farm.schedulers import SCHEDULERS, SchedulerName

PROMPTS = ["a photo of sks cat", "a mushroom"]


@pytest.fixture(scope="module")
def base() -> Base:
    return load_base("tiny-sdxl")


@pytest.fixture(scope="module")
def folder(base: Base, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sdxl")
    base.pipeline().save_pretrained(folder, safe_serialization=True)
    return folder


def test_denoising_equals_the_raw_unet(base: Base) -> None:
    prompts = base.for_crops(
        base.encode_prompts(PROMPTS), torch.tensor([[80, 64, 3, 5, 64, 64], [64, 64, 0, 0, 64, 64]])
    )
    latents, timesteps = torch.randn(2, 4, 8, 8), torch.tensor([10, 990])
    pipeline = base.pipeline()
    states, _, pooled, _ = pipeline.encode_prompt(PROMPTS, do_classifier_free_guidance=False)
    with torch.no_grad():
        wanted = pipeline.unet(
            latents,
            timesteps,
            encoder_hidden_states=states,
            added_cond_kwargs={
                "text_embeds": pooled,
                "time_ids": torch.tensor([[80.0, 64, 3, 5, 64, 64], [64, 64, 0, 0, 64, 64]]),
            },
        ).sample
        found = base.denoise(latents, timesteps, prompts)
    assert torch.equal(found, wanted)


@pytest.mark.proves("Stable Diffusion XL", "generate")
@pytest.mark.parametrize("name", SCHEDULERS)
def test_images_equal_those_of_the_plain_pipeline(base: Base, name: SchedulerName) -> None:
    ours = generate_images(base, PROMPTS, [3, 4], steps=4, guidance=4.0, scheduler=name)
    pipeline = load_base("tiny-sdxl").pipeline()
    pipeline.scheduler = base.scheduler(name)
    theirs = pipeline(PROMPTS, **arguments((3, 4))).images
    assert np.abs(ours.numpy().astype(float) - theirs * 255).max() <= 1.0


def test_negative_prompts_and_sizes_equal_the_plain_pipelines(base: Base) -> None:
    """An empty negative prompt is zeros, as in the pipeline; another one is encoded."""
    for text, wanted in (("", None), ("ugly", ["ugly"])):
        ours = generate_images(
            base, PROMPTS[:1], [7], steps=3, guidance=4.0, negative_prompt=text,
            width_px=64, height_px=96,
        )  # fmt: skip
        theirs = base.pipeline()(
            PROMPTS[:1], negative_prompt=wanted, width=64, height=96, **arguments((7,), 3)
        ).images
        assert np.abs(ours.numpy().astype(float) - theirs * 255).max() <= 1.0


def arguments(seeds: tuple[int, ...], steps: int = 4) -> dict[str, object]:
    return {
        "num_inference_steps": steps,
        "guidance_scale": 4.0,
        "generator": [torch.Generator().manual_seed(seed) for seed in seeds],
        "output_type": "np",
    }


def test_the_vae_stays_in_float32_where_it_overflows_in_half(base: Base, folder: Path) -> None:
    half = load_base(str(folder), dtype=torch.float16)
    assert half.pipeline().unet.dtype == torch.float16
    assert half.pipeline().vae.dtype == torch.float32
    pixels = torch.rand(1, 3, 64, 64) * 2 - 1
    moments = half.encode_photos(pixels)
    torch.testing.assert_close(moments, base.encode_photos(pixels))
    assert half.decode(moments[:, 0].half()).dtype == torch.float32
    parts = half.memory
    assert base.memory.halved().weight_bytes == parts.weight_bytes


@pytest.mark.proves("Stable Diffusion XL", "load")
def test_a_folder_loads_with_a_fingerprint_over_all_parts(folder: Path, tmp_path: Path) -> None:
    base = load_base(str(folder))
    assert base.fingerprint == fingerprint_folder(folder)
    assert base.family.title == "Stable Diffusion XL"
    assert base.resolution_px == 64
    changed = shutil.copytree(folder, tmp_path / "changed")
    index = json.loads((changed / "model_index.json").read_text())
    for edit in ("second tokenizer", "empty prompts"):
        if edit == "second tokenizer":
            tokenizer = changed / "tokenizer_2" / "tokenizer.json"
            tokenizer.write_text(tokenizer.read_text() + " ")
        else:
            index["force_zeros_for_empty_prompt"] = False
            (changed / "model_index.json").write_text(json.dumps(index))
        assert fingerprint_folder(changed) not in (base.fingerprint, edit)
    weights = changed / "text_encoder_2" / "model.safetensors"
    weights.rename(weights.with_name("pytorch_model.bin"))
    with pytest.raises(BaseModelError, match="text_encoder_2/ holds pickled weights only"):
        load_base(str(changed))


def test_a_refiner_is_refused_by_name(folder: Path, tmp_path: Path) -> None:
    refiner = shutil.copytree(folder, tmp_path / "refiner")
    index = json.loads((refiner / "model_index.json").read_text())
    index["text_encoder"] = index["tokenizer"] = [None, None]
    (refiner / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(BaseModelError, match="refiner"):
        load_base(str(refiner))


def test_the_build_of_the_true_shape_has_the_models_own_size() -> None:
    with torch.device("meta"):
        unet = UNet2DConditionModel(**SDXL_BUILDS["sdxl"].unet)
    assert sum(p.numel() for p in unet.parameters()) == 2_567_463_684
    attention = ("to_q", "to_k", "to_v", "to_out.0")
    widths = layer_widths(unet)
    rank_4 = 4 * sum(width for path, width in widths.items() if path.endswith(attention))
    assert rank_4 == 5_806_080


def test_counts_of_the_denoiser_are_its_own(base: Base) -> None:
    counts = base.denoiser_counts()
    assert counts is not None
    assert counts.adapter_parameters(("to_q", "attn2.to_k"), 4) > 0
    assert counts.forward_flops(256) > 2 * counts.forward_flops(64)
    assert counts == base.denoiser_counts()  # from the cache
    assert base.pipeline().unet.conv_in.weight.device.type == "cpu"


def test_whole_frames_are_the_pipelines_time_ids(base: Base) -> None:
    pipeline = base.pipeline()
    wanted = pipeline._get_add_time_ids((96, 64), (0, 0), (96, 64), torch.int64, 16)
    assert torch.equal(whole_frames(1, 64, 96), wanted)
    assert isinstance(base.scheduler("base"), EulerDiscreteScheduler)
