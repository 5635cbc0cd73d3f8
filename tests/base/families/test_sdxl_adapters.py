"""Adapter files of Stable Diffusion XL: other tools read them, and the farm reads theirs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from diffusers.loaders.lora_conversion_utils import (
    _convert_non_diffusers_lora_to_diffusers,
    _maybe_map_sgm_blocks_to_diffusers,
)
from peft import PeftModel
from safetensors import safe_open
from safetensors.torch import load_file
from support.adapters import random_weights
from support.families import save_tom

from farm.adapters.bank.bank import Bank
from farm.adapters.files.folder import load_adapter
from farm.adapters.files.layer_names import kohya_names, layer_names, located
from farm.adapters.weights import AdapterWeights
from farm.base.interface import Base
from farm.base.loading import load_base
from farm.errors import AdapterFileError

PROMPT, SEED = "a photo of sks cat", 5
TEXT = ("q_proj", "v_proj")
FORMS = ("diffusers", "peft", "kohya")


@pytest.fixture(scope="module")
def base() -> Base:
    return load_base("tiny-sdxl")


@pytest.fixture(scope="module")
def weights(base: Base) -> AdapterWeights:
    """An adapter of all three components, its alpha not its rank."""
    return random_weights(base, 1, alpha=6.0, strength=0.1, text=True)


@pytest.fixture(scope="module")
def folder(base: Base, weights: AdapterWeights, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapter")
    return save_tom(folder, base, weights, base_id="someone/sdxl", forms=FORMS)


@pytest.fixture(scope="module")
def adapted(base: Base, weights: AdapterWeights) -> np.ndarray:
    """The image of the plain pipeline with the adapter in the farm's own bank."""
    bank = Bank(
        base,
        num_slots=1,
        max_rank=4,
        target_modules=("to_q", "to_k", "to_v", "to_out.0"),
        text_encoder_modules=TEXT,
    )
    bank.set_slot(0, weights)
    try:
        with bank.route(torch.tensor([0])):
            prompts = base.encode_prompts([PROMPT])
        with bank.route(torch.tensor([0])):
            return image_of(base.pipeline(), prompts.hidden_RTD, prompts.extra["pooled"])
    finally:
        bank.close()


def image_of(pipeline: StableDiffusionXLPipeline, *embeds: torch.Tensor) -> np.ndarray:
    words = (
        {"prompt_embeds": embeds[0], "pooled_prompt_embeds": embeds[1]}
        if embeds
        else {"prompt": PROMPT}
    )
    found: np.ndarray = pipeline(
        **words,
        num_inference_steps=3,
        guidance_scale=1.0,
        generator=torch.Generator().manual_seed(SEED),
        output_type="np",
    ).images[0]
    return found


@pytest.mark.proves("Stable Diffusion XL", "diffusers file")
def test_the_diffusers_file_gives_the_same_image_in_diffusers_own_loader(
    folder: Path, adapted: np.ndarray
) -> None:
    pipeline = load_base("tiny-sdxl").pipeline()
    bare = image_of(pipeline)
    pipeline.load_lora_weights(folder, weight_name="pytorch_lora_weights.safetensors")
    assert {name for name, on in pipeline.get_list_adapters().items() if on} == {
        "unet",
        "text_encoder",
        "text_encoder_2",
    }
    assert np.abs(image_of(pipeline) - adapted).max() < 2e-3
    assert np.abs(bare - adapted).max() > 0.05


@pytest.mark.proves("Stable Diffusion XL", "PEFT file")
def test_the_peft_files_give_the_same_image_in_peft(folder: Path, adapted: np.ndarray) -> None:
    pipeline = load_base("tiny-sdxl").pipeline()
    for part, place in (
        ("unet", "peft"),
        ("text_encoder", "peft/text_encoder"),
        ("text_encoder_2", "peft/text_encoder_2"),
    ):
        PeftModel.from_pretrained(getattr(pipeline, part), folder / place)
    assert np.abs(image_of(pipeline) - adapted).max() < 2e-3


