"""Renders a run's view as HTML: one file, or an overview and parts of a large run.

Owns the templates, their security policy (no network, no inline script except the page's own, every
value escaped) and the writing of a file. The content comes from ``view.py``.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from itertools import islice
from pathlib import Path
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup, escape

from farm.local_files import write_file
from farm.quality.report import curve
from farm.quality.report.row_index import index_of, slug
from farm.quality.report.view import LaneSpan, RunView, SpanEnd, SubjectRow, SubjectView
from farm.quality.verdict import CLASS_PRESERVATION, PROMPT_FIDELITY, SIMILARITY
from farm.text.durations import duration
from farm.text.visible import visible_lines

__all__ = ["Part", "part_name", "render", "render_overview", "render_part", "write_report"]

LANE_WIDTH = 1000
SHOWN_LANES = 100
MOST_BARS = 120
"""Bars of a lane's timeline; more would overlap."""
BAR_NOTES: dict[SpanEnd, str] = {"ok": "", "stopped": ": not finished", "bad": ": failed"}
SHOWN_FAILURES = 50
"""Reasons listed at the top of the page."""
FIRST_ROWS = 25
"""Rows that a large run's table shows before its index is read; a page of the table."""
Bar = tuple[float, float, str, SpanEnd]
SCORE_NAMES = {"gain": SIMILARITY, "prompt": PROMPT_FIDELITY, "kept": CLASS_PRESERVATION}
_OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]*(?: [\d.]*\d)?")
"""A command's option and its number; a line break inside would make it unreadable."""
_CODE = re.compile(r"`([^`\n]+)`")


@dataclass(frozen=True)
class Part:
    """A page with some of the subjects of a large run."""

    number: int
    num_parts: int
    offset: int
    """Subjects on earlier pages."""
    total: int
    """Subjects of the run."""
    last: int
    """Number of its last subject, from 1."""
    overview: str = "../report.html"

    @property
    def first(self) -> int:
        """Number of its first subject, from 1."""
        return self.offset + 1

    @property
    def previous(self) -> str | None:
        """The page before it."""
        return part_name(self.number - 1) if self.number else None

    @property
    def next(self) -> str | None:
        """The page after it."""
        return part_name(self.number + 1) if self.number + 1 < self.num_parts else None


def part_name(number: int) -> str:
    """The file name of a part."""
    return f"{number:04d}.html"


def render(run: RunView) -> str:
    """The whole run as one page of HTML text."""
    subjects = _whole(run)
    hrefs = {id(subject): f"#subject-{number}" for number, subject in enumerate(subjects)}
    return _page(
        run,
        best=[(hrefs[id(subject)], subject) for subject in run.best],
        rows=_numbered(subjects),
        details=_numbered(subjects),
        lane_rows=_lane_rows(run),
    )


def render_part(run: RunView, part: Part) -> str:
    """The page of some subjects; ``run`` contains only those."""
    subjects = _numbered(_whole(run), part.offset)
    return _page(run, part=part, rows=subjects, details=subjects)


def render_overview(run: RunView, href: Callable[[int], str], links: Mapping[str, Any]) -> str:
    """The first page of a large run: its figures, and a table of all subjects that the browser
    fills from an index.

    Args:
        run: with rows instead of whole subjects.
        href: the address of a subject, by its number, relative to the page.
        links: what the page's script needs to compute the same addresses.
    """
    rows = sorted((row for row in run.subjects if isinstance(row, SubjectRow)), key=_order)
    numbers = {row.job_key: row.number for row in rows}
    return _page(
        run,
        best=[(href(numbers[subject.job_key]), subject) for subject in run.best],
        rows=[(row.number, href(row.number), row) for row in rows[:FIRST_ROWS]],
        lane_rows=_lane_rows(run),
        index=_json_island(dict(links) | index_of(rows)),
    )


def _whole(run: RunView) -> list[SubjectView]:
    return [subject for subject in run.subjects if isinstance(subject, SubjectView)]


def _numbered(
    subjects: Sequence[SubjectView], offset: int = 0
) -> list[tuple[int, str, SubjectView]]:
    """(number, link, subject) of subjects on the same page."""
    numbers = range(offset, offset + len(subjects))
    return [(n, f"#subject-{n}", subject) for n, subject in zip(numbers, subjects, strict=True)]


