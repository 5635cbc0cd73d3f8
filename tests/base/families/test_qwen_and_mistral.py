"""Qwen-Image, Krea 2 and FLUX.2-dev: what is peculiar to each of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from support.adapters import random_weights
from support.families import PROMPTS, plain_image, save_tom
from typer.testing import CliRunner

from farm.adapters.bank.bank import Bank
from farm.adapters.bank.layout import denoiser_layers
from farm.adapters.files.folder import load_adapter
from farm.adapters.weights import AdapterWeights, LayerWeights
from farm.base.generate import generate_images
from farm.base.interface import Base
from farm.base.loading import load_base
from farm.base.random_weights import build_pipeline
from farm.base.tokens import prompt_reader
from farm.cli import app
from farm.errors import AdapterFileError, BaseModelError
from farm.recipe import FAMILY_RECIPES

TARGETS = cast(tuple[str, ...], FAMILY_RECIPES["Krea2Pipeline"]["target_modules"])


def image_of(pipeline: Any, prompt: str, seed: int) -> np.ndarray:
    return plain_image(pipeline, prompt, seed, num_inference_steps=2, guidance_scale=2.0)


def wide_weights(base: Base, seed: int) -> AdapterWeights:
    """Random weights on every layer that Krea 2's official script adapts."""
    generator = torch.Generator().manual_seed(seed)
    layers = {
        name: LayerWeights(
            torch.randn(2, cast(int, layer.in_features), generator=generator) / 4,
            torch.randn(cast(int, layer.out_features), 2, generator=generator) / 4,
        )
        for name, layer in denoiser_layers(base, TARGETS).items()
    }
    return AdapterWeights.with_alpha(layers, 2.0)


def test_two_adapters_of_all_layers_in_one_batch_are_each_what_diffusers_loads(
    tmp_path: Path,
) -> None:
    """Krea 2's text fusion attends over the layers of each token: rows stay rows in the bank."""
    base = load_base("tiny-krea2")
    assert base.recipe["target_modules"] == TARGETS
    weights = [wide_weights(base, seed) for seed in (1, 2)]
    assert any("text_fusion.layerwise_blocks" in name for name in weights[0].layers)
    bank = Bank(base, num_slots=2, max_rank=2, target_modules=TARGETS)
    for slot, one in enumerate(weights):
        bank.set_slot(slot, one)
    try:
        ours = generate_images(base, PROMPTS, [5, 6], steps=2, guidance=2.0, routing=bank.route)
    finally:
        bank.close()
    for number, one in enumerate(weights):
        folder = save_tom(tmp_path / str(number), base, one, base_id="owner/model")
        pipeline = build_pipeline("tiny-krea2")
        pipeline.load_lora_weights(folder, weight_name="pytorch_lora_weights.safetensors")
        theirs = image_of(pipeline, PROMPTS[number], 5 + number)
        assert np.abs(ours[number].numpy() - theirs).max() <= 2.0
    assert np.abs(ours[0].numpy() - image_of(base.pipeline(), PROMPTS[0], 5)).max() > 10
    card = (tmp_path / "0" / "README.md").read_text(encoding="utf-8")
    assert "from diffusers import Krea2Pipeline" in card
    assert "- krea-2" in card


@pytest.mark.parametrize(
    ("name", "title", "guidance", "architecture"),
    [
        ("tiny-qwen-image", "Qwen-Image", "cfg", "Qwen-Image/lora"),
        ("tiny-flux2-dev", "FLUX.2-dev", "embedded", "Flux.2-dev/lora"),
    ],
)
def test_the_family_is_named_on_the_command_line_and_in_adapter_files(
    name: str, title: str, guidance: str, architecture: str, tmp_path: Path
) -> None:
    shown = CliRunner().invoke(app, ["base", "show", name, "--json"])
    facts = json.loads(shown.stdout.splitlines()[-1])
    assert (facts["family"], facts["guidance"]) == (title, guidance)
    assert facts["prediction_type"] == "flow"
    assert facts["resolution_px"] == 64
    base = load_base(name)
    folder = save_tom(tmp_path, base, random_weights(base, 1), base_id="owner/model")
    with safe_open(folder / "tom.kohya.safetensors", framework="pt") as file:
        assert file.metadata()["modelspec.architecture"] == architecture
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert f"from diffusers import {base.family.pipeline}" in card
    assert all(f"- {tag}" in card for tag in base.family.tags)


