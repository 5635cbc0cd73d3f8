"""The index of a large run's subjects, from which the browser fills the overview's table.

Owns its form: JSON in columns, rows in the order of the first page, texts that recur by index. A
hundred thousand subjects take about five megabytes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from farm.quality.report.subject import SubjectRow
from farm.text.durations import duration
from farm.text.visible import visible_lines

__all__ = ["index_of", "slug"]


def index_of(rows: Sequence[SubjectRow]) -> dict[str, Any]:
    """The index of rows, in their order. Scores are whole per cent, None where there is none."""
    nouns, noun = _by_index(rows, lambda row: visible_lines(row.class_noun))
    spaces, space = _by_index(rows, lambda row: visible_lines(row.namespace))
    verdicts, verdict = _by_index(rows, lambda row: row.verdict)
    times, time = _by_index(rows, lambda row: duration(row.seconds) if row.seconds else "–")
    return {
        "names": [visible_lines(row.name) for row in rows],
        "numbers": [row.number for row in rows],
        "nouns": nouns,
        "noun": noun,
        "spaces": spaces,
        "space": space,
        "verdicts": verdicts,
        "slugs": [slug(label) for label in verdicts],
        "verdict": verdict,
        "gain": [_percent(row.likeness) for row in rows],
        "prompt": [_percent(row.prompt_followed) for row in rows],
        "kept": [_percent(row.class_kept) for row in rows],
        "steps": [row.steps_trained for row in rows],
        "seconds": [round(row.seconds, 1) for row in rows],
        "times": times,
        "time": time,
        "reused": [at for at, row in enumerate(rows) if row.was_reused],
    }


def slug(label: str) -> str:
    """A verdict as a CSS class."""
    return "".join(letter if letter.isalnum() else "-" for letter in label)


def _by_index(
    rows: Sequence[SubjectRow], text: Callable[[SubjectRow], str]
) -> tuple[list[str], list[int]]:
    """The distinct texts, and the index of each row's text."""
    numbers: dict[str, int] = {}
    indexes = [numbers.setdefault(text(row), len(numbers)) for row in rows]
    return list(numbers), indexes


def _percent(value: float | None) -> int | None:
    return None if value is None else round(100 * value)
