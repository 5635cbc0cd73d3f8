"""The fingerprint of a base: one hash over the weights and configs that determine its output.

Copies of a model have the same fingerprint, regardless of their location and of the dtype suffix in
their file names; a changed weight or config value changes it. Safety checkers, READMEs and other
files that do not affect generated images are left out.

Hashing gigabytes takes seconds, so digests of local files are cached by path, size and
modification time in the user's cache folder; a stale entry can only cost time.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from farm.errors import BaseModelError
from farm.file_facts import cache_folder
from farm.keys import digest, file_digest

__all__ = [
    "fingerprint_build",
    "fingerprint_folder",
    "fingerprint_inputs",
    "library_version",
    "weight_files",
]

PARTS = (
    "tokenizer",
    "tokenizer_2",
    "tokenizer_3",
    "text_encoder",
    "text_encoder_2",
    "text_encoder_3",
    "vae",
    "unet",
    "transformer",
    "scheduler",
)
"""Parts of a diffusers folder that affect the generated images."""

IGNORED_CONFIG_KEYS = re.compile(r"^_|^transformers_version$|^torch_dtype$|^dtype$")
"""Provenance that tools write into configs: versions, names, dtypes."""

MAIN_WEIGHTS = re.compile(r"^(diffusion_pytorch_model|model)(-\d+-of-\d+)?\.safetensors$")
VARIANT_WEIGHTS = re.compile(r"^(diffusion_pytorch_model|model)\.fp16(-\d+-of-\d+)?\.safetensors$")

TOKENIZER_FILES = {
    "vocab.json",
    "merges.txt",
    "spiece.model",
    "tokenizer.json",
    "chat_template.jinja",
}
INDEX_KEYS = (
    "force_zeros_for_empty_prompt",
    "is_distilled",
    "patch_size",
    "text_encoder_select_layers",
)
"""Settings of ``model_index.json`` that affect the generated images."""

VERSION_FILES = {
    "diffusers": "__init__.py",
    "transformers": "__init__.py",
    "torch": "version.py",
}
"""Where the libraries that make a build define their ``__version__``."""


def fingerprint_folder(folder: str | Path) -> str:
    """The fingerprint of a local diffusers folder, 64 hex digits.

    Raises:
        BaseModelError: if the folder holds no part of a pipeline.
    """
    return digest(fingerprint_inputs(folder))


def fingerprint_inputs(folder: str | Path) -> dict[str, object]:
    """What the fingerprint covers: per part, the config's values and each file's sha256.

    Stored beside the adapters (``bases/<fingerprint>.json``), so that a later difference can be
    traced to a file.
    """
    root = Path(folder)
    parts: dict[str, object] = {
        part: _part_inputs(root / part) for part in PARTS if (root / part).is_dir()
    }
    if not parts:
        raise BaseModelError(
            f"{root} is not a diffusers folder: it has none of {', '.join(PARTS)}",
            "point to the folder that holds model_index.json",
        )
    with contextlib.suppress(OSError, ValueError):
        index = json.loads((root / "model_index.json").read_text())
        settings = {key: index[key] for key in INDEX_KEYS if key in index}
        if settings:
            parts["model_index"] = settings
    return parts


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of one part that are loaded, in order.

    A part may hold several variants of one model; the main one is loaded, else ``fp16``.
    """
    for pattern in (MAIN_WEIGHTS, VARIANT_WEIGHTS):
        found = sorted(path for path in folder.iterdir() if pattern.match(path.name))
        if found:
            return found
    return []


@cache
def fingerprint_build(name: str) -> str:
    """The fingerprint of a random-weight build: its name, its seed and the libraries' versions."""
    versions = [library_version(library) for library in VERSION_FILES]
    return digest({"build": name, "seed": 0, "versions": versions})


def library_version(library: str) -> str:
    """A library's ``__version__``, read from its source: importing it would take seconds.

    The version in its metadata may differ: that of torch has no ``+cu128`` on PyPI.
    """
    spec = find_spec(library)
    for folder in (spec and spec.submodule_search_locations) or ():
        with contextlib.suppress(OSError):  # as in an archive
            text = (Path(folder) / VERSION_FILES[library]).read_text(encoding="utf-8")
            if found := re.search(r"""^__version__ = ["']([^"']+)["']""", text, re.MULTILINE):
                return found[1]
    return str(import_module(library).__version__)


def _part_inputs(folder: Path) -> dict[str, object]:
    configs: dict[str, object] = {}
    # shards are named by position, so their order is their name's; digests keep that order
    weights = [_cached_digest(path) for path in weight_files(folder)]
    for path in sorted(folder.iterdir()):
        if path.name in TOKENIZER_FILES:
            configs[path.name] = _cached_digest(path)
        elif path.name in ("config.json", "scheduler_config.json"):
            configs[path.name] = _meaningful(json.loads(path.read_text()))
    return {"configs": configs, "weights": weights}


def _meaningful(value: Any) -> Any:
    """A config without its provenance, nested parts included."""
    if isinstance(value, dict):
        return {
            key: _meaningful(item)
            for key, item in value.items()
            if not IGNORED_CONFIG_KEYS.match(key)
        }
    if isinstance(value, list):
        return [_meaningful(item) for item in value]
    return value


def _cached_digest(path: Path) -> str:
    real = path.resolve()
    facts = real.stat()
    entry = cache_folder() / "digests" / f"{digest(str(real))[:32]}.json"
    known = {"size": facts.st_size, "mtime_ns": facts.st_mtime_ns, "inode": facts.st_ino}
    with contextlib.suppress(OSError, ValueError, KeyError):
        cached = json.loads(entry.read_text())
        if all(cached[name] == value for name, value in known.items()):
            return str(cached["sha256"])
    sha256 = file_digest(real)
    with contextlib.suppress(OSError):  # without a writable cache, digests are computed again
        entry.parent.mkdir(parents=True, exist_ok=True)
        aside = entry.with_suffix(f".{os.getpid()}")
        aside.write_text(json.dumps({**known, "sha256": sha256}))
        aside.replace(entry)
    return sha256
