"""How ``farm status`` looks: a table that a terminal refreshes in place, JSON for programs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from farm.adapters.registry import NEW_VERSION
from farm.cli.views.output import print_json, print_rich, say, table_of
from farm.cli.views.run import failure_lines
from farm.text.durations import duration
from farm.text.visible import visible_lines

if TYPE_CHECKING:
    from rich.console import Console, Group
    from rich.table import Table

__all__ = ["status_view"]

Facts = Mapping[str, Any]


@contextmanager
def status_view(
    *, json: bool, refresh: bool, console: Console | None = None
) -> Iterator[Callable[[Facts], None]]:
    """Shows what ``run_status`` says; each time in the same place of a terminal if it refreshes,
    else below the last.

    Args:
        console: None for stdout.
    """
    if json:
        yield print_json
        return
    from rich.console import Console
    from rich.live import Live

    console = console or Console()
    if not refresh or not console.is_terminal or console.is_dumb_terminal:
        yield _print
        return
    with Live(console=console, auto_refresh=False) as live:
        yield lambda facts: live.update(_screen(facts), refresh=True)


def _print(facts: Facts) -> None:
    print_rich(_table(facts))
    for text in _failures(facts):
        say(text)


def _screen(facts: Facts) -> Group:
    from rich.console import Group
    from rich.text import Text

    return Group(_table(facts), *(Text(visible_lines(text)) for text in _failures(facts)))


def _table(facts: Facts) -> Table:
    return table_of(("", f"run {facts['run']}"), _rows(facts))


def _failures(facts: Facts) -> list[str]:
    return ["\n".join(failure_lines(**failure)) for failure in facts["failures"]]


def _rows(facts: Facts) -> Iterator[tuple[str, object]]:
    yield from ((name, count) for name, count in facts["counts"].items() if count)
    if revoked := facts["revoked"]:
        yield "revoked", f"{revoked:,} of the committed; {NEW_VERSION}"
    if waiting := facts["waiting_for_class_images"]:
        yield "waiting for class images", waiting
    if facts["cluster"]:
        yield "cluster", facts["cluster"]
    yield "driver", facts["driver"] or ("none; `farm run` resumes" if facts["left"] else "none")
    rates = []
    if steps := facts["steps"]:
        share = steps["done"] / steps["total"] if steps["total"] else 1.0
        yield "steps", f"{steps['done']:,} of {steps['total']:,} ({share:.0%})"
        if steps["per_s"]:
            rates.append(f"{steps['per_s']:.3g} steps/s")
    if facts["jobs_per_hour"]:
        rates.append(f"{facts['jobs_per_hour']:.0f} adapters per hour")
    if rates:
        yield "rate", ", ".join(rates)
    if facts["eta_s"] is not None:
        yield "remaining", duration(facts["eta_s"])
