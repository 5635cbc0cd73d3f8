"""Names derived from content: digests of values and files, keys of jobs and prior sets, seeds.

A key hashes exactly the inputs that determine the result, so that finished work is found and never
repeated. All functions are pure, except that ``file_digest`` reads a file.
"""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path

__all__ = ["bytes_digest", "canonical_json", "derive_seed", "digest", "file_digest", "key_of"]

KEY_LENGTH = 32
"""Hex digits of a job or prior key: 128 bits, short enough for a path."""


def canonical_json(value: object) -> str:
    """Serialise plain values so that equal values give equal text.

    Raises:
        ValueError: for NaN and infinity, which JSON cannot represent.
        TypeError: for anything but dict, list, tuple, str, int, float, bool and None.
    """
    _refuse_inexact(value)
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)


def _refuse_inexact(value: object) -> None:
    """Refuse what JSON cannot represent or would turn into something else. Concrete types, because
    every subject's key passes through here, and no others can be encoded."""
    if isinstance(value, (str, int)) or value is None:
        return
    if isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                raise TypeError(f"key {key!r} is not a string")
            _refuse_inexact(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            _refuse_inexact(item)
    elif isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{value} cannot be part of a key")


def bytes_digest(data: bytes) -> str:
    """The sha256 of bytes, 64 hex digits."""
    return hashlib.sha256(data).hexdigest()


def digest(value: object) -> str:
    """The sha256 of a plain value's canonical JSON, 64 hex digits."""
    return bytes_digest(canonical_json(value).encode())


def file_digest(path: str | Path) -> str:
    """The sha256 of a local file's bytes, 64 hex digits, read in bounded memory."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def key_of(kind: str, **inputs: object) -> str:
    """The key of one piece of work: 32 hex digits over its kind and all its inputs."""
    return digest({"kind": kind, **inputs})[:KEY_LENGTH]


def derive_seed(*parts: str | int) -> int:
    """A 63-bit seed from a path of names and numbers, such as ``(job seed, "noise", step)``.

    Adjacent parts give unrelated seeds, so that random streams do not overlap.
    """
    return int.from_bytes(hashlib.sha256(canonical_json(list(parts)).encode()).digest()[:8]) >> 1
