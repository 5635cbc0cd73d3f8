"""Progress on stderr: a bar where that is a terminal, a line now and then where it is not.

Owns the two stages that come before a run: loading the base and reading photos. A running run has
its own view (``farm.cli.run_view``).
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
"""Between two lines of progress where stderr is no terminal."""
MIB = 2**20


class Stages:
    """Progress by stage; each stage appears when it is first mentioned."""

    def __init__(self, bar: Bar | None) -> None:
        """``bar`` is the display of a terminal; None prints lines."""
        self._bar = bar
        self._tasks: dict[str, TaskID] = {}
        self._printed_at = time.monotonic()

    def begin(self, what: str) -> None:
        """Show a stage of which no length is known yet; the stages before it disappear."""
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
        """Show how far a stage is."""
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
    """One display for all stages of a command; gone when the command goes on."""
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
    """Show callbacks of (done, total)."""
    with stages() as shown:
        yield counting(shown, what)


def counting(shown: Stages, what: str) -> Callable[[int, int], None]:
    """Callbacks of (done, total) as one stage."""
    return lambda done, total: shown.show(what, done, total, f"{done:,} of {total:,}")


@contextmanager
def loading_base(name: str) -> Iterator[Fetched]:
    """Show that a base loads, and how much of it is fetched."""
    with stages() as shown:
        yield fetching(shown, name)


def fetching(shown: Stages, name: str) -> Fetched:
    """Begin the stage of a base; the callback counts bytes that are fetched."""
    what = f"loading the base {name}"
    shown.begin(what)
    return lambda done, total: shown.show(
        what, done, total, f"{done / MIB:,.0f} of {total / MIB:,.0f} MiB fetched"
    )
