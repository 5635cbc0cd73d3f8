"""``farm status`` and ``farm logs``: what the store knows of a run. Needs neither Ray nor a GPU."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated

import typer

from farm.cli.chosen_run import chosen_run, require_subjects
from farm.cli.existing_store import existing_store
from farm.cli.options import JsonOption, OptionalRun, StoreOption
from farm.cli.views.output import say
from farm.text.visible import visible

if TYPE_CHECKING:
    from farm.storage import Store

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    app.command()(status)
    app.command()(logs)


def status(
    run: OptionalRun = None,
    store: StoreOption = "work",
    watch: Annotated[
        bool, typer.Option("--watch", help="Refresh every two seconds until the run is done.")
    ] = False,
    json: JsonOption = False,
) -> None:
    """Show the progress of a run: counts, steps, rate, remaining time and failures.

    The rate is that of the run's last start; a run without a driver that has work left has none.
    Reads only the store.
    """
    from farm.cli.views.output import note
    from farm.cli.views.status import status_view
    from farm.errors import StoreError
    from farm.training.run.status import run_status

    opened = existing_store(store)
    if run is None and _shows_adapters_alone(opened, json):
        return
    run_id = chosen_run(opened, run)
    with status_view(json=json, refresh=watch) as show:
        while True:
            try:
                facts = run_status(opened, run_id)
            except StoreError as error:
                if not watch:
                    raise
                note(f"{error.message}; trying again")
                time.sleep(2)
                continue
            show(facts)
            if not watch or facts["left"] == 0:
                return
            time.sleep(2)


def _shows_adapters_alone(store: Store, json: bool) -> bool:
    """Show a store that has adapters, but no run; returns whether it is one."""
    from farm.adapters.listing import count_adapters
    from farm.adapters.registry import Registry
    from farm.cli.views.output import print_json
    from farm.training.run.files import list_runs

    if list_runs(store) or not (num := count_adapters(Registry(store))):
        return False
    if json:
        print_json({"run": None, "store": store.url, "adapters": num})
    else:
        holds = f"{num:,} adapter{'' if num == 1 else 's'} and no runs"
        say(f"{store.url} holds {holds}; `farm list` shows them")
    return True


def logs(
    run: OptionalRun = None,
    subject: Annotated[
        str | None, typer.Option("--subject", help="Show only this subject.")
    ] = None,
    store: StoreOption = "work",
    json: JsonOption = False,
) -> None:
    """Show the events of a run's jobs in chronological order."""
    from datetime import UTC, datetime

    from farm.cli.views.output import print_json
    from farm.training.dispatch.ledger import read_events
    from farm.training.run.files import read_assignments

    opened = existing_store(store)
    run_id = chosen_run(opened, run)
    subjects = {a.spec.key: a.spec.subject.id for a in read_assignments(opened, run_id)}
    require_subjects(
        run_id, [subject] if subject is not None else [], dict.fromkeys(subjects.values())
    )
    chosen = [
        event
        for event in read_events(opened, run_id)
        if subject is None or subjects.get(event.job) == subject
    ]
    if json:
        print_json([event._asdict() | {"subject": subjects.get(event.job)} for event in chosen])
        return
    for event in chosen:
        when = datetime.fromtimestamp(event.at, UTC).strftime("%Y-%m-%d %H:%M:%S")
        details = [
            f"step {event.step}" if event.step else "",
            f"lane {event.lane}" if event.lane else "",
            event.reason,
            f"remedy: {event.remedy}" if event.remedy else "",
        ]
        what = f"{when}  {visible(subjects.get(event.job, event.job)):<24} {event.kind:<12}"
        say(f"{what} {', '.join(visible(part) for part in details if part)}".rstrip())
