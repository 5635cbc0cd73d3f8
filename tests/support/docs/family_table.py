"""The table of model families in docs/guides/base.md, generated from the tests that prove it.

A test proves a step of families with ``@pytest.mark.proves(*families, step)``. The whole suite must
pass, so what is marked has run.

    PYTHONPATH=tests python -m support.docs.family_table
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[3]
PAGE = ROOT / "docs" / "guides" / "base.md"
BEGIN, END = "<!-- families: begin -->", "<!-- families: end -->"
STEPS = (
    "load",
    "generate",
    "train",
    "train text encoders",
    "diffusers file",
    "PEFT file",
    "kohya file",
    "serve mixed",
    "run to request",
)
GROUPS = {
    "every flow family": (
        "Z-Image",
        "FLUX.2-klein",
        "FLUX.1",
        "Stable Diffusion 3",
        "FLUX.2-dev",
        "Qwen-Image",
        "Krea 2",
    )
}
"""Names that stand for several families: tests over ``support.families.FLOW_FAMILIES``."""
NO_TEXT_ADAPTERS = "diffusers' loader reads none"
NO_KOHYA = "diffusers has no converter to prove it"
GAPS: dict[tuple[str, str], str] = {
    ("Z-Image", "train text encoders"): NO_TEXT_ADAPTERS,
    ("FLUX.2-klein", "train text encoders"): NO_TEXT_ADAPTERS,
    ("FLUX.2-dev", "train text encoders"): NO_TEXT_ADAPTERS,
    ("Qwen-Image", "train text encoders"): NO_TEXT_ADAPTERS,
    ("Krea 2", "train text encoders"): NO_TEXT_ADAPTERS,
    ("Stable Diffusion 3", "kohya file"): NO_KOHYA,
    ("Krea 2", "kohya file"): NO_KOHYA,
}
"""Why a family lacks a step: a plain sentence part, by family and step."""


def proofs() -> dict[str, set[str]]:
    """The proved steps by family, in the order in which the families are first marked."""
    found: dict[str, set[str]] = {}
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        text = path.read_text(encoding="utf-8")
        if "mark.proves(" in text:
            for family, step in _marks(ast.parse(text)):
                assert step in STEPS, f"{path}: {step!r} is no step"
                found.setdefault(family, set()).add(step)
    return dict(sorted(found.items(), key=lambda item: (not item[0].startswith("Stable"), item[0])))


def _marks(tree: ast.Module) -> Iterator[tuple[str, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            for mark in node.decorator_list:
                if isinstance(mark, ast.Call) and ast.unparse(mark.func) == "pytest.mark.proves":
                    *families, step = (ast.literal_eval(argument) for argument in mark.args)
                    for name in families:
                        yield from ((family, step) for family in GROUPS.get(name, (name,)))


def table() -> str:
    """The table as Markdown; a step without a proof is a plain no with its reason."""
    lines = [f"| | {' | '.join(STEPS)} |", f"|---|{'---|' * len(STEPS)}"]
    for family, proved in proofs().items():
        cells = [
            "yes" if step in proved else f"no{_reason(GAPS.get((family, step)))}" for step in STEPS
        ]
        lines.append(f"| {family} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _reason(reason: str | None) -> str:
    return f": {reason}" if reason else ""


def refreshed(page: str) -> str:
    """A page with the part between its markers regenerated."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    assert begin, "the page has no markers"
    assert end, "the page has no markers"
    return f"{before}{BEGIN}\n\n{table()}\n\n{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(refreshed(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