def test_folders_of_flux2_dev_load_without_torchvision(tmp_path: Path) -> None:
    """They name a processor of images, which needs it; prompts need the tokenizer alone."""
    built = load_base("tiny-flux2-dev")
    built.pipeline().save_pretrained(tmp_path, safe_serialization=True)
    index = json.loads((tmp_path / "model_index.json").read_text())
    index["tokenizer"] = ["transformers", "PixtralProcessor"]
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    loaded = load_base(str(tmp_path))
    with torch.no_grad():
        wanted, found = (one.encode_prompts(PROMPTS[:1]).hidden_RTD for one in (built, loaded))
    torch.testing.assert_close(found, wanted)
    (tmp_path / "tokenizer" / "chat_template.jinja").unlink()
    with pytest.raises(BaseModelError, match="chat template") as refused:
        load_base(str(tmp_path))
    assert refused.value.remedy


@pytest.mark.parametrize("name", ["tiny-qwen-image", "tiny-krea2", "tiny-flux2-dev"])
def test_the_end_of_a_prompt_that_is_not_read_is_found(name: str) -> None:
    base = load_base(name)
    long = "ab" * 400
    assert base.unread(PROMPTS[0]) == ""
    rest = base.unread(long)
    assert rest
    tokens = base.tokenize([long, long.removesuffix(rest), long[: -len(rest) - 1]])
    ids = tokens.tensors["text_encoder"]
    if name != "tiny-flux2-dev":  # whose end of the template is cut off first
        assert torch.equal(ids[0], ids[1])
    assert not torch.equal(ids[1], ids[2])


@pytest.mark.parametrize("name", ["tiny-flux", "tiny-sd3", "tiny-sd3-clip", "tiny-qwen-image"])
def test_a_manifests_prompts_are_checked_by_the_tokenizer_that_reads_most(
    name: str, tmp_path: Path
) -> None:
    base = load_base(name)
    for part in ("tokenizer", "tokenizer_2", "tokenizer_3"):
        if getattr(base.pipeline(), part, None) is not None:
            getattr(base.pipeline(), part).save_pretrained(tmp_path / part)
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": base.family.pipeline}))
    for place in (str(tmp_path), tmp_path.as_uri()):
        reader = prompt_reader(place)
        assert reader is not None
        for length in (20, 250, 700):
            assert reader.unread("ab" * length) == base.unread("ab" * length)


def test_qwen_images_guidance_keeps_the_norm_of_each_token() -> None:
    base = load_base("tiny-qwen-image")
    prompted, plain = torch.randn(2, 2, 4, 8, 8, generator=torch.Generator().manual_seed(2))
    guided = base.guide(prompted, plain, torch.tensor([2.0, 5.0]).view(2, 1, 1, 1))

    def norms(prediction: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.pixel_unshuffle(prediction, 2).norm(dim=1)

    torch.testing.assert_close(norms(guided), norms(prompted))
    assert not torch.allclose(guided, prompted)


def attention(blocks: int, width: int) -> dict[str, tuple[int, int]]:
    """A base's layers: the attention of blocks whose names several families share."""
    return {
        f"transformer.transformer_blocks.{number}.attn.{ending}": (width, width)
        for number in range(blocks)
        for ending in ("to_q", "to_k")
    }


@pytest.mark.parametrize(
    ("file", "base", "message"),
    [
        ((60, 3072), (24, 1536), "an adapter of Qwen-Image and has 72 layers that the base, of "
         "Stable Diffusion 3, lacks"),
        ((8, 6144), (60, 3072), "an adapter of FLUX.2-dev, whose blocks have width 6144; "
         "the base is Qwen-Image, of width 3072"),
    ],
)  # fmt: skip
def test_an_adapter_of_another_transformer_is_refused_by_family_and_shape(
    file: tuple[int, int], base: tuple[int, int], message: str, tmp_path: Path
) -> None:
    path = tmp_path / "adapter.safetensors"
    tensors = {}
    for name, (outputs, inputs) in attention(*file).items():
        tensors[f"{name}.lora_A.weight"] = torch.zeros(1, inputs)
        tensors[f"{name}.lora_B.weight"] = torch.zeros(outputs, 1)
    save_file(tensors, path)
    with pytest.raises(AdapterFileError) as refused:
        load_adapter(path, attention(*base))
    assert message in refused.value.message


def test_krea_adapters_are_refused_by_name_elsewhere(tmp_path: Path) -> None:
    krea = load_base("tiny-krea2")
    folder = save_tom(tmp_path / "a", krea, wide_weights(krea, 1), base_id="owner/model")
    with pytest.raises(AdapterFileError, match="is an adapter of Krea 2") as refused:
        load_adapter(folder / "pytorch_lora_weights.safetensors", load_base("tiny-qwen-image"))
    assert "layers that the base, of Qwen-Image, lacks" in refused.value.message
