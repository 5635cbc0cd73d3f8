"""Progress on stderr: a bar on a terminal, occasional lines elsewhere.

Owns the two stages before a run: loading the base and reading photos. A running run has its own
view (``farm.cli.views.run``).
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, cast

from farm.base.names import Fetched

if TYPE_CHECKING:
    from rich.progress import Progress as Bar
    from rich.progress import TaskID

__all__ = ["Stages", "counting", "fetching", "loading_base", "progress_bar", "stages"]

LINE_EVERY_S = 10.0
"""Between two lines of progress where stderr is not a terminal."""
MIB = 2**20


class Stages:
    """Progress by stage; each stage appears when it begins."""

    def __init__(self, bar: Bar | None) -> None:
        """``bar`` is the display on a terminal; None prints lines."""
        self._bar = bar
        self._tasks: dict[str, TaskID] = {}
        self._printed_at = time.monotonic()

    def begin(self, what: str) -> None:
        """Show a stage of unknown length; earlier stages disappear."""
        if what in self._tasks:
            return
        if self._bar is None:
            self._tasks[what] = cast("TaskID", 0)
            print(f"{what} …", file=sys.stderr, flush=True)
            return
        for earlier in self._tasks.values():
            self._bar.update(earlier, visible=False)
        self._tasks[what] = self._bar.add_task(what, total=None, counted="")

    def show(self, what: str, done: int, total: int, counted: str) -> None:
        """Show the progress of a stage."""
        if self._bar is not None:
            self.begin(what)
            self._bar.update(
                self._tasks[what], completed=done, total=total or None, counted=counted
            )
        elif time.monotonic() - self._printed_at >= LINE_EVERY_S:
            self._printed_at = time.monotonic()
            print(f"{what}: {counted}", file=sys.stderr, flush=True)


@contextmanager
def stages() -> Iterator[Stages]:
    """One display for all stages of a command; removed when the block ends."""
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        yield Stages(None)
        return
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        TextColumn("{task.fields[counted]}", markup=False),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        yield Stages(bar)


@contextmanager
def progress_bar(what: str) -> Iterator[Callable[[int, int], None]]:
    """One stage of its own, as a callback of (done, total)."""
    with stages() as shown:
        yield counting(shown, what)


def counting(shown: Stages, what: str) -> Callable[[int, int], None]:
    """A stage as a callback of (done, total)."""
    return lambda done, total: shown.show(what, done, total, f"{done:,} of {total:,}")


@contextmanager
def loading_base(name: str) -> Iterator[Fetched]:
    """Show that a base is loading, and how much of it is downloaded."""
    with stages() as shown:
        yield fetching(shown, name)


def fetching(shown: Stages, name: str) -> Fetched:
    """Begin the stage of a base; the callback counts downloaded bytes."""
    what = f"loading the base {name}"
    shown.begin(what)
    return lambda done, total: shown.show(
        what, done, total, f"{done / MIB:,.0f} of {total / MIB:,.0f} MiB downloaded"
    )
