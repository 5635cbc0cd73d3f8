"""Other runs of a manifest in its store: one that a driver has, and the last one before.

Owns how they are found. A subject of an earlier run that the manifest no longer names keeps its
adapter, and endpoints serve it, until it is revoked. Imports no torch: a run that another driver
has is refused before anything is loaded.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import Any

from farm.adapters.registry import Registry
from farm.base.loading import fingerprint_at_hand, is_at_hand
from farm.base.names import edition_of
from farm.base.tokens import prompt_reader
from farm.errors import BaseModelError, FarmError, UserError
from farm.intake.check import check_manifest
from farm.intake.manifest import read_manifest
from farm.locks import Owner, holder
from farm.recipe import base_layers
from farm.storage import Store
from farm.training.run.files import list_runs, name_run, read_assignments, read_settings
from farm.training.run.job_files import count_jobs
from farm.training.run.job_set import jobs_of
from farm.training.run.request import PreparedRun, RunBase, RunRequest

__all__ = ["driven_elsewhere", "no_longer_named", "refuse_driven"]

PARALLEL_READS = 16
MOST_RUNS = 100
"""Runs of a store whose settings are looked at: this concerns only a note."""
MOST_JOBS = 5_000
"""Jobs of the larger of the two runs."""
MOST_NAMES = 100
"""Names that are looked up."""


def driven_elsewhere(run_id: str, owner: Owner | None) -> UserError:
    """The refusal of a run that another driver has."""
    who = f"process {owner.pid}" if owner is not None else "another driver"
    return UserError(
        f"run {run_id} is already driven by {who}",
        "wait for it, stop it, or take the run over: `farm run` with --take-over",
    )


def refuse_driven(request: RunRequest) -> None:
    """Refuse a run that another driver has, before its base is loaded.

    Only what the store holds of runs of the same manifest is looked at, and nothing is locked: the
    driver that begins takes the lock later, or is refused then.

    Raises:
        UserError: if another driver has it.
    """
    if request.take_over:
        return
    store = Store(request.store)
    wanted = (request.base, request.revision)
    for run_id, settings in _runs_of(store, request.manifest, list_runs(store)):
        asked = settings["request"]
        if (asked.get("base"), asked.get("revision")) != wanted:
            continue
        owner, base = _driver_of(store, run_id), settings.get("base") or {}
        if owner is None or not _has_weights(request.base, base.get("fingerprint")):
            continue
        if _run_id(request, base) == run_id:
            raise driven_elsewhere(run_id, owner)


def _driver_of(store: Store, run_id: str) -> Owner | None:
    """The driver that has a run; None also if its lock cannot be read, which the run itself will
    report if it is this one."""
    with suppress(FarmError, OSError):
        return holder(store, f"runs/{run_id}/drivers")
    return None


def _has_weights(base: str, fingerprint: str | None) -> bool:
    """Whether a base may have this fingerprint; one on this disk may have been trained again."""
    try:
        return not is_at_hand(base) or fingerprint_at_hand(base) == fingerprint
    except BaseModelError:  # the run itself will report it
        return False


def _run_id(request: RunRequest, base: Mapping[str, Any]) -> str | None:
    """The id of a requested run, if its base is as another run has stored it; None for a manifest
    that will be refused."""
    try:
        manifest = read_manifest(
            request.manifest,
            strict=False,
            recipe=request.recipe,
            **base_layers(edition_of(request.base)),
            family_recipe=base.get("recipe") or None,
            reader=prompt_reader(request.base, request.revision),
        )
        facts = RunBase(**base)
        check = check_manifest(manifest, resolution_px=facts.resolution_px)
    except (FarmError, TypeError):  # settings of another version; the run itself will report it
        return None
    if check.errors and not request.skip_faulty:
        return None
    return name_run(jobs_of(check, facts).names)


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
    found = [
        (float(settings.get("started") or 0.0), run_id)
        for run_id, settings in _runs_of(store, prepared.request.manifest, others)
    ]
    return max(found)[1] if found else None


def _runs_of(
    store: Store, manifest: str, run_ids: list[str]
) -> list[tuple[str, Mapping[str, Any]]]:
    """The runs of a manifest among others, with their settings; empty if there are too many."""
    if not run_ids or len(run_ids) > MOST_RUNS:
        return []
    with ThreadPoolExecutor(PARALLEL_READS) as pool:
        settings = list(pool.map(partial(_settings_of, store), run_ids))
    mine = manifest.rstrip("/")
    return [
        (run_id, found)
        for run_id, found in zip(run_ids, settings, strict=True)
        if str((found.get("request") or {}).get("manifest") or "").rstrip("/") == mine
    ]


def _settings_of(store: Store, run_id: str) -> Mapping[str, Any]:
    """A run's settings; those that are damaged, or may not be read, concern no other run."""
    try:
        return read_settings(store, run_id)
    except (FarmError, OSError):
        return {}
