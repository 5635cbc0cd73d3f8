"""Subjects of earlier runs of a manifest that the manifest no longer names.

Owns how they are found. A store keeps their adapters, and endpoints serve them, until they are
revoked.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import partial

from farm.adapters.registry import Registry
from farm.errors import UserError
from farm.storage import Store
from farm.training.run.files import list_runs, read_assignments, read_settings
from farm.training.run.job_files import count_jobs
from farm.training.run.request import PreparedRun

__all__ = ["no_longer_named"]

PARALLEL_READS = 16
MOST_RUNS = 100
"""Runs of a store whose settings are looked at: this concerns only a note."""
MOST_JOBS = 5_000
"""Jobs of the larger of the two runs."""
MOST_NAMES = 100
"""Names that are looked up."""


def no_longer_named(prepared: PreparedRun) -> list[str]:
    """``namespace/name`` of adapters that the manifest's last other run in this store has trained,
    that the manifest no longer names, and that are not revoked; sorted.

    Empty where looking would take long, and where subjects of the manifest are left out for faults:
    they are still named.
    """
    store = prepared.store
    if prepared.num_rejected or len(prepared.jobs) > MOST_JOBS:
        return []
    earlier = _last_run(store, prepared)
    if earlier is None or count_jobs(store, earlier) > MOST_JOBS:
        return []
    now = {pair for item in prepared.jobs.assignments() for pair in item.names}
    before = {pair for item in read_assignments(store, earlier) for pair in item.names}
    registry = Registry(store)
    kept = []
    for namespace, name in sorted(before - now)[:MOST_NAMES]:
        named = registry.resolve(namespace, name)
        if named is not None and not registry.is_revoked(named.job_key, namespace):
            kept.append(f"{namespace}/{name}")
    return kept


def _last_run(store: Store, prepared: PreparedRun) -> str | None:
    """The run of the same manifest, other than this one, that was started last."""
    others = [run_id for run_id in list_runs(store) if run_id != prepared.run_id]
    if not others or len(others) > MOST_RUNS:
        return None
    with ThreadPoolExecutor(PARALLEL_READS) as pool:
        starts = list(pool.map(partial(_start_of, store), others))
    mine = prepared.request.manifest.rstrip("/")
    found = [
        (started, run_id)
        for (manifest, started), run_id in zip(starts, others, strict=True)
        if manifest == mine
    ]
    return max(found)[1] if found else None


def _start_of(store: Store, run_id: str) -> tuple[str, float]:
    """A run's manifest, and when it was last started."""
    try:
        settings = read_settings(store, run_id)
    except UserError:  # damaged settings concern no other run
        return "", 0.0
    asked = settings.get("request") or {}
    return str(asked.get("manifest") or "").rstrip("/"), float(settings.get("started") or 0.0)
