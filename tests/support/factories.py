"""Types of fixtures that create files for a test."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

__all__ = ["Draw", "Write"]

Draw = Callable[..., Path]
"""Saves an image under a name in the test's folder."""
Write = Callable[..., Path]
"""Saves a text under a name in the test's folder."""
