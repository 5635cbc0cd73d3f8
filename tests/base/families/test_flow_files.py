"""Files of the flow-transformer families beyond attention: kohya's, and text encoders' adapters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from support.adapters import random_weights
from support.families import PROMPTS, plain_image, save_tom
from support.jobs import assert_close, build_job, open_trainer, train_alone

from farm.adapters.bank.bank import Bank
from farm.adapters.bank.layout import denoiser_layers, text_layers
from farm.adapters.files.folder import load_adapter
from farm.adapters.weights import AdapterWeights, LayerWeights
from farm.base.interface import Base
from farm.base.loading import load_base
from farm.base.random_weights import build_pipeline
from farm.errors import AdapterFileError
from farm.recipe import FAMILY_RECIPES

TEXT = ("q_proj", "k_proj", "v_proj", "out_proj")
PROMPT, SEED = PROMPTS[0], 5


def of_recipe(base: Base, *, text: bool = False, first_blocks: bool = False) -> AdapterWeights:
    """Random weights on the layers of the family's own recipe; alpha is twice the rank."""
    layers = denoiser_layers(base, FAMILY_RECIPES[base.family.pipeline]["target_modules"])  # type: ignore[arg-type]
    if text:
        layers |= text_layers(base, TEXT)
    generator = torch.Generator().manual_seed(3)
    found = {}
    for name, layer in layers.items():
        if first_blocks and not any(f"{kind}.0." in name for kind in ("blocks", "layers")):
            continue
        assert isinstance(layer, torch.nn.Linear)
        down = torch.randn(2, layer.in_features, generator=generator) / 2
        found[name] = LayerWeights(down, torch.randn(layer.out_features, 2, generator=generator))
    return AdapterWeights.with_alpha(found, 4.0)


def current(key: str) -> str:
    """A text encoder's key in the converter's older spelling, as PEFT spells it."""
    for old, new in (
        (".to_q_lora", ".q_proj"),
        (".to_k_lora", ".k_proj"),
        (".to_v_lora", ".v_proj"),
        (".to_out_lora", ".out_proj"),
        (".down.weight", ".lora_A.weight"),
        (".up.weight", ".lora_B.weight"),
    ):
        key = key.replace(old, new)
    return key


# FLUX.1's converter knows the layers of the real model only
@pytest.mark.proves("FLUX.1", "FLUX.2-klein", "Z-Image", "FLUX.2-dev", "Qwen-Image", "kohya file")
@pytest.mark.parametrize(
    "name", ["flux1-dev", "tiny-klein", "tiny-z-image", "tiny-flux2-dev", "tiny-qwen-image"]
)
def test_the_kohya_file_is_what_diffusers_own_loader_reads(name: str, tmp_path: Path) -> None:
    base = load_base(name, device="meta" if name == "flux1-dev" else "cpu")
    real = name == "flux1-dev"
    weights = (
        random_weights(base, 1, rank=2, alpha=4.0)
        if name in ("tiny-z-image", "tiny-qwen-image")
        else of_recipe(base, text=real, first_blocks=real)
    )
    file = save_tom(tmp_path, base, weights) / "tom.kohya.safetensors"
    found = type(base.pipeline()).lora_state_dict(file)
    found = {current(key): value for key, value in found.items()}
    ours = load_file(tmp_path / "pytorch_lora_weights.safetensors")
    for key, value in ours.items():
        theirs = found.pop(key)
        # the converter multiplies the scale into the down half
        assert torch.equal(theirs, value * 2 if ".lora_A." in key else value), key
    # what shares a fused layer without an adapter of its own becomes one of zeros
    assert all(not value.any() for key, value in found.items() if ".lora_B." in key)
    assert all(".proj_mlp." in key for key in found)
    back = load_adapter(file, base)
    assert back.alphas == weights.alphas
    for layer, wanted in weights.layers.items():
        assert torch.equal(back.layers[layer].down, wanted.down)
        assert torch.equal(back.layers[layer].up, wanted.up)


