"""PEFT settings from untrusted files: validated, matched as PEFT matches them, in linear time."""

import contextlib
import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from peft.utils.other import get_pattern_key
from support.lora_files import attention_of, change, pair, written

from farm.adapters.files.folder import load_adapter
from farm.adapters.files.lora_settings import HEADER_FIELD, LoraSettings
from farm.base.interface import Base
from farm.errors import AdapterFileError


@pytest.mark.parametrize(
    "patterns",
    [
        {"to_q": 16.0, "attn1.to_q": 2.0},
        {"attn1.to_q": 2.0, "to_q": 16.0},
        {"to_q|to_k": 16.0},
        {r"^down_blocks.*to_q": 16.0, "to_v": 3.0},
        {r"blocks\.0\..*\.(to_q|to_k)": 2.0, "to.k": 5.0, "o_q": 9.0},
        {"to_q)|(to_v": 7.0},
    ],
)
def test_patterns_are_matched_as_peft_matches_them(
    known: dict[str, tuple[int, ...]], patterns: dict[str, float]
) -> None:
    found = LoraSettings.read({"lora_alpha": 4, "alpha_pattern": patterns}, "test")
    for name in attention_of(known):
        path = name.split(".", 1)[1]
        wanted = patterns.get(get_pattern_key(patterns.keys(), path), 4.0)
        assert found.alpha_of(path, 4) == wanted, path


def test_rank_stabilised_scales_are_those_of_peft(base: Base, tmp_path: Path) -> None:
    config = LoraConfig(
        r=4, lora_alpha=6, target_modules=["to_q", "to_k"], rank_pattern={"to_q": 8},
        alpha_pattern={"attn2.to_k": 3}, use_rslora=True, init_lora_weights=False,
    )  # fmt: skip
    model = get_peft_model(base.components["unet"], config)
    model.save_pretrained(tmp_path)
    wanted = {
        f"unet.{name}": layer.get_delta_weight("default").detach()
        for name, layer in model.base_model.model.named_modules()
        if hasattr(layer, "get_delta_weight")
    }
    model.unload()
    weights = load_adapter(tmp_path, base)
    assert weights.layers.keys() == wanted.keys()
    for name, delta in wanted.items():
        assert torch.allclose(change(weights, name), delta, atol=1e-5)


def file_with(path: Path, known: dict[str, tuple[int, ...]], metadata: str) -> Path:
    name, shape = next(iter(attention_of(known).items()))
    down, up = pair(shape)
    tensors = {f"{name}.lora_A.weight": down, f"{name}.lora_B.weight": up}
    return written(path, tensors, {HEADER_FIELD: metadata})


@pytest.mark.parametrize(
    "pattern", [r"(\w+\.?)+!", r"(a*)*b", r"(.*)*(.*)*(.*)*x", r"((\w*)*\.)*!"]
)
def test_a_regular_expression_that_backtracks_for_ever_ends_at_once(
    known: dict[str, tuple[int, ...]], tmp_path: Path, pattern: str
) -> None:
    metadata = json.dumps({"unet.lora_alpha": 4, "unet.alpha_pattern": {pattern: 1}})
    path = file_with(tmp_path / "a.safetensors", known, metadata)
    started = time.monotonic()
    assert load_adapter(path, known).rank == 4
    assert time.monotonic() - started < 5


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ("[" * 100_000, "not JSON"),
        ("[]", "not a JSON object"),
        ("{", "not JSON"),
        ('{"unet.lora_alpha": "much"}', "lora_alpha"),
        ('{"unet.lora_alpha": NaN}', "lora_alpha"),
        ('{"unet.lora_alpha": [4]}', "lora_alpha"),
        ('{"unet.r": 0}', "`r`"),
        ('{"unet.alpha_pattern": 4}', "alpha_pattern"),
        ('{"unet.alpha_pattern": {"to_q": "x"}}', "alpha_pattern"),
        ('{"unet.alpha_pattern": {"(": 4}}', "cannot be used"),
        ('{"unet.alpha_pattern": {"(?!a)b": 4}}', "look-around"),
        ('{"unet.alpha_pattern": {"' + "(a|b)" * 1000 + '": 4}}', "5000 characters"),
        ('{"unet.r": ' + "9" * 400 + "}", "`r`"),
        ('{"unet.rank_pattern": {"to_q": ' + "9" * 400 + "}}", "rank_pattern"),
        ('{"unet.rank_pattern": {"to_q": -4}, "unet.use_rslora": true}', "rank_pattern"),
        ('{"unet.alpha_pattern": {"to_q": Infinity}}', "alpha_pattern"),
        ('{"unet.alpha_pattern": {"((a{99}){30})": 4}}', "cannot be used"),
        (json.dumps({"unet.alpha_pattern": {f"a{n}+": 1 for n in range(600)}}), "512"),
        ('{"unet.use_dora": true}', "DoRA"),
        ('{"unet.init_lora_weights": "pissa_niter_4"}', "changes the base's own weights"),
        ('{"unet.init_lora_weights": "lora_ga"}', "changes the base's own weights"),
        ('{"unet.peft_type": "IA3"}', "IA3 adapter"),
        ('{"unet.kasa_config": {"beta": 1}}', "sets `kasa_config`"),
        ('{"unet.use_qalora": true}', "sets `use_qalora`"),
        ('{"unet.alora_invocation_tokens": [1, 2]}', "sets `alora_invocation_tokens`"),
    ],
)
def test_malformed_settings_are_the_adapters_fault(
    known: dict[str, tuple[int, ...]], tmp_path: Path, metadata: str, message: str
) -> None:
    path = file_with(tmp_path / "a.safetensors", known, metadata)
    with pytest.raises(AdapterFileError) as caught:
        load_adapter(path, known)
    assert message in str(caught.value)


plain = st.none() | st.booleans() | st.floats() | st.text(max_size=8) | st.integers()
values = st.recursive(
    plain, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner)
)
fields = st.sampled_from(
    ["r", "lora_alpha", "alpha", "alpha_pattern", "rank_pattern", "use_rslora", "use_dora"]
)


@settings(max_examples=150, deadline=None)
@given(metadata=st.dictionaries(fields.map("unet.{}".format), values, max_size=4))
def test_no_settings_raise_anything_but_the_adapters_fault(
    known: dict[str, tuple[int, ...]],
    tmp_path_factory: pytest.TempPathFactory,
    metadata: dict[str, Any],
) -> None:
    folder = tmp_path_factory.getbasetemp()
    path = file_with(folder / "fuzzed.safetensors", known, json.dumps(metadata))
    with contextlib.suppress(AdapterFileError):
        assert load_adapter(path, known).is_finite
