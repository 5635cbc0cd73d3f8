"""How the report of a check looks in a terminal: faults by file and line, then a summary.

Owns the layout only.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from farm.intake.subject import CLASS_NOUN_FIELD, DEFAULT_CLASS_PROMPT
from farm.text.visible import visible

if TYPE_CHECKING:
    from farm.errors import Fault
    from farm.intake.check import CheckReport
    from farm.intake.subject import Subject

__all__ = ["render_faults", "render_report"]

MARKS = {"error": ("✗", "bold red"), "warning": ("!", "bold yellow")}
MAX_RECIPES = 6
"""Recipes listed in the summary; the others are counted."""
MAX_PRIOR_SETS = 3
"""Prior sets listed per recipe."""


def render_report(report: CheckReport, shown_per_kind: int | None = None) -> RenderableType:
    """The whole report: faults first, the verdict last, next to the prompt.

    Args:
        shown_per_kind: faults shown of each kind; None shows all.
    """
    parts: list[RenderableType] = []
    if report.faults:
        parts += [render_faults(report.faults, shown_per_kind), Text()]
    if report.num_trainable:
        parts += [_recipes(report.good_subjects), Text()]
    return Group(*parts, _verdict(report))


def render_faults(faults: Sequence[Fault], shown_per_kind: int | None = None) -> RenderableType:
    """Faults grouped by file and sorted by line, each followed by its remedy."""
    parts: list[RenderableType] = []
    ordered = sorted(faults, key=lambda fault: (fault.file, fault.line or 0))
    for file, group in groupby(ordered, key=lambda fault: fault.file):
        shown, hidden = _limited(list(group), shown_per_kind)
        parts.append(Text(visible(file), style="bold underline"))
        table = Table.grid(padding=(0, 1), expand=False)
        table.add_column(justify="right", style="dim", no_wrap=True, min_width=6)
        table.add_column(no_wrap=True)
        table.add_column(overflow="fold")
        for fault in shown:
            mark, style = MARKS[fault.severity]
            table.add_row(str(fault.line or ""), Text(mark, style=style), _words(fault))
            if more := hidden.get(id(fault)):
                table.add_row("", "", Text(f"… and {more:,} more like this", style="dim italic"))
        parts += [table, Text()]
    return Group(*parts[:-1])


def _words(fault: Fault) -> Text:
    text = Text()
    if fault.subject:
        text.append(visible(fault.subject), style="bold")
        text.append("  ")
    if fault.field:
        text.append(visible(_short_field(fault.field)), style="cyan")
        text.append("  ")
    text.append(visible(fault.message))
    text.append(f"\n→ {visible(fault.remedy)}", style="green")
    return text


def _short_field(field: str) -> str:
    """A field without the index of its subject, which line and id already identify."""
    return re.sub(r"^subjects\[\d+\]\.", "", field)


def _limited(faults: list[Fault], limit: int | None) -> tuple[list[Fault], dict[int, int]]:
    """The faults to show and, by the last one shown of each kind, how many more there are."""
    if limit is None:
        return faults, {id(fault): fault.count - 1 for fault in faults}
    kinds: defaultdict[tuple[str, str], list[Fault]] = defaultdict(list)
    for fault in faults:
        kinds[fault.kind].append(fault)
    kept = {id(fault) for same in kinds.values() for fault in same[:limit]}
    hidden = {
        id(same[:limit][-1]): sum(fault.count for fault in same) - len(same[:limit])
        for same in kinds.values()
    }
    return [fault for fault in faults if id(fault) in kept], hidden


def _recipes(subjects: Iterable[Subject]) -> RenderableType:
    """What would be trained: one row per recipe, with the prior sets it needs."""
    groups: defaultdict[tuple[object, ...], list[Subject]] = defaultdict(list)
    for subject in subjects:
        recipe = subject.recipe
        groups[recipe.steps, recipe.rank, recipe.learning_rate, recipe.uses_prior].append(subject)
    table = Table(box=None, pad_edge=False, padding=(0, 2), header_style="dim")
    for header in ("subjects", "photos", "steps", "rank", "learning rate"):
        table.add_column(header, justify="right")
    table.add_column("prior sets")
    ordered = sorted(groups.items(), key=lambda item: -len(item[1]))
    for (steps, rank, rate, _), group in ordered[:MAX_RECIPES]:
        photos = sum(len(subject.photos) for subject in group)
        numbers = [f"{len(group):,}", f"{photos:,}", f"{steps:,}", f"{rank}", f"{rate:g}"]
        table.add_row(*numbers, _prior_sets(group))
    parts: list[RenderableType] = [table]
    if len(ordered) > MAX_RECIPES:
        rest = sum(len(group) for _, group in ordered[MAX_RECIPES:])
        more = f"… and {len(ordered) - MAX_RECIPES} more recipes for {rest:,} subjects"
        parts.append(Text(more, style="dim italic"))
    return Padding(Group(*parts), (0, 0, 0, 2))


def _prior_sets(subjects: Iterable[Subject]) -> Text:
    """The most frequent prior sets: by class, or by the prompt of subjects that have their own."""
    counts = Counter(_prior_set(subject) for subject in subjects if subject.recipe.uses_prior)
    if not counts:
        return Text("none", style="dim")
    named = ", ".join(visible(one) for one, _ in counts.most_common(MAX_PRIOR_SETS))
    rest = len(counts) - MAX_PRIOR_SETS
    return Text(f"{len(counts)}: {named}" + (f" and {rest} more" if rest > 0 else ""))


def _prior_set(subject: Subject) -> str:
    noun = subject.class_noun
    is_usual = subject.class_prompt == DEFAULT_CLASS_PROMPT.replace(CLASS_NOUN_FIELD, noun)
    return noun if is_usual else f"“{subject.class_prompt}”"


def _verdict(report: CheckReport) -> Text:
    written = len(report.manifest.resolved)
    text = Text()
    if report.errors:
        text.append(f"✗ {_count(report.num_errors, 'error')}", style="bold red")
    else:
        text.append("✓ nothing is wrong" if not report.warnings else "✓ no errors", "bold green")
    if report.warnings:
        text.append(", ").append(_count(report.num_warnings, "warning"), style="yellow")
    text.append(f"  ·  {_count(written, 'subject')}")
    if written:
        text.append(f", {_trainable(report)}")
    size = _size(report.num_bytes)
    text.append(f"  ·  {_count(report.num_photos, 'photo')}, {size}", style="dim")
    text.append(f", {report.seconds:.1f} s", style="dim")
    captioned, photos = report.captions
    if photos:
        text.append(f"  ·  captions: {captioned:,} of {_count(photos, 'photo')}", style="dim")
    return text


def _trainable(report: CheckReport) -> str:
    """How many subjects can be trained, and what it takes."""
    if report.manifest.is_broken:
        return "none can be trained until the file is corrected"
    if not report.errors:
        return "all can be trained"
    good = report.num_trainable
    return f"{good:,} can be trained{' with --skip-faulty' if good else ''}"


def _size(num_bytes: int) -> str:
    if num_bytes < 2**20:
        return f"{num_bytes / 2**10:,.0f} KiB"
    return f"{num_bytes / 2**20:,.1f} MiB"


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"
