"""``farm status | logs | retry | cancel | export``: runs that are there already.

Owns the commands that look at a store or speak to a driver through it. None of them needs
Ray or a GPU.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from farm.cli.output import say
from farm.cli.run import JsonOption, StoreOption
from farm.visible import visible

if TYPE_CHECKING:
    from farm.storage import Store
    from farm.training.run.files import Request

__all__ = ["known_run", "register"]

OptionalRun = Annotated[str | None, typer.Argument(help="The run's id; the latest by default.")]
SubjectsOption = Annotated[
    list[str] | None, typer.Option("--subject", help="Only this subject; may repeat.")
]


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    for command in (status, logs, retry, cancel, export):
        app.command()(command)


def status(
    run: OptionalRun = None,
    store: StoreOption = "work",
    watch: Annotated[bool, typer.Option("--watch", help="Again every two seconds.")] = False,
    json: JsonOption = False,
) -> None:
    """Show where a run stands: counts, rate, remaining time, failures. Reads only the store."""
    from farm.cli.output import print_json, print_table
    from farm.cli.run_view import failure_lines
    from farm.durations import duration
    from farm.storage import Store
    from farm.training.run.status import run_status

    opened = Store(store)
    run_id = known_run(opened, run)
    while True:
        facts = run_status(opened, run_id)
        if json:
            print_json(facts)
        else:
            rows = [(name, count) for name, count in facts["counts"].items() if count]
            rows.append(("driver", facts["driver"] or "none"))
            if facts["jobs_per_hour"]:
                rows.append(("rate", f"{facts['jobs_per_hour']:.0f} adapters an hour"))
            if facts["eta_s"] is not None:
                rows.append(("remaining", duration(facts["eta_s"])))
            print_table(("", f"run {run_id}"), rows)
            if facts["failures"]:
                for failure in facts["failures"]:
                    say("\n".join(failure_lines(**failure)))
        if not watch or facts["left"] == 0:
            return
        time.sleep(2)


def logs(
    run: OptionalRun = None,
    subject: Annotated[str | None, typer.Option(help="Only this subject.")] = None,
    store: StoreOption = "work",
    json: JsonOption = False,
) -> None:
    """Tell what happened to a run's jobs, in the order in which it happened."""
    from datetime import UTC, datetime

    from farm.cli.output import print_json
    from farm.storage import Store
    from farm.training.dispatch.ledger import read_events
    from farm.training.run.files import read_assignments

    opened = Store(store)
    run_id = known_run(opened, run)
    subjects = {a.spec.key: a.spec.subject.id for a in read_assignments(opened, run_id)}
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


def retry(
    run: OptionalRun = None,
    subject: SubjectsOption = None,
    store: StoreOption = "work",
    json: JsonOption = False,
) -> None:
    """Queue quarantined, rejected and cancelled jobs again.

    A living driver takes them up within seconds; otherwise run the same `farm run` again.
    """
    _request("retry", run, subject, store, json)


def cancel(
    run: OptionalRun = None,
    subject: SubjectsOption = None,
    store: StoreOption = "work",
    json: JsonOption = False,
) -> None:
    """Cancel a run's unfinished jobs, or some of them. What is committed stays."""
    _request("cancel", run, subject, store, json)


def _request(
    what: Request, run: str | None, subjects: list[str] | None, store: str, json: bool
) -> None:
    from farm.cli.output import print_json
    from farm.errors import UserError
    from farm.storage import Store
    from farm.training.run.files import ask, read_assignments
    from farm.training.run.status import settle_requests

    opened = Store(store)
    run_id = known_run(opened, run)
    keys = None
    if subjects:
        by_id = {a.spec.subject.id: a.spec.key for a in read_assignments(opened, run_id)}
        unknown = [name for name in subjects if name not in by_id]
        if unknown:
            raise UserError(f"run {run_id} has no subject {unknown[0]!r}", "see `farm status`")
        keys = [by_id[name] for name in subjects]
    ask(opened, run_id, what, keys)
    settled = settle_requests(opened, run_id)
    facts = {"run": run_id, "asked": what, "subjects": subjects, "settled": settled is not None}
    if json:
        print_json(facts | {"jobs": settled})
    elif settled is None:
        say(f"run {run_id}: its driver will {what} them within seconds")
    else:
        done = "queued again; `farm run` trains them" if what == "retry" else "cancelled"
        say(f"run {run_id}: {settled} jobs {done}")


def export(
    out: Annotated[Path, typer.Argument(help="Folder to write into.")],
    names: Annotated[
        list[str] | None, typer.Option("--name", help="name or namespace/name; may repeat.")
    ] = None,
    run: Annotated[str | None, typer.Option(help="All adapters of this run.")] = None,
    form: Annotated[
        str | None, typer.Option(help="Only diffusers, peft or kohya; by default everything.")
    ] = None,
    store: StoreOption = "work",
    json: JsonOption = False,
) -> None:
    """Copy adapters from the store, one folder each, verified against their digests.

    With --form only that file is written, named after the adapter. An adapter that cannot be read
    is reported, and the others are exported.
    """
    from farm.cli.output import print_json
    from farm.storage import Store
    from farm.training.run.export import export_adapters

    result = export_adapters(Store(store), out, names=names, run_id=run, form=form)
    if json:
        print_json(
            [{"name": name, "path": str(path)} for name, path in result.written]
            + [
                {"name": name, "error": error.message, "remedy": error.remedy}
                for name, error in result.failed
            ]
        )
    else:
        for name, path in result.written:
            say(f"{visible(name)}\t{visible(str(path))}")
    for name, error in result.failed:
        print(visible(f"{name} was not exported: {error.message}"), file=sys.stderr)
        if error.remedy:
            print(f"  remedy: {visible(error.remedy)}", file=sys.stderr)
    if result.failed:
        raise typer.Exit(result.failed[0][1].exit_code)
    if not result.written:
        print("no committed adapters match", file=sys.stderr)


def known_run(store: Store, run: str | None) -> str:
    """The run that is meant: the named one, or the one that was started last.

    Raises:
        UserError: if there is none.
    """
    from farm.errors import UserError
    from farm.training.run.files import list_runs, read_settings

    known = list_runs(store)
    if not known:
        raise UserError(f"{store.url} holds no runs", "start one with `farm run`")
    if run is None:
        return max(known, key=lambda name: float(read_settings(store, name).get("started") or 0))
    matching = [name for name in known if name.startswith(run)]
    if len(matching) != 1:
        what = f"{len(matching)} runs begin with" if matching else "there is no run"
        raise UserError(f"{what} {run!r}", f"runs in this store: {', '.join(known)}")
    return matching[0]
