"""The tables of `docs/manifest.md`, generated from the models.

    python -m farm.intake.docs_tables docs/manifest.md

rewrites the part of the page between its markers; a test fails when it is stale.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from farm.intake.faults import expected
from farm.intake.schema import Defaults, Head, PhotoEntry, RunDefaults, SubjectEntry
from farm.intake.subject import PriorSettings
from farm.recipe import BASE_PRIORS, BASE_RECIPES, FAMILY_RECIPES, PRESETS, EarlyStop, Recipe

__all__ = ["refreshed", "render_tables"]

BEGIN = "<!-- made by farm.intake.docs_tables: begin -->"
END = "<!-- made by farm.intake.docs_tables: end -->"

SPECIAL = {
    "photos": "text, a list, or a mapping",
    "captions": "`files`, `none`, or a mapping of file names to captions",
    "subjects": "a list of subjects, or text",
    "sample_prompts": "a list of texts",
    "class_images": "text, or a list of texts",
    "recipe": "a mapping",
    "prior": "a mapping",
}
"""Kinds of fields that accept several forms, which a schema describes poorly."""


def render_tables() -> str:
    """All tables, in the order of a manifest."""
    own = [name for name in SubjectEntry.model_fields if name not in Defaults.model_fields]
    run_wide = [name for name in RunDefaults.model_fields if name not in Defaults.model_fields]
    sections = [
        ("## The head", _table(Head, list(Head.model_fields))),
        ("## A subject", _table(SubjectEntry, own)),
        (
            "## A subject, or `defaults`\n\nFields of a subject, or set once under "
            "`defaults` for all subjects without them.",
            _table(Defaults, list(Defaults.model_fields)),
        ),
        (
            "## `defaults` alone\n\nFields that concern all subjects of a run together.",
            _table(RunDefaults, run_wide),
        ),
        ("## A photo in a list", _table(PhotoEntry, list(PhotoEntry.model_fields))),
        ("## `recipe`", _table(Recipe, list(Recipe.model_fields), with_defaults=True)),
        (
            "## `recipe.early_stop`",
            _table(EarlyStop, list(EarlyStop.model_fields), with_defaults=True),
        ),
        (
            "## `prior`",
            _table(PriorSettings, list(PriorSettings.model_fields), with_defaults=True),
        ),
        ("## `preset`", _presets()),
    ]
    return "\n\n".join(f"{title}\n\n{table}" for title, table in sections)


def _table(model: type[BaseModel], fields: list[str], *, with_defaults: bool = False) -> str:
    header = ["field", "takes", "default", "what it is"] if with_defaults else []
    header = header or ["field", "takes", "what it is"]
    lines = [f"| {' | '.join(header)} |", f"|{'---|' * len(header)}"]
    for name in fields:
        info = model.model_fields[name]
        kind = expected(model, (name,)) if with_defaults else _kind(model, name)
        cells = [f"`{name}`", kind, *([_default(info)] if with_defaults else []), _words(info)]
        lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return "\n".join(lines)


def _kind(model: type[BaseModel], name: str) -> str:
    if model is Head and name == "class_images":
        return "a mapping of class nouns to text or lists"
    if name in SPECIAL:
        return SPECIAL[name]
    return expected(model, (name,))


def _default(info: FieldInfo) -> str:
    value = info.default
    if value is PydanticUndefined:
        return ""
    if value is None:
        return "none"
    shown = f"{value:g}" if isinstance(value, float) else json.dumps(value, default=str)
    return f"`{shown}`"


def _words(info: FieldInfo) -> str:
    text = " ".join((info.description or "").split())
    return re.sub(r"``([^`]*)``", r"`\1`", text)


def _recipes(recipes: Mapping[Any, Mapping[str, object]]) -> list[str]:
    """A table of partial recipes by name."""
    fields = list(dict.fromkeys(name for recipe in recipes.values() for name in recipe))
    lines = [
        f"| | {' | '.join(f'`{field}`' for field in fields)} |",
        f"|---|{'---|' * len(fields)}",
    ]
    for name, recipe in recipes.items():
        cells = [f"`{json.dumps(recipe[field])}`" if field in recipe else "" for field in fields]
        lines.append(f"| `{name}` | {' | '.join(cells)} |")
    return lines


def _presets() -> str:
    lines = _recipes(PRESETS)
    for base, needs in BASE_RECIPES.items():
        said = ", ".join(f"`{field}`: `{json.dumps(value)}`" for field, value in needs.items())
        lines += [
            "",
            f"They are made for Stable Diffusion. On the `{base}` base, {said} override them, "
            "and are overridden by the manifest.",
        ]
    for base, needs in BASE_PRIORS.items():
        said = ", ".join(f"`{field}`: `{json.dumps(value)}`" for field, value in needs.items())
        lines += ["", f"Class images (`prior`) of the `{base}` base start from {said}."]
    lines += [
        "",
        "Other model families start from the values of their official diffusers script. A preset "
        "overrides them, and the manifest overrides both. `farm base show` prints them for a base.",
        "",
        *_recipes(FAMILY_RECIPES),
    ]
    return "\n".join(lines)


def refreshed(page: str) -> str:
    """A page with the part between its markers regenerated.

    Raises:
        ValueError: if the markers are missing.
    """
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError("the page has no markers")
    return f"{before}{BEGIN}\n\n{render_tables()}\n\n{END}{after}"


if __name__ == "__main__":
    path = Path(sys.argv[1])
    path.write_text(refreshed(path.read_text(encoding="utf-8")), encoding="utf-8")
