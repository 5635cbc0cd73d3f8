"""Safetensors files whose headers lie: read as an adapter or refused as one, and nothing else."""

from __future__ import annotations

import json
import struct
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from farm.adapters.files.read import describe_file, read_adapter_file
from farm.errors import AdapterFileError

NAME = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
SIZES = {"F32": 4, "F16": 2, "BF16": 2, "F64": 8, "I64": 8, "U16": 2, "U64": 8, "BOOL": 1}
SIZES |= {"F8_E4M3": 1, "F8_E5M2": 1, "C64": 8, "F4": 1, "F6_E2M3": 1, "F8_E8M0": 1, "NONE": 4}
KEYS = (
    f"{NAME}.lora_A.weight", f"{NAME}.lora_B.weight", f"{NAME}.alpha", f"{NAME}.lora.down.weight",
    f"{NAME}.lora.up.weight", f"{NAME}.hada_w1_a", f"{NAME}.hada_w1_b", f"{NAME}.lokr_w1",
    f"{NAME}.lokr_w2", f"{NAME}.lokr_t2", f"{NAME}.lora_mid.weight", f"{NAME}.dora_scale", "", "\0",
    "lora_unet_x.lora_down.weight", "emb_params", "a" * 5_000, ".lora_A" * 500, "\x1b[2J", "../x",
)  # fmt: skip
DIMENSIONS = st.sampled_from([0, 1, 2, 4, 8, 2**31, 2**62, 2**64])
ODD: st.SearchStrategy[Any] = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats(), st.text(max_size=5),
    st.lists(st.integers(-3, 3), max_size=3),
)  # fmt: skip
TENSOR = st.fixed_dictionaries(
    {
        "dtype": st.one_of(st.sampled_from(sorted(SIZES)), ODD),
        "shape": st.one_of(st.lists(DIMENSIONS, max_size=4), ODD),
        "data_offsets": st.one_of(
            st.tuples(st.integers(0, 600), st.integers(0, 600)), st.just([0, 2**63]), ODD
        ),
    }
)
ADAPTER_METADATA = st.one_of(
    st.text(max_size=20),
    st.recursive(ODD, lambda it: st.dictionaries(st.text(max_size=12), it, max_size=3)).map(
        lambda it: json.dumps(it, default=str)
    ),
    st.just("[" * 5_000),
    st.just(json.dumps({"unet.r": 10**400, "unet.lora_alpha": 1e999})),
    st.just(json.dumps({"unet.alpha_pattern": {"(a+)+$": 1, "^" * 4_000: 2}, "unet.r": 4})),
)
BOUNDED = settings(
    max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def whole(tensors: dict[str, tuple[str, list[int]]]) -> bytes:
    """A file whose offsets are right."""
    header, at = {}, 0
    for name, (dtype, shape) in tensors.items():
        size = SIZES[dtype]
        for side in shape:
            size *= side
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + size]}
        at += size
    return packed(json.dumps(header).encode(), bytes(at))


def packed(header: bytes, body: bytes) -> bytes:
    return struct.pack("<Q", len(header)) + header + body


def is_judged(path: Path, data: bytes) -> None:
    """Both readers end, with the adapter or with its fault."""
    path.write_bytes(data)
    with suppress(AdapterFileError):
        read_adapter_file(path, [NAME])
    with suppress(AdapterFileError):
        describe_file(path)


@BOUNDED
@given(
    tensors=st.dictionaries(st.sampled_from(KEYS), TENSOR, max_size=4),
    metadata=st.one_of(st.none(), st.dictionaries(st.text(max_size=5), ODD, max_size=2)),
    body=st.sampled_from([b"", bytes(64), bytes(600)]),
)
def test_lying_headers_are_refused(
    tmp_path: Path, tensors: dict[str, Any], metadata: Any, body: bytes
) -> None:
    header = {**tensors} if metadata is None else {"__metadata__": metadata, **tensors}
    is_judged(tmp_path / "x.safetensors", packed(json.dumps(header).encode(), body))


@BOUNDED
@given(
    kinds=st.dictionaries(
        st.sampled_from(KEYS),
        st.tuples(
            st.sampled_from(sorted(SIZES)), st.lists(st.sampled_from([0, 1, 2, 4, 8]), max_size=4)
        ),
        min_size=1,
        max_size=5,
    )
)
def test_consistent_files_of_any_types_and_shapes_are_judged(
    tmp_path: Path, kinds: dict[str, tuple[str, list[int]]]
) -> None:
    is_judged(tmp_path / "x.safetensors", whole(kinds))


@BOUNDED
@given(text=ADAPTER_METADATA)
def test_any_adapter_metadata_is_judged(tmp_path: Path, text: str) -> None:
    pair = whole({KEYS[0]: ("F32", [4, 8]), KEYS[1]: ("F32", [8, 4])})
    length = 8 + int.from_bytes(pair[:8], "little")
    header = json.loads(pair[8:length]) | {"__metadata__": {"lora_adapter_metadata": text}}
    is_judged(tmp_path / "x.safetensors", packed(json.dumps(header).encode(), pair[length:]))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0" * 7,
        struct.pack("<Q", 2**63) + b"{}",
        struct.pack("<Q", 2**64 - 1) + b"{}",
        packed(b"{", b""),
        packed(b"[" * 100_000, b""),
        packed(b'{"a":' * 100_000, b""),
        packed(b"\xff\xfe{}", b""),
        packed(b'{"a": 1, "a": 2}', b""),
        packed(b"{}" + b" " * 1_000_000, b""),
        packed(
            b'{"%b": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},'
            b' "%b": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}' % (b"x", b"y"),
            bytes(4),
        ),
    ],
)
def test_files_that_are_no_safetensors_are_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(data)
    with pytest.raises(AdapterFileError):
        read_adapter_file(path, [NAME])
