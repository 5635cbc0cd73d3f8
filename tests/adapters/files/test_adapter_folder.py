"""Each file form, alpha unlike rank: written here, read by the other tool, and the other way."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from diffusers.training_utils import _collate_lora_metadata
from diffusers.utils import convert_state_dict_to_diffusers, convert_state_dict_to_kohya
from huggingface_hub import ModelCard
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from farm.adapters.bank.bank import Bank
from farm.adapters.files.folder import load_adapter, save_adapter, verify_files
from farm.adapters.generate import generate_adapted
from farm.adapters.record import AdapterRecord
from farm.adapters.weights import AdapterWeights, LayerWeights
from farm.base.interface import Base
from farm.base.loading import load_base
from farm.errors import AdapterFileError
from farm.keys import bytes_digest
from farm.recipe import Recipe

PROMPT, SEED, STEPS, GUIDANCE = "a photo of a sks cat", 11, 4, 3.0
ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
WIDE = (*ATTENTION, "conv1", "proj_in", "ff.net.0.proj", "time_emb_proj", "conv_shortcut")
TEXT = ("q_proj", "v_proj", "out_proj", "fc1")
SHAPES = {
    "attention": (ATTENTION, (), 4, 16.0),
    "text": (ATTENTION, TEXT, 4, 12.0),
    "convolutions": (WIDE, TEXT, 3, 1.5),
}
Shape = tuple[tuple[str, ...], tuple[str, ...], int, float]


def random_adapter(base: Base, shape: Shape) -> AdapterWeights:
    targets, text, rank, alpha = shape
    bank = Bank(base, num_slots=1, max_rank=rank, target_modules=targets, text_encoder_modules=text)
    bank.init_slot(0, rank, alpha, seed=3)
    weights = bank.slot_weights(0)
    bank.close()
    generator = torch.Generator().manual_seed(4)
    layers = {}
    for name, layer in weights.layers.items():
        up = torch.randn(layer.up.shape, generator=generator) / alpha
        layers[name] = LayerWeights(layer.down, up)
    return AdapterWeights.with_alpha(layers, alpha)


def picture_of_bank(base: Base, weights: AdapterWeights, shape: Shape) -> np.ndarray[Any, Any]:
    targets, text, rank, _ = shape
    bank = Bank(base, num_slots=2, max_rank=rank, target_modules=targets, text_encoder_modules=text)
    bank.set_slot(1, weights)
    pixels = generate_adapted(base, bank, [PROMPT], [SEED], [1], steps=STEPS, guidance=GUIDANCE)
    bank.close()
    return pixels[0].numpy().astype(int)


def picture_of_pipeline(pipeline: StableDiffusionPipeline) -> np.ndarray[Any, Any]:
    pipeline.set_progress_bar_config(disable=True)
    pixels = pipeline(
        PROMPT,
        num_inference_steps=STEPS,
        guidance_scale=GUIDANCE,
        generator=torch.Generator("cpu").manual_seed(SEED),
        output_type="np",
    ).images[0]
    return (pixels * 255).round().astype(int)


def assert_same_picture(found: np.ndarray[Any, Any], wanted: np.ndarray[Any, Any]) -> None:
    assert np.abs(found - wanted).max() <= 1


def assert_same_weights(found: AdapterWeights, wanted: AdapterWeights) -> None:
    assert found.layers.keys() == wanted.layers.keys()
    for name, layer in wanted.layers.items():
        assert found.alphas[name] == pytest.approx(wanted.alphas[name])
        assert torch.equal(found.layers[name].down, layer.down)
        assert torch.equal(found.layers[name].up, layer.up)


@pytest.fixture
def record() -> AdapterRecord:
    return AdapterRecord(
        job_key="0123abcd",
        subject_id="tom",
        name="tom the cat",
        class_noun="cat",
        instance_prompt="a photo of sks cat",
        class_prompt="a photo of a cat",
        base_id="tiny",
        base_fingerprint="f" * 64,
        recipe=Recipe(rank=4, alpha=16.0),
        photo_digests=("a" * 64, "b" * 64),
        loss_curve=(0.5, 0.4),
        quality={"subject": 0.71, "note": "good"},
        steps_trained=800,
        gpu_seconds=7.5,
    )


@pytest.fixture(params=SHAPES)
def shape(request: pytest.FixtureRequest) -> Shape:
    return SHAPES[request.param]


def test_the_diffusers_form_generates_the_same_image_in_plain_diffusers(
    base: Base, record: AdapterRecord, tmp_path: Path, shape: Shape
) -> None:
    weights = random_adapter(base, shape)
    wanted = picture_of_bank(base, weights, shape)
    save_adapter(tmp_path, weights, record, base)
    pipeline = load_base("tiny").pipeline()
    bare = picture_of_pipeline(pipeline)
    pipeline.load_lora_weights(tmp_path)
    assert_same_picture(picture_of_pipeline(pipeline), wanted)
    assert np.abs(bare - wanted).max() > 10


def test_the_kohya_form_generates_the_same_image_in_plain_diffusers(
    base: Base, record: AdapterRecord, tmp_path: Path
) -> None:
    # diffusers' own reader of kohya files knows attention, but not every other layer
    shape = SHAPES["text"][0], ("q_proj", "v_proj", "out_proj"), 4, 12.0
    weights = random_adapter(base, shape)
    wanted = picture_of_bank(base, weights, shape)
    save_adapter(tmp_path, weights, record, base)
    pipeline = load_base("tiny").pipeline()
    pipeline.load_lora_weights(tmp_path, weight_name="tom_the_cat.kohya.safetensors")
    assert_same_picture(picture_of_pipeline(pipeline), wanted)


def test_the_kohya_form_generates_the_same_image_merged_as_web_uis_merge_it(
    base: Base, record: AdapterRecord, tmp_path: Path, shape: Shape
) -> None:
    weights = random_adapter(base, shape)
    wanted = picture_of_bank(base, weights, shape)
    save_adapter(tmp_path, weights, record, base, forms=["kohya"])
    tensors = load_file(tmp_path / "tom_the_cat.kohya.safetensors")
    pipeline = load_base("tiny").pipeline()
    merged = 0
    for prefix, root, level in (
        ("lora_unet_", pipeline.unet, ""),
        ("lora_te_text_model_", pipeline.text_encoder, "text_model."),
    ):
        for path, module in root.named_modules():
            name = prefix + path.removeprefix(level).replace(".", "_")
            if f"{name}.alpha" not in tensors:
                continue
            down, up = tensors[f"{name}.lora_down.weight"], tensors[f"{name}.lora_up.weight"]
            scale = tensors[f"{name}.alpha"].item() / down.shape[0]
            delta = (up.flatten(1) @ down.flatten(1)).reshape(module.weight.shape)
            module.weight.data += scale * delta
            merged += 3
    assert merged == len(tensors)
    assert_same_picture(picture_of_pipeline(pipeline), wanted)


@pytest.mark.proves("Stable Diffusion 1.x and 2.x", "PEFT file")
def test_the_peft_form_generates_the_same_image_in_peft(
    base: Base, record: AdapterRecord, tmp_path: Path, shape: Shape
) -> None:
    weights = random_adapter(base, shape)
    wanted = picture_of_bank(base, weights, shape)
    save_adapter(tmp_path, weights, record, base, forms=["peft"])
    pipeline = load_base("tiny").pipeline()
    PeftModel.from_pretrained(pipeline.unet, tmp_path / "peft")
    if shape[1]:
        PeftModel.from_pretrained(pipeline.text_encoder, tmp_path / "peft" / "text_encoder")
    assert_same_picture(picture_of_pipeline(pipeline), wanted)


@pytest.fixture
def trained(shape: Shape) -> tuple[StableDiffusionPipeline, PeftModel, PeftModel | None]:
    """A pipeline under peft's own LoRA with random weights: what another trainer would hold."""
    targets, text, rank, alpha = shape
    pipeline = load_base("tiny").pipeline()
    torch.manual_seed(6)

    def adapted(module: torch.nn.Module, endings: tuple[str, ...]) -> PeftModel:
        config = LoraConfig(
            r=rank, lora_alpha=alpha, target_modules=list(endings), init_lora_weights=False
        )
        model = get_peft_model(module, config)
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                torch.nn.init.normal_(parameter, std=0.2)
        return model

    unet = adapted(pipeline.unet, targets)
    return pipeline, unet, adapted(pipeline.text_encoder, text) if text else None