@pytest.mark.proves("Stable Diffusion XL", "kohya file")
def test_the_kohya_file_is_what_diffusers_converter_reads(
    base: Base, folder: Path, weights: AdapterWeights
) -> None:
    state = load_file(folder / "tom.kohya.safetensors")
    assert "lora_unet_input_blocks_1_1_transformer_blocks_0_attn1_to_q.alpha" in state
    assert any(key.startswith("lora_te2_text_model_encoder_layers_0_") for key in state)
    config = base.pipeline().unet.config
    mapped = _maybe_map_sgm_blocks_to_diffusers(state, config)
    found, alphas = _convert_non_diffusers_lora_to_diffusers(mapped)
    assert set(alphas.values()) == {6.0}
    ours = load_file(folder / "pytorch_lora_weights.safetensors")
    theirs = {_current(key): value for key, value in found.items()}
    assert theirs.keys() == ours.keys()
    for key, value in ours.items():
        assert torch.equal(theirs[key], value)


def _current(key: str) -> str:
    """The converter's older spelling of a key as PEFT spells it."""
    for old, new in (
        (".processor.to_out_lora", ".to_out.0"),
        (".to_out_lora", ".to_out.0"),
        (".processor.", "."),
        ("_lora.", "."),
        (".lora_linear_layer.", "."),
        (".lora.", "."),
        (".to_out.down.", ".to_out.0.down."),
        (".to_out.up.", ".to_out.0.up."),
        (".self_attn.to_q", ".self_attn.q_proj"),
        (".self_attn.to_v", ".self_attn.v_proj"),
        (".down.weight", ".lora_A.weight"),
        (".up.weight", ".lora_B.weight"),
    ):
        key = key.replace(old, new)
    return key


@pytest.mark.parametrize("form", FORMS)
def test_every_form_reads_back_bit_for_bit(
    base: Base, folder: Path, weights: AdapterWeights, form: str
) -> None:
    place = {"diffusers": "pytorch_lora_weights.safetensors", "peft": "peft"}
    found = load_adapter(folder / place.get(form, "tom.kohya.safetensors"), base)
    assert found.alphas == weights.alphas
    assert found.layers.keys() == weights.layers.keys()
    for name, layer in weights.layers.items():
        assert torch.equal(found.layers[name].down, layer.down)
        assert torch.equal(found.layers[name].up, layer.up)


def test_every_layer_has_one_kohya_name_that_reads_back(base: Base) -> None:
    """Convolutions, time and text embeddings too, as in files of other trainers."""
    known = layer_names(base)
    names = kohya_names(known, base)
    assert len(set(names.values())) == len(known)
    found, missing = located(names.values(), known)
    assert not missing
    assert {name: found[kohya] for name, kohya in names.items()} == {name: name for name in known}


def test_headers_and_card_name_the_family(folder: Path) -> None:
    with safe_open(folder / "tom.kohya.safetensors", "pt") as file:
        header = file.metadata()
    assert header["modelspec.architecture"] == "stable-diffusion-xl-v1-base/lora"
    assert header["ss_base_model_version"] == "sdxl_base_v1-0"
    card = (folder / "README.md").read_text()
    assert "from diffusers import StableDiffusionXLPipeline" in card
    assert "stable-diffusion-xl" in card


@pytest.mark.parametrize("file", ["pytorch_lora_weights.safetensors", "tom.kohya.safetensors"])
def test_an_sdxl_adapter_on_another_family_is_refused_by_family_and_shape(
    folder: Path, file: str
) -> None:
    with pytest.raises(AdapterFileError, match="Stable Diffusion XL") as refused:
        load_adapter(folder / file, load_base("tiny"))
    layer = "lora_unet_input_blocks" if "kohya" in file else "unet.down_blocks"  # its own name
    assert f"text states of width 32, as in {layer}" in refused.value.message
    assert "of width 16" in refused.value.message
