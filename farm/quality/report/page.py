"""Renders a run's view as one HTML file.

Owns the template, its security policy (no network, no inline script except the page's own, every
value escaped) and the writing of the file. The content comes from ``view.py``.
"""

from __future__ import annotations

import base64
import hashlib
import re
from importlib.resources import files
from pathlib import Path

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup, escape

from farm.durations import duration
from farm.quality.report import curve
from farm.quality.report.view import RunView, SubjectView
from farm.quality.verdict import CLASS_PRESERVATION, PROMPT_FIDELITY, SIMILARITY
from farm.visible import visible_lines

__all__ = ["render", "write_report"]

LANE_WIDTH = 1000
SCORE_NAMES = {"gain": SIMILARITY, "prompt": PROMPT_FIDELITY, "kept": CLASS_PRESERVATION}
_OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]*(?: [\d.]*\d)?")
"""A command's option and its number; a line break inside would make it unreadable."""


def render(run: RunView) -> str:
    """The page as HTML text."""
    script, style = _asset("report.js"), _asset("report.css")
    environment = Environment(
        loader=FunctionLoader(_asset),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_shown,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["duration"] = duration
    environment.filters["slug"] = _slug
    environment.filters["options"] = _unbroken_options
    environment.globals.update(loss_plot=_plot, plot_width=curve.WIDTH, plot_height=curve.HEIGHT)
    environment.globals.update(score=SCORE_NAMES)
    policy = (
        "default-src 'none'; img-src data:; base-uri 'none'; form-action 'none'; "
        f"script-src '{_sha256(script)}'; style-src '{_sha256(style)}'"
    )
    return environment.get_template("report.html.jinja").render(
        run=run,
        policy=policy,
        # only the page's own files are marked safe; user content never is
        script=Markup(script),
        style=Markup(style),
        lane_rows=_lane_rows(run),
    )


def write_report(run: RunView, path: str | Path) -> Path:
    """Write the page to a temporary file, then rename it to ``path``."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = target.with_name(f".{target.name}.part")
    aside.write_text(render(run), encoding="utf-8")
    aside.replace(target)
    return target


def _shown(value: object) -> object:
    """Escape a value and neutralise hidden characters of names and messages."""
    return visible_lines(value) if type(value) is str else value


def _unbroken_options(text: str) -> Markup:
    """Escaped text in which each option of a command stays on one line."""
    parts = _OPTION.sub(r"\0\g<0>\0", visible_lines(text)).split("\0")
    marked = [
        Markup('<span class="option">{}</span>').format(part) if index % 2 else escape(part)
        for index, part in enumerate(parts)
    ]
    return Markup("").join(marked)


def _plot(subject: SubjectView) -> curve.LossPlot | None:
    kept = subject.steps_trained if subject.stopped_because == "keep_best" else None
    return curve.loss_plot(subject.loss_curve, subject.evaluation_curve, kept)


def _lane_rows(run: RunView) -> list[tuple[str, list[tuple[float, float, str, bool]]]]:
    """Each lane's spans as (x, width, subject, succeeded) in a view box LANE_WIDTH wide."""
    if run.seconds <= 0:
        return []
    scale = LANE_WIDTH / run.seconds
    rows = []
    for lane in run.lanes:
        spans = [
            (
                round(span.start_s * scale, 1),
                round(max((span.end_s - span.start_s) * scale, 1.5), 1),
                span.subject,
                span.ended_well,
            )
            for span in run.spans
            if span.lane == lane
        ]
        rows.append((lane, spans))
    return rows


def _slug(label: str) -> str:
    """A verdict as a CSS class."""
    return "".join(letter if letter.isalnum() else "-" for letter in label)


def _asset(name: str) -> str:
    return files(__package__).joinpath("assets", name).read_text(encoding="utf-8")


def _sha256(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