@pytest.mark.proves("Stable Diffusion 1.x and 2.x", "diffusers file")
@pytest.mark.proves("Stable Diffusion 1.x and 2.x", "kohya file")
def test_files_of_diffusers_peft_and_kohya_load_into_a_slot_and_generate_the_same_image(
    base: Base,
    trained: tuple[StableDiffusionPipeline, PeftModel, PeftModel | None],
    tmp_path: Path,
    shape: Shape,
) -> None:
    pipeline, unet, text = trained
    wanted = picture_of_pipeline(pipeline)
    names = {"unet": unet} | ({"text_encoder": text} if text else {})
    states = {
        name: {
            key.removeprefix("base_model.model."): value
            for key, value in get_peft_model_state_dict(model).items()
        }
        for name, model in names.items()
    }
    StableDiffusionPipeline.save_lora_weights(
        tmp_path / "diffusers",
        **{
            f"{name}_lora_layers": convert_state_dict_to_diffusers(state)
            for name, state in states.items()
        },
        **_collate_lora_metadata(names),
    )
    unet.save_pretrained(tmp_path / "peft")
    if text:
        text.save_pretrained(tmp_path / "peft" / "text_encoder")
    kohya: dict[str, torch.Tensor] = {}
    for name, state in states.items():
        kohya |= convert_state_dict_to_kohya({f"{name}.{key}": state[key] for key in state})
    for key in kohya:  # diffusers writes the rank here
        if key.endswith(".alpha"):
            kohya[key] = torch.tensor(shape[3])
    save_file({key: value.contiguous() for key, value in kohya.items()}, tmp_path / "k.safetensors")

    for path in (tmp_path / "diffusers", tmp_path / "peft", tmp_path / "k.safetensors"):
        weights = load_adapter(path, base)
        assert set(weights.alphas.values()) == {shape[3]}
        assert_same_picture(picture_of_bank(base, weights, shape), wanted)


