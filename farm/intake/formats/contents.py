"""What a text begins with: a manifest, or kohya's dataset config, whatever its file is called."""

from __future__ import annotations

import re

__all__ = ["is_dataset_config", "is_document", "is_yaml"]

_TOML = re.compile(r"\s*(?:#[^\n]*\n\s*)*\[\[?\s*(?:general|datasets)\s*\]\]?\s*(?:#|\n|\Z)")
_YAML = re.compile(r"(?:---\s*\n)?\s*(?:#[^\n]*\n\s*)*(?:version|defaults|subjects)\s*:")
_JSON = re.compile(r'\s*\{\s*"(?:version|defaults|subjects|general|datasets)"\s*:')


def is_dataset_config(text: str) -> bool:
    """Whether a text is TOML with the datasets of kohya's scripts."""
    return _TOML.match(text) is not None


def is_yaml(text: str) -> bool:
    """Whether a text is a manifest as YAML."""
    return _YAML.match(text) is not None


def is_document(text: str) -> bool:
    """Whether a text is a manifest or dataset config in any of these forms."""
    return is_dataset_config(text) or is_yaml(text) or _JSON.match(text) is not None
