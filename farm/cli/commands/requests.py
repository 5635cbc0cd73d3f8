"""``farm retry`` and ``farm cancel``: requests to the driver of a run, sent through its store.

Without a driver the command settles the request itself. Needs neither Ray nor a GPU.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from farm.cli.chosen_run import chosen_run, require_subjects
from farm.cli.existing_store import existing_store
from farm.cli.options import JsonOption, OptionalRun, StoreOption
from farm.cli.views.output import print_json, say
from farm.text.visible import visible

if TYPE_CHECKING:
    from farm.training.run.files import Request

__all__ = ["register"]

SubjectsOption = Annotated[
    list[str] | None, typer.Option("--subject", help="Only this subject; may repeat.")
]


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    app.command()(retry)
    app.command()(cancel)


def retry(
    run: OptionalRun = None,
    subject: SubjectsOption = None,
    store: StoreOption = "work",
    json: JsonOption = False,
) -> None:
    """Queue quarantined, rejected and cancelled jobs again.

    A running driver starts them within seconds; otherwise repeat the `farm run` command.
    """
    _request("retry", run, subject, store, json)


def cancel(
    run: OptionalRun = None,
    subject: SubjectsOption = None,
    store: StoreOption = "work",
    json: JsonOption = False,
) -> None:
    """Cancel the unfinished jobs of a run, or some of them. Committed adapters stay."""
    _request("cancel", run, subject, store, json)


def _request(
    what: Request, run: str | None, subjects: list[str] | None, store: str, json: bool
) -> None:
    from farm.training.run.files import ask, read_assignments
    from farm.training.run.status import settle_requests

    opened = existing_store(store)
    run_id = chosen_run(opened, run)
    keys = None
    if subjects:
        by_id = {a.spec.subject.id: a.spec.key for a in read_assignments(opened, run_id)}
        require_subjects(run_id, subjects, by_id)
        keys = [by_id[name] for name in subjects]
    ask(opened, run_id, what, keys)
    settled = settle_requests(opened, run_id)
    facts = {"run": run_id, "asked": what, "subjects": subjects, "settled": settled is not None}
    if json:
        print_json(facts | {"jobs": settled})
        return
    which = "has failed or was cancelled" if what == "retry" else "is unfinished"
    if settled is None:
        of = f" of {visible(', '.join(subjects))}" if subjects else ""
        say(f"run {run_id}: its driver will {what} what {which}{of}, within seconds")
    elif settled == 0:
        say(f"run {run_id}: nothing to {what}: no such job {which}")
    else:
        done = "queued again; `farm run` resumes the run" if what == "retry" else "cancelled"
        say(f"run {run_id}: {settled:,} {'job' if settled == 1 else 'jobs'} {done}")