@pytest.mark.parametrize("form", ["diffusers", "peft", "kohya"])
def test_a_form_reads_back_bit_for_bit(
    base: Base, record: AdapterRecord, tmp_path: Path, shape: Shape, form: str
) -> None:
    weights = random_adapter(base, shape)
    # ranks and alphas that differ by layer survive too
    name = next(iter(weights.layers))
    layer = weights.layers[name]
    weights = AdapterWeights(
        {**weights.layers, name: LayerWeights(layer.down[:2], layer.up[:, :2])},
        {**weights.alphas, name: 0.75},
    )
    save_adapter(tmp_path, weights, record, base, forms=[form])
    bank = Bank(
        base,
        num_slots=1,
        max_rank=4,
        target_modules=shape[0],
        text_encoder_modules=shape[1],
    )
    assert_same_weights(load_adapter(tmp_path, base), weights)  # with a bank on the base, too
    bank.close()


def test_a_file_without_alphas_has_alpha_equal_to_rank(base: Base, tmp_path: Path) -> None:
    weights = random_adapter(base, SHAPES["attention"])
    names = [name.split(".", 1)[1] for name in weights.layers]
    older = {}
    for name in names:  # diffusers before PEFT
        layer = weights.layers[f"unet.{name}"]
        stem = name.removesuffix(".0")
        stem, kind = stem.rsplit(".", 1)
        older[f"unet.{stem}.processor.{kind}_lora.down.weight"] = layer.down
        older[f"unet.{stem}.processor.{kind}_lora.up.weight"] = layer.up
    save_file(older, tmp_path / "old.safetensors")
    found = load_adapter(tmp_path / "old.safetensors", base)
    assert set(found.alphas.values()) == {4.0}
    assert found.layers.keys() == weights.layers.keys()


def test_rank_stabilised_adapters_keep_their_scale(base: Base, tmp_path: Path) -> None:
    pipeline = load_base("tiny").pipeline()
    config = LoraConfig(r=4, lora_alpha=6, target_modules=["to_q"], use_rslora=True)
    get_peft_model(pipeline.unet, config).save_pretrained(tmp_path)
    weights = load_adapter(tmp_path, base)
    assert weights.scale(next(iter(weights.layers))) == pytest.approx(6 / 4**0.5)


def test_the_kohya_header_has_trigger_words_and_a_thumbnail(
    base: Base, record: AdapterRecord, tmp_path: Path
) -> None:
    weights = random_adapter(base, SHAPES["attention"])
    save_adapter(tmp_path, weights, record, base, samples=[Image.new("RGB", (600, 400), "red")])
    path = tmp_path / "tom_the_cat.kohya.safetensors"
    with safe_open(path, "pt") as file:
        header = file.metadata()
    assert header["ss_network_dim"] == "4"
    assert header["ss_network_alpha"] == "16"
    assert header["ss_network_module"] == "networks.lora"
    assert json.loads(header["ss_tag_frequency"]) == {"photos": {"sks cat": 2}}
    assert header["modelspec.sai_model_spec"] == "1.0.1"
    assert header["modelspec.trigger_phrase"] == "sks cat"
    assert header["modelspec.architecture"] == "stable-diffusion-v1/lora"
    assert header["modelspec.resolution"] == "64x64"
    assert header["modelspec.thumbnail"].startswith("data:image/jpeg;base64,")
    body = path.read_bytes()
    body = body[8 + int.from_bytes(body[:8], "little") :]
    assert header["modelspec.hash_sha256"] == "0x" + bytes_digest(body)


