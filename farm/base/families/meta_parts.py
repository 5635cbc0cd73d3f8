"""The models of a diffusers folder without their weights, for facts that need shapes alone.

Owns building them from their configs on torch's meta device, and the check that the files of their
weights can be read.
"""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import PreTrainedModel

from farm.base.fingerprint import PARTS, weight_files

__all__ = ["meta_parts"]


def meta_parts(folder: Path) -> dict[str, Any]:
    """The folder's models on the meta device, by part; the headers of their weights are read.

    Raises:
        OSError, ValueError, SafetensorError: if a config or a header cannot be read.
    """
    index = json.loads((folder / "model_index.json").read_text())
    parts = {}
    for name, entry in index.items():
        weights = weight_files(folder / name) if name in PARTS and (folder / name).is_dir() else []
        if not weights:
            continue
        for path in weights:
            with safe_open(path, framework="pt"):
                pass
        library, cls_name = entry
        cls = getattr(import_module(library), cls_name)
        with torch.device("meta"):
            if issubclass(cls, PreTrainedModel):
                parts[name] = cls(cls.config_class.from_pretrained(folder / name))
            else:
                parts[name] = cls.from_config(cls.load_config(folder / name))
    return parts
