"""Which run of a store a command is about."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from farm.storage import Store

__all__ = ["chosen_run", "require_subjects"]


def chosen_run(store: Store, run: str | None) -> str:
    """The run whose id begins with ``run``, or the latest run if it is None.

    Raises:
        UserError: if there is no such run, or more than one.
    """
    from farm.errors import UserError
    from farm.training.run.files import list_runs

    known = list_runs(store)
    if not known:
        raise UserError(f"{store.url} holds no runs", "start one with `farm run`")
    if run is None:
        return max(known, key=lambda name: _started(store, name))
    matching = [name for name in known if name.startswith(run)]
    if len(matching) != 1:
        what = f"{len(matching)} runs begin with" if matching else "there is no run"
        raise UserError(f"{what} {run!r}", f"runs in this store: {', '.join(known)}")
    return matching[0]


def _started(store: Store, run: str) -> float:
    """When a run was last started; 0 if its settings are damaged, which concerns no other run."""
    from farm.errors import UserError
    from farm.training.run.files import read_settings

    try:
        return float(read_settings(store, run).get("started") or 0)
    except UserError:
        return 0.0


def require_subjects(run: str, wanted: Iterable[str], known: Collection[str]) -> None:
    """Refuse a subject that a run does not have.

    Raises:
        UserError: naming the first one, and the known subject with a similar id.
    """
    from farm.errors import UserError
    from farm.intake.faults import similar_name
    from farm.text.visible import visible

    for subject in wanted:
        if subject not in known:
            close = similar_name(subject, known)
            remedy = f"did you mean `{close}`?" if close else "the run's report lists its subjects"
            raise UserError(f"run {run} has no subject `{visible(subject)}`", remedy)
