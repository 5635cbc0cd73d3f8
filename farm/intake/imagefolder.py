"""Importer of Hugging Face ImageFolder metadata."""

from __future__ import annotations

from farm.intake.rows import Rows

__all__ = ["read_imagefolder"]


def read_imagefolder(text: str, file: str, base: str) -> Rows:
    raise NotImplementedError