def test_a_fused_file_of_another_tool_gives_each_layer_its_part(tmp_path: Path) -> None:
    """kohya trains one down half for query, key and value; ComfyUI's names are dotted."""
    base = load_base("tiny-klein")
    down, up = torch.randn(3, 32), torch.randn(96, 3)
    for prefix, down_name, up_name in (
        ("lora_unet_double_blocks_0_img_attn_qkv", "lora_down", "lora_up"),
        ("diffusion_model.double_blocks.0.img_attn.qkv", "lora_A", "lora_B"),
    ):
        file = tmp_path / "fused.safetensors"
        tensors = {f"{prefix}.{down_name}.weight": down, f"{prefix}.{up_name}.weight": up}
        if down_name == "lora_down":
            tensors[f"{prefix}.alpha"] = torch.tensor(1.5)
        save_file(tensors, file)
        weights = load_adapter(file, base)
        assert len(weights.layers) == 3
        value = weights.layers["transformer.transformer_blocks.0.attn.to_v"]
        assert torch.equal(value.down, down)
        assert torch.equal(value.up, up[64:])
        assert set(weights.alphas.values()) == {1.5 if down_name == "lora_down" else 3.0}
    save_file({**tensors, f"{prefix}.{up_name}.weight": up[:90].clone()}, file)
    with pytest.raises(AdapterFileError, match="has 90 outputs; the base's has 96"):
        load_adapter(file, base)


def image_of(pipeline: Any) -> np.ndarray:
    return plain_image(pipeline, PROMPT, SEED, num_inference_steps=2, guidance_scale=1.0)


def test_an_adapter_on_all_layers_of_the_klein_recipe_loads_in_diffusers_and_peft(
    tmp_path: Path,
) -> None:
    """``to_out`` is a layer in single blocks and a list of layers in double blocks."""
    base = load_base("tiny-klein")
    weights = of_recipe(base)
    assert any(name.endswith("single_transformer_blocks.1.attn.to_out") for name in weights.layers)
    folder = save_tom(tmp_path, base, weights)
    pipeline = build_pipeline("tiny-klein")
    bare = image_of(pipeline)
    pipeline.load_lora_weights(folder, weight_name="pytorch_lora_weights.safetensors")
    theirs = image_of(pipeline)
    plain = build_pipeline("tiny-klein")
    PeftModel.from_pretrained(plain.transformer, folder / "peft")
    assert np.abs(image_of(plain) - theirs).max() <= 1.0
    assert np.abs(bare - theirs).max() > 10
    back = load_adapter(folder, base)
    assert back.layers.keys() == weights.layers.keys()
    assert back.alphas == weights.alphas


@pytest.mark.proves("FLUX.1", "Stable Diffusion 3", "train text encoders")
@pytest.mark.parametrize("name", ["tiny-flux", "tiny-sd3"])
def test_text_encoders_are_trained_in_slots_and_read_by_diffusers_own_loader(
    name: str, tmp_path: Path
) -> None:
    base = load_base(name)
    jobs = [
        build_job(
            base,
            number,
            steps=3,
            rank=2,
            text_encoder_modules=TEXT,
            learning_rate=3e-2,
            text_encoder_learning_rate=[1e-1, 5e-2][number],
        )
        for number in range(2)
    ]
    trainer = open_trainer(base, num_slots=2, max_rank=2, text_encoder_modules=TEXT)
    slots = [trainer.admit(job) for job in jobs]
    while trainer.active_slots:
        trainer.step()
    weights = trainer.weights(slots[1])
    trainer.close()
    assert_close(weights, train_alone(base, jobs[1]), 5e-3)
    assert weights.components == tuple(sorted(base.components))
    folder = save_tom(tmp_path, base, weights)
    bank = Bank(
        base, num_slots=1, max_rank=2, target_modules=("to_q", "to_k", "to_v", "to_out.0"),
        text_encoder_modules=TEXT,
    )  # fmt: skip
    bank.set_slot(0, weights)
    try:
        with bank.route(torch.tensor([0])), torch.no_grad():
            ours = base.encode_prompts([PROMPT])
    finally:
        bank.close()
    pipeline = build_pipeline(name)  # type: ignore[arg-type]
    bare = base.encode_prompts([PROMPT])
    pipeline.load_lora_weights(folder, weight_name="pytorch_lora_weights.safetensors")
    on = {part for part, adapters in pipeline.get_list_adapters().items() if adapters}
    assert on == set(base.components)
    embeds = pipeline.encode_prompt(PROMPT, *[None] * (1 if name == "tiny-flux" else 2))
    pooled = embeds[1] if name == "tiny-flux" else embeds[2]
    torch.testing.assert_close(ours.hidden_RTD, embeds[0], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(ours.extra["pooled"], pooled, atol=1e-4, rtol=1e-4)
    assert (bare.extra["pooled"] - pooled).abs().max() > 1e-3