def test_the_folder_holds_a_record_with_every_files_digest_and_a_card(
    base: Base, record: AdapterRecord, tmp_path: Path
) -> None:
    sample = Image.new("RGB", (64, 64), "blue")
    sample.info["prompt"] = "a sks cat in space"
    weights = random_adapter(base, SHAPES["text"])
    written = save_adapter(tmp_path, weights, record, base, samples=[sample])
    present = {
        str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()
    } - {"adapter.json"}
    assert present == set(written.files)
    assert {"samples/00.png", "README.md", "peft/text_encoder/adapter_config.json"} <= present
    assert AdapterRecord.read(tmp_path) == written
    verify_files(tmp_path, written)
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.instance_prompt == "a photo of sks cat"
    assert card.data.widget[0]["output"]["url"] == "samples/00.png"
    assert {"lora", "dreambooth"} <= set(card.data.tags)
    assert "a sks cat in space" in card.text
    assert "0.710" in card.text
    (tmp_path / "README.md").write_text("changed")
    with pytest.raises(AdapterFileError, match="not the file that was published"):
        verify_files(tmp_path, written)


def spoil(kind: str, weights: AdapterWeights, path: Path) -> None:
    name, layer = next(iter(weights.layers.items()))
    good = {f"{name}.lora_A.weight": layer.down, f"{name}.lora_B.weight": layer.up}
    bad: dict[str, Callable[[], dict[str, torch.Tensor]]] = {
        "another base": lambda: {k.replace("attn1", "attn9"): v for k, v in good.items()},
        "half a layer": lambda: dict([next(iter(good.items()))]),
        "not finite": lambda: {k: v * float("nan") for k, v in good.items()},
        "no plain LoRA": lambda: {**good, f"{name}.hada_w1_a": torch.zeros(2)},
        "unlike halves": lambda: {**good, f"{name}.lora_B.weight": layer.up[:, :2]},
        "empty": dict,
    }
    save_file({k: v.contiguous() for k, v in bad[kind]().items()}, path)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("another base", "the base lacks"),
        ("half a layer", "one half"),
        ("not finite", "not finite"),
        ("no plain LoRA", "not a plain LoRA"),
        ("unlike halves", "halves of shapes"),
        ("empty", "no LoRA layer"),
    ],
)
def test_spoiled_files_are_refused_with_a_remedy(
    base: Base, tmp_path: Path, kind: str, message: str
) -> None:
    path = tmp_path / "a.safetensors"
    spoil(kind, random_adapter(base, SHAPES["attention"]), path)
    with pytest.raises(AdapterFileError, match=message) as caught:
        load_adapter(path, base)
    assert caught.value.remedy


def test_torn_missing_and_pickled_files_are_refused(
    base: Base, record: AdapterRecord, tmp_path: Path
) -> None:
    weights = random_adapter(base, SHAPES["attention"])
    save_adapter(tmp_path / "whole", weights, record, base, forms=["diffusers"])
    data = (tmp_path / "whole" / "pytorch_lora_weights.safetensors").read_bytes()
    for name, content in (
        ("torn.safetensors", data[: len(data) // 2]),
        ("noise.safetensors", b"\xff" * 100),
        ("pickled.bin", b"\x80\x04."),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(AdapterFileError):
            load_adapter(tmp_path / name, base)
    with pytest.raises(AdapterFileError, match="does not exist"):
        load_adapter(tmp_path / "nowhere.safetensors", base)
    with pytest.raises(AdapterFileError, match="several|no adapter"):
        load_adapter(tmp_path, base)
    broken = random_adapter(base, SHAPES["attention"])
    next(iter(broken.layers.values())).up[0, 0] = float("inf")
    with pytest.raises(AdapterFileError, match="not finite"):
        save_adapter(tmp_path / "broken", broken, record, base)
    assert not (tmp_path / "broken").exists()
