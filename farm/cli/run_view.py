"""How plans, running runs and their ends look in a terminal.

Owns layout and the arithmetic of rates and remaining time. Progress goes to stderr: a live table
where that is a terminal, plain lines where it is not.
"""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from farm.cli.output import note
from farm.durations import duration
from farm.visible import visible

if TYPE_CHECKING:
    from rich.table import Table

    from farm.training.dispatch.messages import Notice, Snapshot
    from farm.training.plan.plan import Plan
    from farm.training.run.request import PreparedRun, RunSummary

__all__ = [
    "LiveView",
    "Pace",
    "PlainView",
    "failure_lines",
    "plan_facts",
    "plan_table",
    "run_view",
]

GIB = 2**30
PLAIN_EVERY_S = 10.0
MEASURED_SHARE = 0.1
"""Of the work that must be done before the remaining time is taken from its pace."""


def plan_facts(prepared: PreparedRun) -> dict[str, Any]:
    """A prepared run as plain values, for ``--json``."""
    from dataclasses import asdict

    plan = prepared.plan
    return {
        "run": prepared.run_id,
        "store": prepared.store.url,
        "base": prepared.base.name,
        "base_fingerprint": prepared.base.fingerprint,
        "jobs": len(prepared.assignments),
        "committed": len(prepared.committed),
        "to_train": prepared.num_to_train,
        "rejected": prepared.num_rejected,
        "prior_sets_to_draw": len(prepared.priors),
        "prior_images_to_draw": sum(spec.num_images for spec in prepared.priors),
        "plan": asdict(plan) | {"lanes": plan.num_lanes} if plan is not None else None,
    }


