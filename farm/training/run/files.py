"""A run's files in the store beside its ledger: jobs, settings, and requests to its driver.

Owns ``runs/<run_id>/`` except ``ledger/``, the report's pages and ``served/``, and the rule that
names a run. Anyone with access to the store can read a run, request the cancellation or retry of
jobs, and restart its driver.

    runs/<run_id>/manifest.parquet    the resolved manifest
    runs/<run_id>/jobs.jsonl.gz       its jobs and the names of their adapters (``job_files``)
    runs/<run_id>/jobs.index.json.gz  an index of the jobs
    runs/<run_id>/run.json            settings and plan of the last start, time of each
    runs/<run_id>/drivers/            locks: which process is its driver
    runs/<run_id>/requests/           requests of `farm cancel` and `farm retry`
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from farm.errors import UserError
from farm.keys import key_of
from farm.storage import Store
from farm.training.dispatch.messages import AdapterNames
from farm.training.run.job_files import read_assignments, write_assignments

__all__ = [
    "Request",
    "OpenRequest",
    "ask",
    "close_requests",
    "list_runs",
    "name_run",
    "open_requests",
    "read_assignments",
    "read_settings",
    "write_assignments",
    "write_settings",
]

RUN_ID_LENGTH = 12


def name_run(names: Mapping[str, AdapterNames]) -> str:
    """The run id of jobs, given their keys and names: the same manifest on the same base is the
    same run."""
    jobs = [[key, [list(pair) for pair in sorted(names[key])]] for key in sorted(names)]
    return key_of("run", jobs=jobs)[:RUN_ID_LENGTH]


def list_runs(store: Store) -> list[str]:
    """All runs of a store, sorted by name."""
    return [run_id for run_id in store.list("runs") if run_id]


def write_settings(store: Store, run_id: str, settings: dict[str, Any]) -> None:
    """Store the settings and plan of the run's last start."""
    store.write_json(f"runs/{run_id}/run.json", settings)


def read_settings(store: Store, run_id: str) -> dict[str, Any]:
    """Settings and plan of the run's last start; empty if it was never started.

    Raises:
        UserError: if the file is damaged.
    """
    path = f"runs/{run_id}/run.json"
    try:
        settings = json.loads(store.read(path))
    except FileNotFoundError:
        return {}
    except ValueError:
        settings = None
    if not _is_settings(settings):
        raise UserError(
            f"{store.url}/{path} is damaged",
            f"run the manifest of run {run_id} again, which writes the file again; finished "
            "adapters are kept",
        )
    return dict(settings)


def _is_settings(value: Any) -> bool:
    """Whether a value has the types of settings, as far as others read them."""
    if not isinstance(value, dict):
        return False
    parts = [value.get(name) or {} for name in ("request", "base", "plan")]
    starts = value.get("starts") or {}
    if not isinstance(starts, dict) or not all(isinstance(one, dict) for one in starts.values()):
        return False
    times = [value.get(name) or 0 for name in ("started", "seconds")]
    times += [number for one in starts.values() for number in one.values()]
    return all(isinstance(one, dict) for one in parts) and all(
        isinstance(one, int | float) for one in times
    )


# -- requests to a driver, running or not ---------------------------------------------------------

Request = Literal["cancel", "retry"]


class OpenRequest(NamedTuple):
    """A request that no driver has carried out yet."""

    path: str
    what: Request
    keys: list[str] | None
    """None means all jobs."""


def ask(store: Store, run_id: str, what: Request, keys: Sequence[str] | None) -> None:
    """Store a request for the run's driver: the current one, or the next one."""
    body = {"what": what, "keys": None if keys is None else list(keys)}
    name = f"{time.time_ns():020d}-{uuid.uuid4().hex}"
    store.write_json(f"runs/{run_id}/requests/{name}.json", body)


def open_requests(store: Store, run_id: str) -> list[OpenRequest]:
    """The requests that are not closed, in the order in which they were made."""
    found = []
    for name in store.list(f"runs/{run_id}/requests"):
        path = f"runs/{run_id}/requests/{name}"
        body = store.read_json(path)
        found.append(OpenRequest(path, body["what"], body["keys"]))
    return found


def close_requests(store: Store, requests: Iterable[OpenRequest]) -> None:
    """Remove requests, once they are carried out and the ledger is written: a driver that is killed
    before leaves them to the next one. Carrying one out twice does no harm."""
    for request in requests:
        store.delete(request.path)
