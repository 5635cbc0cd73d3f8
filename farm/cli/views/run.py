"""How a running run and its summary look in a terminal.

Owns the layout; the driver computes the remaining time. Progress goes to stderr: a live table on a
terminal, plain lines elsewhere.
"""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Self

from farm.cli.views.output import note
from farm.text.durations import duration
from farm.text.visible import visible

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from farm.training.dispatch.messages import Notice, Snapshot
    from farm.training.run.request import RunSummary

__all__ = [
    "LiveView",
    "PlainView",
    "failure_lines",
    "not_trained_again",
    "run_view",
    "summary_lines",
]

GIB = 2**30
PLAIN_EVERY_S = 10.0
SHOWN_LANES = 40
"""Rows of the live table; a terminal shows no more, and the driver lays them out twice a second."""


class PlainView:
    """A line per event, and a line of totals every ten seconds."""

    def __init__(self) -> None:
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
        text = _totals(snapshot)
        if now - self._shown_at >= PLAIN_EVERY_S and text != self._last:
            self._shown_at, self._last = now, text
            note(text)


def _totals(snapshot: Snapshot) -> str:
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
    if snapshot.left_s is not None:
        parts.append(f"about {duration(snapshot.left_s)} left")
    return ", ".join(parts)


class LiveView:
    """A table that refreshes itself: the whole run, a row per lane, the last events."""

    def __init__(self, console: Console | None = None) -> None:
        from rich.console import Console
        from rich.live import Live

        self._news: deque[Notice] = deque(maxlen=6)
        self._live = Live(
            console=console or Console(stderr=True), refresh_per_second=2, transient=True
        )

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
        from rich.padding import Padding
        from rich.progress_bar import ProgressBar
        from rich.text import Text

        for line in news:
            if line.is_bad:
                self._live.console.print(Text(visible(line.text), style="yellow"))
        self._news.extend(line for line in news if not line.is_bad)
        bar = ProgressBar(total=1.0, completed=max(0.0, snapshot.work_share), width=60)
        last = [
            Text(visible(line.text), style="dim", no_wrap=True, overflow="ellipsis")
            for line in self._news
        ]
        totals = Text(_totals(snapshot), style="bold")
        # a bar alone does not end its line
        self._live.update(
            Group(totals, Padding(bar, 0, expand=False), _lanes_table(snapshot), *last)
        )


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


def run_view(*, plain: bool = False) -> LiveView | PlainView:
    """The live table on a terminal, plain lines elsewhere."""
    return PlainView() if plain or not sys.stderr.isatty() else LiveView()


def failure_lines(subject: str, status: str, reason: str, remedy: str = "") -> list[str]:
    """What failed, and the remedy on a second line."""
    why = f": {visible(reason)}" if reason != status else ""
    lines = [f"{visible(subject)}: {status}{why}"]
    return [*lines, f"  remedy: {visible(remedy)}"] if remedy else lines


def not_trained_again(num_revoked: int) -> str:
    """What a run does with revoked adapters, and the remedy."""
    from farm.adapters.registry import NEW_VERSION

    are = "is revoked and was" if num_revoked == 1 else "are revoked and were"
    return f"{num_revoked:,} {are} not trained again: {NEW_VERSION}"


def summary_lines(summary: RunSummary, store_url: str) -> list[str]:
    """The result of a run as text."""
    revoked = f" ({summary.revoked} of them revoked)" if summary.revoked else ""
    lines = [
        f"run {summary.run}: {summary.committed} trained, {summary.reused} found{revoked}, "
        f"{summary.failed} failed of {summary.jobs} in {duration(summary.seconds)}"
    ]
    if summary.start > 1 and summary.committed:
        lines[0] += f" since start {summary.start} of this run; the report adds up all starts"
    if summary.revoked:
        lines.append(f"  {not_trained_again(summary.revoked)}")
    for failure in summary.failures[:20]:
        shown = failure_lines(failure.subject, failure.status, failure.reason, failure.remedy)
        lines += [f"  {line}" for line in shown]
    if len(summary.failures) > 20:
        lines.append(f"  … {len(summary.failures) - 20} more: farm status {summary.run}")
    return [*lines, f"adapters: {store_url}"]