def plan_table(prepared: PreparedRun) -> Table:
    """What is to be done, with what, how long it takes and what it costs."""
    from rich.table import Table
    from rich.text import Text

    table = Table(title=f"run {prepared.run_id}", title_justify="left", show_header=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, value in _plan_lines(prepared):
        table.add_row(name, Text(value))
    return table


def _plan_lines(prepared: PreparedRun) -> list[tuple[str, str]]:
    facts = [
        ("store", prepared.store.url),
        ("base", f"{prepared.base.name} ({prepared.base.fingerprint[:12]})"),
        (
            "subjects",
            f"{prepared.num_to_train:,} to train, {len(prepared.committed):,} committed already"
            + (f", {prepared.num_rejected:,} left out for faults" if prepared.num_rejected else ""),
        ),
    ]
    if prepared.priors:
        images, num = sum(spec.num_images for spec in prepared.priors), len(prepared.priors)
        classes = "1 class" if num == 1 else f"{num} classes"
        facts.append(("class images", f"{images:,} to make, for {classes}"))
    if prepared.plan is not None:
        facts += _hardware_lines(prepared.plan)
    return facts


def _hardware_lines(plan: Plan) -> list[tuple[str, str]]:
    place = f"{plan.gpu_fraction:g} GPU" if plan.device == "cuda" else _threads(plan.threads)
    each = " each" if plan.num_lanes > 1 else ""
    nodes = "" if plan.num_nodes == 1 else f" on {plan.num_nodes} nodes"
    lines = [
        ("lanes", f"{plan.num_lanes}{nodes}, {place}{each}"),
        ("slots", f"{plan.slots} per lane: {plan.slots * plan.num_lanes} subjects at a time"),
    ]
    if plan.share_bytes:
        share = f"{plan.lane_bytes / GIB:.1f} of {plan.share_bytes / GIB:.1f} GiB per lane"
        lines.append(("GPU memory", share))
    else:
        lines.append(("memory", f"about {plan.lane_bytes / GIB:.1f} GiB per lane"))
    lines += [("expected", _expected(plan)), ("why", plan.reason)]
    if plan.device == "cuda":
        cost = f"{plan.gpu_hours:.2f} GPU hours, about ${plan.dollars:.2f}"
        lines.insert(-1, ("cost", cost))
    return lines + [("note", note) for note in plan.notes]


def _threads(number: int) -> str:
    return f"{number} CPU thread{'' if number == 1 else 's'}"


def _expected(plan: Plan) -> str:
    """The whole time, and what it consists of; class images often take most of it."""
    parts = plan.estimate
    named = (
        ("start", parts.start_s),
        ("class images", parts.class_images_s),
        ("training", parts.photos_s + parts.training_s),
        ("samples and scores", parts.pictures_s),
        ("saving", parts.end_s),
    )
    told = ", ".join(f"{name} {duration(seconds)}" for name, seconds in named if seconds >= 0.5)
    return f"{duration(parts.total_s)} ({told})" if told else duration(parts.total_s)


class Pace:
    """Remaining time from the share that is done, over the last minute or so; from the plan while
    too little is done to go by."""

    def __init__(self, window_s: float = 60.0, expected_s: float | None = None) -> None:
        self._window_s, self._expected_s = window_s, expected_s
        self._began: float | None = None
        self._seen: deque[tuple[float, float]] = deque()

    def note(self, now: float, share: float) -> float | None:
        """Take a look in; seconds that are left, or None while that is not known."""
        self._began = now if self._began is None else self._began
        if self._expected_s is not None and share < MEASURED_SHARE:
            left = self._began + self._expected_s - now
            return left if left > 0 else None
        self._seen.append((now, share))
        while len(self._seen) > 2 and now - self._seen[0][0] > self._window_s:
            self._seen.popleft()
        then, before = self._seen[0]
        if share <= before or now <= then:
            return None
        return (1.0 - share) * (now - then) / (share - before)


class PlainView:
    """One line for what happened, and one for where the run stands every ten seconds."""

    def __init__(self, expected_s: float | None = None) -> None:
        self._pace = Pace(expected_s=expected_s)
        self._told = 0.0
        self._last = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        return None

    def show(self, snapshot: Snapshot, news: Sequence[Notice]) -> None:
        """Write to stderr."""
        for line in news:
            note(visible(line.text))
        now = time.monotonic()
        left = self._pace.note(now, snapshot.done_share)
        text = _standing(snapshot, left)
        if now - self._told >= PLAIN_EVERY_S and text != self._last:
            self._told, self._last = now, text
            note(text)


def _standing(snapshot: Snapshot, left_s: float | None) -> str:
    tally = snapshot.counts
    in_flight = tally["leased"] + tally["training"]
    failed = tally["quarantined"] + tally["rejected"]
    parts = [
        f"{tally['committed']} of {snapshot.num_jobs} committed",
        f"{in_flight} in flight",
        f"{failed} failed",
    ]
    if snapshot.waiting_for_priors:
        parts.append(f"{snapshot.waiting_for_priors} wait for class images")
    rate = sum(lane.rows_per_s for lane in snapshot.lanes)
    if rate:
        parts.append(f"{rate:.0f} rows/s")
    if left_s is not None:
        parts.append(f"about {duration(left_s)} left")
    return ", ".join(parts)


class LiveView:
    """A table that renews itself: the whole run, then a line for each lane, then the last news."""

    def __init__(self, expected_s: float | None = None) -> None:
        from rich.console import Console
        from rich.live import Live

        self._pace = Pace(expected_s=expected_s)
        self._news: deque[Notice] = deque(maxlen=6)
        self._live = Live(console=Console(stderr=True), refresh_per_second=2, transient=True)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._live.stop()

    def show(self, snapshot: Snapshot, news: Sequence[Notice]) -> None:
        """Renew the table; bad news also stay above it."""
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.text import Text

        for line in news:
            if line.is_bad:
                self._live.console.print(Text(visible(line.text), style="yellow"))
        self._news.extend(line for line in news if not line.is_bad)
        left = self._pace.note(time.monotonic(), snapshot.done_share)
        bar = ProgressBar(total=1.0, completed=snapshot.done_share, width=60)
        last = [
            Text(visible(line.text), style="dim", no_wrap=True, overflow="ellipsis")
            for line in self._news
        ]
        standing = Text(_standing(snapshot, left), style="bold")
        self._live.update(Group(standing, bar, _lanes_table(snapshot), *last))


def _lanes_table(snapshot: Snapshot) -> Table:
    from rich.table import Table

    table = Table(box=None, padding=(0, 2))
    for name in ("lane", "slots", "rows/s", "memory", "last word"):
        table.add_column(name, justify="left" if name == "lane" else "right")
    for number, lane in enumerate(snapshot.lanes):
        table.add_row(
            str(number),
            f"{lane.held}/{lane.slots}",
            f"{lane.rows_per_s:.0f}",
            f"{lane.rss_bytes / GIB:.1f} GiB",
            f"{lane.silent_s:.0f}s ago",
        )
    return table


def run_view(*, plain: bool = False, expected_s: float | None = None) -> LiveView | PlainView:
    """The live table on a terminal, plain lines elsewhere.

    Args:
        expected_s: what the plan expects: the remaining time until the run's own pace is known.
    """
    if plain or not sys.stderr.isatty():
        return PlainView(expected_s)
    return LiveView(expected_s)


def failure_lines(subject: str, status: str, reason: str, remedy: str = "") -> list[str]:
    """What failed and what to do, a line each."""
    lines = [f"{visible(subject)}: {status}: {visible(reason)}"]
    return [*lines, f"  remedy: {visible(remedy)}"] if remedy else lines


def summary_lines(summary: RunSummary, store_url: str) -> list[str]:
    """How a run ended, in words."""
    lines = [
        f"run {summary.run}: {summary.committed} trained, {summary.reused} found, "
        f"{summary.failed} failed of {summary.jobs} in {duration(summary.seconds)}"
    ]
    for failure in summary.failures[:20]:
        shown = failure_lines(failure.subject, failure.status, failure.reason, failure.remedy)
        lines += [f"  {line}" for line in shown]
    if len(summary.failures) > 20:
        lines.append(f"  … {len(summary.failures) - 20} more: farm status {summary.run}")
    return [*lines, f"adapters: {store_url}"]
