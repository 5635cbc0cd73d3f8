"""How a running run and its summary look in a terminal.

Owns layout and the arithmetic of rates and remaining time. Progress goes to stderr: a live table
on a terminal, plain lines elsewhere.
"""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Self

from farm.cli.views.output import note
from farm.durations import duration
from farm.visible import visible

if TYPE_CHECKING:
    from rich.table import Table

    from farm.training.dispatch.messages import Notice, Snapshot
    from farm.training.plan.estimate import Estimate
    from farm.training.run.request import RunSummary

__all__ = [
    "LiveView",
    "Pace",
    "PlainView",
    "Work",
    "failure_lines",
    "run_view",
    "summary_lines",
]

GIB = 2**30
PLAIN_EVERY_S = 10.0
SHOWN_LANES = 40
"""Rows of the live table; a terminal shows no more, and the driver lays them out twice a second."""
FINAL = ("committed", "quarantined", "rejected", "cancelled")
"""Statuses of jobs that need no more time."""
MEASURED_SHARE = 0.1
"""Share of the work after which the remaining time follows from the measured pace."""


class Pace:
    """Remaining time: from the pace since the start, or from the plan while too little is done to
    measure one. Between two measurements it counts down.

    The pace of the last minute alone would mislead: lanes start one after another, and samples
    and scores follow the last step.
    """

    def __init__(self, expected_s: float | None = None) -> None:
        self._expected_s = expected_s
        self._first: tuple[float, float] | None = None
        self._share = -1.0
        self._ends: float | None = None

    def note(self, now: float, share: float) -> float | None:
        """Record the share that is done; return the remaining seconds, or None if not known."""
        began, first = self._first = self._first or (now, share)
        if self._expected_s is not None and share < MEASURED_SHARE:
            self._ends = began + self._expected_s
        elif share > max(first, self._share) and now > began:
            self._ends = now + (1.0 - share) * (now - began) / (share - first)
        self._share = share
        left = None if self._ends is None else self._ends - now
        return left if left is not None and left > 0 else None


class Work:
    """How much of a run is done, measured in the seconds that the plan gives each part.

    Trained steps alone are done long before the run: samples, scores and files follow them.
    """

    def __init__(self, expected: Estimate | None) -> None:
        self._expected = expected
        self._first: tuple[float, float] | None = None

    @property
    def expected_s(self) -> float | None:
        """The whole run by the plan."""
        return self._expected.total_s if self._expected is not None else None

    def share(self, snapshot: Snapshot) -> float:
        """0 to 1; 0 until this start of the run has trained a step."""
        parts = self._expected
        if parts is None or not parts.total_s:
            return snapshot.done_share
        ended = sum(snapshot.counts.get(status, 0) for status in FINAL)
        now = snapshot.done_share, ended / max(snapshot.num_jobs, 1)
        self._first = self._first or now
        # the plan covers only what an earlier start has left
        trained, ended_share = (
            (value - first) / (1 - first) if first < 1 else 1.0
            for value, first in zip(now, self._first, strict=True)
        )
        if not trained:
            return 0.0
        done_s = parts.start_s + parts.class_images_s
        done_s += (parts.photos_s + parts.training_s) * trained
        done_s += (parts.pictures_s + parts.end_s) * ended_share
        return done_s / parts.total_s


class PlainView:
    """A line per event, and a line of totals every ten seconds."""

    def __init__(self, expected: Estimate | None = None) -> None:
        self._work = Work(expected)
        self._pace = Pace(expected_s=self._work.expected_s)
        self._shown_at = 0.0
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
        left = self._pace.note(now, self._work.share(snapshot))
        text = _totals(snapshot, left)
        if now - self._shown_at >= PLAIN_EVERY_S and text != self._last:
            self._shown_at, self._last = now, text
            note(text)


def _totals(snapshot: Snapshot, left_s: float | None) -> str:
    tally = snapshot.counts
    in_flight = tally["leased"] + tally["training"]
    failed = tally["quarantined"] + tally["rejected"]
    parts = [
        f"{tally['committed']} of {snapshot.num_jobs} committed",
        f"{in_flight} in flight",
        f"{failed} failed",
    ]
    if snapshot.waiting_for_priors:
        parts.append(f"{snapshot.waiting_for_priors} waiting for class images")
    rate = sum(lane.rows_per_s for lane in snapshot.lanes)
    if rate:
        parts.append(f"{rate:.0f} rows/s")
    if left_s is not None:
        parts.append(f"about {duration(left_s)} left")
    return ", ".join(parts)


class LiveView:
    """A table that refreshes itself: the whole run, a row per lane, the last events."""

    def __init__(self, expected: Estimate | None = None) -> None:
        from rich.console import Console
        from rich.live import Live

        self._work = Work(expected)
        self._pace = Pace(expected_s=self._work.expected_s)
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
        """Refresh the table; failures also stay visible above it."""
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.text import Text

        for line in news:
            if line.is_bad:
                self._live.console.print(Text(visible(line.text), style="yellow"))
        self._news.extend(line for line in news if not line.is_bad)
        share = self._work.share(snapshot)
        left = self._pace.note(time.monotonic(), share)
        bar = ProgressBar(total=1.0, completed=share, width=60)
        last = [
            Text(visible(line.text), style="dim", no_wrap=True, overflow="ellipsis")
            for line in self._news
        ]
        totals = Text(_totals(snapshot, left), style="bold")
        self._live.update(Group(totals, bar, _lanes_table(snapshot), *last))


def _lanes_table(snapshot: Snapshot) -> Table:
    from rich.table import Table

    table = Table(box=None, padding=(0, 2))
    for name in ("lane", "slots", "rows/s", "memory", "last heard"):
        table.add_column(name, justify="left" if name == "lane" else "right")
    for number, lane in enumerate(snapshot.lanes[:SHOWN_LANES]):
        table.add_row(
            str(number),
            f"{lane.held}/{lane.slots}",
            f"{lane.rows_per_s:.0f}",
            f"{lane.rss_bytes / GIB:.1f} GiB",
            f"{snapshot.at - lane.seen:.0f}s ago",
        )
    if len(snapshot.lanes) > SHOWN_LANES:
        table.add_row(f"… {len(snapshot.lanes) - SHOWN_LANES} more")
    return table


def run_view(*, plain: bool = False, expected: Estimate | None = None) -> LiveView | PlainView:
    """The live table on a terminal, plain lines elsewhere.

    Args:
        expected: the times by the plan, used until the run's own pace is known.
    """
    if plain or not sys.stderr.isatty():
        return PlainView(expected)
    return LiveView(expected)


def failure_lines(subject: str, status: str, reason: str, remedy: str = "") -> list[str]:
    """What failed, and the remedy on a second line."""
    lines = [f"{visible(subject)}: {status}: {visible(reason)}"]
    return [*lines, f"  remedy: {visible(remedy)}"] if remedy else lines


def summary_lines(summary: RunSummary, store_url: str) -> list[str]:
    """The result of a run as text."""
    lines = [
        f"run {summary.run}: {summary.committed} trained, {summary.reused} found, "
        f"{summary.failed} failed of {summary.jobs} in {duration(summary.seconds)}"
    ]
    if summary.start > 1 and summary.committed:
        lines[0] += f" since start {summary.start} of this run; the report adds up all starts"
    for failure in summary.failures[:20]:
        shown = failure_lines(failure.subject, failure.status, failure.reason, failure.remedy)
        lines += [f"  {line}" for line in shown]
    if len(summary.failures) > 20:
        lines.append(f"  … {len(summary.failures) - 20} more: farm status {summary.run}")
    return [*lines, f"adapters: {store_url}"]
