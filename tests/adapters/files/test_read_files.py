"""Files of other tools: every layer has the strength that the other tool gives it, or the file is
refused with the reason."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import LoHaConfig, LoKrConfig, get_peft_model
from support.lora_files import attention_of, change, kohya_name, pair, written
from torch import Tensor

from farm.adapters.files.folder import load_adapter
from farm.base.interface import Base
from farm.errors import AdapterFileError

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
LINEAR = ["to_q", "to_out.0", "ff.net.2"]
CONVOLUTIONS = ["conv1", "proj_in", "conv_shortcut", "to_k"]


@pytest.mark.parametrize(
    ("weight_key", "alpha_key"),
    [
        ("{plain}.lora_{half}.weight", "{plain}.alpha"),
        ("base_model.model.{path}.lora_{half}.weight", "base_model.model.{path}.alpha"),
        ("base_model.model.{path}.lora_{half}.weight", "{plain}.alpha"),
        ("unet.base_model.model.{path}.lora_{half}.weight", "{kohya}.alpha"),
        ("{plain}.lora_{half}.default_0.weight", "{path}.alpha"),
        ("{kohya}.lora_{word}.weight", "{kohya}.alpha"),
        ("{plain}.lora.{word}.weight", "{plain}.lora.alpha"),
    ],
)
def test_an_alpha_finds_its_layer_whatever_prefix_the_keys_carry(
    known: dict[str, tuple[int, ...]], tmp_path: Path, weight_key: str, alpha_key: str
) -> None:
    tensors, wanted = {}, {}
    for name, shape in attention_of(known).items():
        down, up = pair(shape)
        words = {"plain": name, "path": name.split(".", 1)[1], "kohya": kohya_name(name)}
        tensors[weight_key.format(**words, half="A", word="down")] = down
        tensors[weight_key.format(**words, half="B", word="up")] = up
        tensors[alpha_key.format(**words)] = torch.tensor(1.0)
        wanted[name] = up @ down / 4
    weights = load_adapter(written(tmp_path / "a.safetensors", tensors), known)
    assert weights.layers.keys() == wanted.keys()
    for name, delta in wanted.items():
        assert torch.allclose(change(weights, name), delta, atol=1e-5)


def two_layers(known: dict[str, tuple[int, ...]]) -> tuple[dict[str, Tensor], str, str]:
    (first, shape), (second, _) = list(attention_of(known).items())[:2]
    down, up = pair(shape)
    return {f"{first}.lora_A.weight": down, f"{first}.lora_B.weight": up}, first, second


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (lambda a, b: {f"{b}.alpha": torch.tensor(1.0)}, "belongs to no layer"),
        (lambda a, b: {"unet.nowhere.to_q.alpha": torch.tensor(1.0)}, "belongs to no layer"),
        (
            lambda a, b: {f"{a}.alpha": torch.tensor(1.0), f"{kohya_name(a)}.alpha": torch.ones(())
                          * 2},
            "two alphas",
        ),
        (lambda a, b: {f"{a}.alpha": torch.ones(3)}, "not one number"),
        (lambda a, b: {f"{a}.alpha": torch.tensor(math.nan)}, "not finite"),
        (
            lambda a, b: {f"{a}.lora_A.tom.weight": torch.ones(4, 16)},
            "several adapters: one without a name, tom",
        ),
        (
            lambda a, b: {"bundle_emb.sks.string_to_param.*": torch.ones(2, 16)},
            "text embedding 'sks'",
        ),
        (lambda a, b: {f"{a}.dora_scale": torch.ones(4)}, "DoRA"),
        (lambda a, b: {f"{a}.lora_magnitude_vector": torch.ones(4)}, "DoRA"),
        (lambda a, b: {f"{a}.diff": torch.ones(4)}, "whole weights"),
        (lambda a, b: {f"{a}.hada_w1_a": torch.ones(4, 4)}, "not a plain LoRA"),
        (lambda a, b: {f"{b}.lokr_w1": torch.ones(4, 4)}, "lokr_w2_a' is missing"),
        (lambda a, b: {f"{b}.oft_blocks": torch.ones(4, 4)}, "OFT"),
        (lambda a, b: {"something": torch.ones(4)}, "is unknown"),
    ],
)  # fmt: skip
def test_what_would_change_a_layers_strength_in_silence_is_an_error(
    known: dict[str, tuple[int, ...]],
    tmp_path: Path,
    more: Callable[[str, str], dict[str, Tensor]],
    message: str,
) -> None:
    tensors, first, second = two_layers(known)
    path = written(tmp_path / "a.safetensors", tensors | more(first, second))
    with pytest.raises(AdapterFileError, match=message) as caught:
        load_adapter(path, known)
    assert caught.value.remedy


def test_an_embedding_alone_is_called_what_it_is(
    known: dict[str, tuple[int, ...]], tmp_path: Path
) -> None:
    path = written(tmp_path / "e.safetensors", {"emb_params": torch.ones(2, 16)})
    with pytest.raises(AdapterFileError, match="textual-inversion embedding"):
        load_adapter(path, known)


def test_two_adapters_in_one_file_are_named(
    known: dict[str, tuple[int, ...]], tmp_path: Path
) -> None:
    tensors = {}
    for adapter in ("tom", "rex"):
        name, shape = next(iter(attention_of(known).items()))
        down, up = pair(shape)
        tensors[f"{name}.lora_A.{adapter}.weight"] = down
        tensors[f"{name}.lora_B.{adapter}.weight"] = up
    with pytest.raises(AdapterFileError, match="several adapters: rex, tom"):
        load_adapter(written(tmp_path / "a.safetensors", tensors), known)


def test_other_shapes_are_refused_with_the_layer_and_both_shapes(
    known: dict[str, tuple[int, ...]], tmp_path: Path
) -> None:
    name = next(name for name in known if name.endswith("attn2.to_k"))
    outputs, inputs = known[name]
    down, up = pair((outputs, inputs * 2))
    tensors = {f"{name}.lora_A.weight": down, f"{name}.lora_B.weight": up}
    with pytest.raises(AdapterFileError) as caught:
        load_adapter(written(tmp_path / "a.safetensors", tensors), known)
    assert name in caught.value.message
    assert f"{outputs} x {2 * inputs}" in caught.value.message
    assert f"{outputs} x {inputs}" in caught.value.message


def test_kernels_of_one_cell_may_be_written_with_or_without_the_kernel(
    known: dict[str, tuple[int, ...]], tmp_path: Path
) -> None:
    linear = next(name for name in known if name.endswith("to_q"))
    convolution = next(name for name, shape in known.items() if shape[2:] == (1, 1))
    (down, up), (other_down, other_up) = (
        pair(known[linear]),
        pair(known[convolution][:2]),
    )
    tensors = {
        f"{linear}.lora_A.weight": down[:, :, None, None],
        f"{linear}.lora_B.weight": up[:, :, None, None],
        f"{convolution}.lora_A.weight": other_down,
        f"{convolution}.lora_B.weight": other_up,
    }
    weights = load_adapter(written(tmp_path / "a.safetensors", tensors), known)
    assert weights.layers[linear].down.shape == (4, known[linear][1])
    assert weights.layers[convolution].down.shape[2:] == (1, 1)
    assert torch.allclose(change(weights, convolution), other_up @ other_down, atol=1e-5)


# -- LyCORIS --------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["peft folder", "raw state dict", "kohya"])
@pytest.mark.parametrize(
    "config",
    [
        LoHaConfig(r=3, alpha=5, target_modules=LINEAR),
        LoHaConfig(r=3, alpha=6, target_modules=CONVOLUTIONS, rank_pattern={"conv1": 2}),
        LoHaConfig(r=2, alpha=1, target_modules=CONVOLUTIONS, use_effective_conv2d=True),
        LoHaConfig(r=20, alpha=4, target_modules=["to_q"]),
        LoKrConfig(r=2, alpha=6, target_modules=LINEAR, decompose_both=True, decompose_factor=4),
        LoKrConfig(r=64, alpha=32, target_modules=["to_q", "proj_in"], alpha_pattern={"to_q": 16}),
        LoKrConfig(r=2, alpha=3, target_modules=CONVOLUTIONS),
        LoKrConfig(r=2, alpha=3, target_modules=CONVOLUTIONS, use_effective_conv2d=True),
    ],
    ids=["loha", "loha-conv", "loha-cp", "loha-wide", "lokr", "lokr-whole", "lokr-conv", "lokr-cp"],
)
def test_loha_and_lokr_become_the_low_rank_pairs_that_peft_computes(
    base: Base, tmp_path: Path, config: LoHaConfig | LoKrConfig, form: str
) -> None:
    torch.manual_seed(3)
    config.init_weights = False
    model = get_peft_model(base.components["unet"], config)
    wanted, tensors = {}, {}
    for name, layer in model.base_model.model.named_modules():
        if not hasattr(layer, "get_delta_weight"):
            continue
        wanted[f"unet.{name}"] = layer.get_delta_weight("default").detach().flatten(1)
        prefix = kohya_name(f"unet.{name}")
        scaling = layer.scaling["default"]
        rank = layer.r["default"]
        for part in layer.adapter_layer_names:
            held = getattr(layer, part)
            if "default" in held:
                tensors[f"{prefix}.{part}"] = held["default"].detach()
        is_whole = f"{prefix}.lokr_w1" in tensors and f"{prefix}.lokr_w2" in tensors
        tensors[f"{prefix}.alpha"] = torch.tensor(float(scaling * rank))
        if is_whole:  # LyCORIS scales whole factors by one
            tensors[f"{prefix}.lokr_w1"] = tensors[f"{prefix}.lokr_w1"] * scaling
    path = tmp_path
    if form == "peft folder":
        model.save_pretrained(tmp_path)
    elif form == "kohya":
        path = written(tmp_path / "k.safetensors", tensors)
    else:
        # one without its settings has alpha = rank, as diffusers takes it
        mark = "hada_" if isinstance(config, LoHaConfig) else "lokr_"
        raw = {key: value for key, value in model.state_dict().items() if mark in key}
        path = written(tmp_path / "raw.safetensors", raw)
        for name in wanted:
            layer = model.get_submodule(f"base_model.model.{name.removeprefix('unet.')}")
            wanted[name] = wanted[name] / layer.scaling["default"]
    model.unload()
    weights = load_adapter(path, base)
    assert weights.layers.keys() == wanted.keys()
    for name, delta in wanted.items():
        found = change(weights, name)
        assert torch.allclose(found, delta, atol=1e-4 * float(delta.abs().max())), name


def test_what_no_slot_could_hold_is_refused_before_it_is_computed(tmp_path: Path) -> None:
    name, wide = "unet.to_q", 1280
    tensors = {
        f"{name}.lokr_w1": torch.ones(4, 4),
        f"{name}.lokr_w2": torch.ones(wide // 4, wide // 4),
    }
    with pytest.raises(AdapterFileError, match="would have rank 1280; 256 is the largest"):
        load_adapter(written(tmp_path / "k.safetensors", tensors), {name: (wide, wide)})


@pytest.mark.parametrize(
    "parts",
    [
        {"lokr_w1": torch.ones(60_000, 1), "lokr_w2": torch.ones(60_000, 1)},
        {
            "lora_down.weight": torch.ones(1, 60_000),
            "lora_mid.weight": torch.ones(1, 1, 200, 200),
            "lora_up.weight": torch.ones(4, 1),
        },
    ],
    ids=["a Kronecker product", "a core"],
)
def test_small_parts_that_multiply_to_gigabytes_are_refused_by_their_shapes(
    parts: dict[str, Tensor], tmp_path: Path
) -> None:
    path = written(
        tmp_path / "k.safetensors", {f"unet.to_q.{name}": part for name, part in parts.items()}
    )
    with pytest.raises(AdapterFileError, match="unpacks to [0-9,]+ numbers, more than any layer"):
        load_adapter(path, {"unet.to_q": (8, 8)})


def test_a_core_between_the_halves_is_multiplied_in(
    known: dict[str, tuple[int, ...]], tmp_path: Path
) -> None:
    name = next(name for name, shape in known.items() if name.endswith("conv1"))
    outputs, inputs = known[name][:2]
    down, core, up = (
        torch.randn(3, inputs, 1, 1),
        torch.randn(3, 3, 3, 3),
        torch.randn(outputs, 3, 1, 1),
    )
    prefix = kohya_name(name)
    tensors = {
        f"{prefix}.lora_down.weight": down,
        f"{prefix}.lora_mid.weight": core,
        f"{prefix}.lora_up.weight": up,
        f"{prefix}.alpha": torch.tensor(1.5),
    }
    weights = load_adapter(written(tmp_path / "k.safetensors", tensors), known)
    pixels = torch.randn(1, inputs, 8, 8)
    layer = weights.layers[name]
    conv = torch.nn.functional.conv2d
    wanted = conv(conv(conv(pixels, down), core, padding=1), up) * 0.5
    found = conv(conv(pixels, layer.down, padding=1), layer.up) * weights.scale(name)
    assert torch.allclose(found, wanted, atol=1e-4)


def test_a_git_lfs_pointer_is_called_one(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n")
    with pytest.raises(AdapterFileError, match="Git LFS pointer"):
        load_adapter(path, {})
