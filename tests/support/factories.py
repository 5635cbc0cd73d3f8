"""The types of the fixtures that make files for a test."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

__all__ = ["Draw", "Write"]

Draw = Callable[..., Path]
"""Saves a picture under a name below the test's folder."""
Write = Callable[..., Path]
"""Saves a text under a name below the test's folder."""
