"""Importer of kohya-ss ``dataset_config`` TOML files."""

from __future__ import annotations

from farm.intake.rows import Rows

__all__ = ["read_kohya"]


def read_kohya(text: str, file: str, base: str) -> Rows:
    raise NotImplementedError
