"""Trainer, bank, engine, scores and HTTP layer do not know which family their base is of."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import farm

ROOT = Path(farm.__file__).parent
PACKAGES = ("training", "serving", "quality", "adapters/bank", "api", "cli")
WORDS = re.compile(
    r"sdxl|stable.?diffusion|flux|klein|qwen|z.?image|\bsd3|\bkrea|\bunet\b|text_encoder_[23]", re.I
)
ABOUT_FILES = {"cli/commands/import_.py"}
"""Modules about other tools' files, which are named after families."""


def words_of(path: Path) -> list[str]:
    """Family words in a module's names and strings; docstrings and comments may have them."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    documents = {
        id(node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            texts = [] if id(node) in documents else [node.value]
        elif isinstance(node, ast.Name):
            texts = [node.id]
        elif isinstance(node, ast.Attribute):
            texts = [node.attr]
        elif isinstance(node, ast.alias):
            texts = [node.name]
        elif isinstance(node, ast.ImportFrom):
            texts = [node.module or ""]
        else:
            continue
        found += [f"{path}:{node.lineno}: {text}" for text in texts if WORDS.search(text)]  # type: ignore[attr-defined]
    return found


@pytest.mark.parametrize("package", PACKAGES)
def test_no_code_above_the_base_names_a_family(package: str) -> None:
    modules = [
        path
        for path in sorted((ROOT / package).rglob("*.py"))
        if path.relative_to(ROOT).as_posix() not in ABOUT_FILES
    ]
    assert modules
    assert [word for path in modules for word in words_of(path)] == []