def _order(row: SubjectRow) -> tuple[float, int]:
    return row.order


def _page(run: RunView, **content: Any) -> str:
    script, style = _asset("report.js"), _asset("report.css")
    policy = (
        "default-src 'none'; img-src data:; base-uri 'none'; form-action 'none'; "
        f"script-src '{_sha256(script)}'; style-src '{_sha256(style)}'"
    )
    empty: dict[str, Any] = {"part": None, "index": None, "best": (), "details": ()}
    return (
        _environment()
        .get_template("report.html.jinja")
        .render(
            run=run,
            policy=policy,
            # only the page's own files are marked safe; user content never is
            script=Markup(script),
            style=Markup(style),
            **(empty | content),
        )
    )


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FunctionLoader(_asset),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_shown,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["duration"] = duration
    environment.filters["slug"] = slug
    environment.filters["grouped"] = "{:,.0f}".format
    environment.filters["marked"] = _marked
    environment.globals.update(loss_plot=_plot, plot_width=curve.WIDTH, plot_height=curve.HEIGHT)
    environment.globals.update(score=SCORE_NAMES, shown_failures=SHOWN_FAILURES)
    return environment


def _json_island(value: object) -> Markup:
    """JSON inside a script element: without the characters that could end the element."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return Markup(text.replace("&", r"\u0026").replace("<", r"\u003c").replace(">", r"\u003e"))


def write_report(run: RunView, path: str | Path) -> Path:
    """Write the page, complete or not at all."""
    target = Path(path)
    write_file(target, render(run).encode())
    return target


def _shown(value: object) -> object:
    """Escape a value and neutralise hidden characters of names and messages."""
    return visible_lines(value) if type(value) is str else value


def _marked(text: str) -> Markup:
    """Escaped text in which what stands between backticks is code."""
    parts = [_unbroken_options(part) for part in _CODE.split(visible_lines(text))]
    parts[1::2] = [Markup("<code>{}</code>").format(part) for part in parts[1::2]]
    return Markup("").join(parts)


def _unbroken_options(text: str) -> Markup:
    """Escaped text in which each option of a command stays on one line."""
    parts = _OPTION.sub(r"\0\g<0>\0", text).split("\0")
    marked = [
        Markup('<span class="option">{}</span>').format(part) if index % 2 else escape(part)
        for index, part in enumerate(parts)
    ]
    return Markup("").join(marked)


def _plot(subject: SubjectView) -> curve.LossPlot | None:
    kept = subject.steps_trained if subject.stopped_because == "keep_best" else None
    return curve.loss_plot(subject.loss_curve, subject.evaluation_curve, kept)


def _lane_rows(run: RunView) -> list[tuple[str, int, list[Bar]]]:
    """Name, number of jobs and bars of each of the first lanes."""
    if run.lane_s <= 0:
        return []
    lanes = islice(run.spans_by_lane.items(), SHOWN_LANES)
    return [(lane, len(spans), _bars(spans, LANE_WIDTH / run.lane_s)) for lane, spans in lanes]


def _bars(spans: Sequence[LaneSpan], scale: float) -> list[Bar]:
    """A lane's spans as (x, width, text, end) in a view box LANE_WIDTH wide. Of a lane with many
    jobs, those that begin in the same piece of the width share a bar."""
    pieces: dict[int, list[LaneSpan]] = {}
    is_long = len(spans) > MOST_BARS
    for number, span in enumerate(spans):
        piece = int(span.start_s * scale * MOST_BARS / LANE_WIDTH) if is_long else number
        pieces.setdefault(piece, []).append(span)
    bars = []
    for jobs in pieces.values():
        start, end = min(job.start_s for job in jobs), max(job.end_s for job in jobs)
        text = jobs[0].subject if len(jobs) == 1 else f"{len(jobs)} jobs"
        width = round(max((end - start) * scale, 1.5), 1)
        ends: set[SpanEnd] = {job.how for job in jobs}
        how: SpanEnd = "bad" if "bad" in ends else "stopped" if "stopped" in ends else "ok"
        bars.append((round(start * scale, 1), width, text + BAR_NOTES[how], how))
    return bars


def _asset(name: str) -> str:
    return files(__package__).joinpath("assets", name).read_text(encoding="utf-8")


def _sha256(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
