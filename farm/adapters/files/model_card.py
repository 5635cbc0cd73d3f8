"""The model card: a README for people and for the Hugging Face Hub.

Owns the text and its YAML front matter. The images are in ``samples/``. Names, prompts and nouns
come from users: each is escaped for the context in which it appears.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from urllib.parse import quote

from huggingface_hub import ModelCardData

from farm.adapters.file_names import DIFFUSERS_FILE
from farm.adapters.record import AdapterRecord, ImportedFile
from farm.base.names import verdict_note
from farm.recipe import Recipe

__all__ = ["model_card"]

TAGS = ["text-to-image", "diffusers", "lora", "template:sd-lora"]
TRAINED_TAG = "dreambooth"
MAX_SCORE = 1e9
"""Scores are hardly above one; a record may hold any number, also one that has no float."""
MARKUP = re.compile(r"([\\`*_{}\[\]()<>#!|~&$:@])")
"""Characters with a meaning in Markdown or HTML, or that make a link; all can be escaped."""


def model_card(
    record: AdapterRecord, samples: Sequence[tuple[str, str]], kohya_name: str | None
) -> str:
    """The card of one adapter.

    Args:
        samples: (path relative to the card, prompt) of each image.
        kohya_name: the name of the kohya file, if there is one.
    """
    trigger = f"{record.identifier} {record.class_noun}".strip()
    tags = [*TAGS, *record.base_family.tags]
    data = ModelCardData(
        base_model=record.base_id if record.base_id.count("/") == 1 else None,
        library_name="diffusers",
        pipeline_tag="text-to-image",
        tags=[*tags, TRAINED_TAG] if record.imported is None else tags,
        instance_prompt=record.instance_prompt,
        widget=[{"text": prompt or trigger, "output": {"url": path}} for path, prompt in samples]
        or None,
    )
    parts = [
        f"---\n{data.to_yaml()}\n---\n",
        f"# {_prose(record.name)}\n",
        _summary(record),
        "<Gallery />\n" if samples else "No samples were generated for this name's prompts.\n",
        *(f"![{_prose(prompt or trigger)}]({quote(path)})" for path, prompt in samples),
        f"\n## Trigger words\n\nWrite {_code(trigger)} in the prompt, as in "
        f"{_code(record.instance_prompt)}.\n",
        _usage(record, kohya_name),
        "" if record.recipe is None else _training(record, record.recipe),
        _quality(record),
        _provenance(record),
    ]
    return "\n".join(part for part in parts if part)


def _summary(record: AdapterRecord) -> str:
    about = f"A LoRA adapter for one particular {_prose(record.class_noun or 'subject')}, "
    if record.recipe is None:
        return f"{about}trained elsewhere, for {_code(record.base_id)}.\n"
    prior = " with class-specific prior preservation" if record.recipe.uses_prior else ""
    return f"{about}trained by DreamBooth{prior} on {_code(record.base_id)}.\n"


def _usage(record: AdapterRecord, kohya_name: str | None) -> str:
    pipeline = record.base_family.pipeline
    lines = [
        "## Use it\n",
        "```python",
        f"from diffusers import {pipeline}",
        "",
        f"pipeline = {pipeline}.from_pretrained({_literal(record.base_id)})",
        f'pipeline.load_lora_weights("this-folder", weight_name="{DIFFUSERS_FILE}")',
        f"picture = pipeline({_literal(record.instance_prompt)}).images[0]",
        "```\n",
    ]
    if kohya_name:
        lines.append(
            f"For A1111, Forge and ComfyUI, copy {_code(kohya_name)} into the LoRA folder.\n"
        )
    return "\n".join(lines)


def _training(record: AdapterRecord, recipe: Recipe) -> str:
    alpha = recipe.alpha if recipe.alpha is not None else recipe.rank
    ended = "" if record.stopped_because == "steps" else f" ({_prose(record.stopped_because)})"
    rows = [
        ("steps", f"{record.steps_trained} of {recipe.steps}{ended}"),
        ("rank, alpha", f"{recipe.rank}, {alpha:g}"),
        ("learning rate", f"{recipe.learning_rate:g}, {recipe.learning_rate_schedule}"),
        ("photos", str(len(record.photo_digests))),
        (
            "prior preservation",
            f"weight {recipe.prior_weight:g}, {recipe.num_prior_images} class images of "
            + _code(record.class_prompt).replace("|", "\\|")
            if recipe.uses_prior
            else "none",
        ),
        ("seed", str(recipe.seed)),
        ("time", f"{record.gpu_seconds:.1f} s of one device"),
    ]
    return _table("## Training", rows) + "\nThe complete recipe is in `adapter.json`.\n"


def _quality(record: AdapterRecord) -> str:
    card = record.quality or {}
    rows = [
        (_prose(name), f"{value:.3f}")
        for name, value in card.items()
        if isinstance(value, float | int) and not isinstance(value, bool) and abs(value) < MAX_SCORE
    ]
    note = verdict_note(record.base_id) if card else ""
    table = _table("## Quality", rows) if rows else ""
    return table + (f"\n{note}\n" if note else "")


def _provenance(record: AdapterRecord) -> str:
    made = f"created {_code(record.created)} by dreambooth-farm {_code(record.farm_version)}. "
    origin = "" if record.imported is None else _origin(record.imported)
    rights = "the file" if record.imported is not None else "the photos"
    return (
        f"## Provenance\n\n{origin}Job {_code(record.job_key)}, base fingerprint "
        f"{_code(record.base_fingerprint[:16] + '…')}, {made}"
        f"The license of the base model and the rights in {rights} also apply to this adapter.\n"
    )


def _origin(imported: ImportedFile) -> str:
    return (
        f"Imported from {_code(imported.file)}, a file in the {_prose(imported.form)} format with "
        f"sha256 {_code(imported.sha256)}. How it was trained is not known. "
    )


def _table(title: str, rows: Sequence[tuple[str, str]]) -> str:
    lines = [f"{title}\n", "| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)]
    return "\n".join(lines) + "\n"


# -- quoting --------------------------------------------------------------------------------------


def _one_line(text: str) -> str:
    """Text without line breaks and without invisible characters."""
    return "".join(letter if letter.isprintable() else "�" for letter in " ".join(text.split()))


def _prose(text: str) -> str:
    """Text escaped for Markdown prose, so that no part of it acts as markup."""
    return MARKUP.sub(r"\\\1", _one_line(text))


def _code(text: str) -> str:
    """Text as a code span with a fence longer than any run of backticks in it."""
    line = _one_line(text)
    longest = max((len(run) for run in re.findall("`+", line)), default=0)
    fence = "`" * (longest + 1)
    pad = " " if not line or line[0] == "`" or line[-1] == "`" else ""
    return f"{fence}{pad}{line}{pad}{fence}"


def _literal(text: str) -> str:
    """Text as a Python string literal on one line."""
    return json.dumps(text, ensure_ascii=False) if text.isprintable() else ascii(text)
