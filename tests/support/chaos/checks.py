"""What must be true after a round, however many faults it had."""

from __future__ import annotations

import json
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from farm.adapters.files.folder import load_adapter
from farm.adapters.registry import Registry
from farm.adapters.weights import AdapterWeights
from farm.base.loading import load_base
from farm.errors import FarmError
from farm.storage import Store
from farm.training.dispatch.compaction import read_state
from farm.training.dispatch.ledger import Status, replay
from support.chaos.faults import CONTROLLER, DISPATCHER, LANE

if TYPE_CHECKING:
    from support.chaos.round import Round

TOLERANCE = 1e-4
"""Largest norm of an adapter's difference, as a share of its norm."""
WEIGHT_TOLERANCE = 1e-2
"""Largest difference of one weight, as a share of its tensor's largest. Where a weight's gradient
is as small as rounding, Adam makes a step of rounding's sign."""
HELPERS = ("PlacementGroupCleaner", "DatasetManager", "SynchronizationActor")
"""Ray Train's further actors."""
PATIENCE_S = 20.0
"""How long the cluster's processes may take to end after the driver."""


@dataclass
class Findings:
    """What is wrong; empty lists are right."""

    lost: list[str] = field(default_factory=list)
    """Subjects without an adapter."""
    doubled: list[str] = field(default_factory=list)
    """Jobs that were committed twice, and adapters that no subject has."""
    wrong: list[str] = field(default_factory=list)
    """Adapters that do not load, or are not those of the undisturbed run."""
    checkpoints: list[str] = field(default_factory=list)
    locks: list[str] = field(default_factory=list)
    processes: list[str] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)
    ledger: list[str] = field(default_factory=list)
    worst_difference: float = 0.0
    worst_weight: float = 0.0

    @property
    def faulty(self) -> dict[str, list[str]]:
        """Whatever was found, by name."""
        found = {name: value for name, value in vars(self).items() if isinstance(value, list)}
        return {name: value for name, value in found.items() if value}


def check_round(round_: Round, *, is_complete: bool) -> Findings:
    """Check store, ledger, processes and folders after the last driver has ended."""
    found = Findings()
    store = round_.ledger.store
    if not is_complete:
        found.lost.append(f"the run did not end in time: {round_.ends[-3:]}")
    _check_adapters(round_, found)
    _check_ledger(round_, found)
    found.checkpoints += list(store.walk("checkpoints"))
    found.locks += [path for path in _last_locks(store) if not _is_released(store, path)]
    _check_processes(round_, found)
    tmp = round_.folder / "tmp"
    found.folders += sorted(path.name for path in tmp.iterdir() if path.name.startswith("farm"))
    return found


def _check_adapters(round_: Round, found: Findings) -> None:
    registry = Registry(round_.ledger.store)
    reference = Registry(Store(round_.folder / "reference"))
    named = {one.name: one for one in registry.names()}
    expected = {one.name: one for one in reference.names()}
    assert len(expected) == round_.subjects, "the undisturbed run has not trained all"
    found.lost += sorted(expected.keys() - named.keys())
    found.doubled += sorted(named.keys() - expected.keys())
    keys = {one.job_key for one in expected.values()}
    found.doubled += sorted(set(registry.store.list("adapters")) - keys)
    base = load_base("tiny")
    for name in sorted(expected.keys() & named.keys()):
        key = expected[name].job_key
        if named[name].job_key != key:
            found.wrong.append(f"{name}: the name points to {named[name].job_key}")
            continue
        folders = [round_.folder / kind / name for kind in ("fetched", "expected")]
        try:
            registry.fetch(key, folders[0])
            ours = load_adapter(folders[0], base)
        except FarmError as error:
            found.wrong.append(f"{name}: {error}")
            continue
        reference.fetch(key, folders[1])
        compare(name, ours, load_adapter(folders[1], base), found)


def compare(name: str, ours: AdapterWeights, theirs: AdapterWeights, found: Findings) -> None:
    """Note how an adapter differs from that of the undisturbed run."""
    squares, norm, worst = 0.0, 0.0, 0.0
    for layer, expected in theirs.layers.items():
        mine = ours.layers[layer]
        for one, other in ((mine.down, expected.down), (mine.up, expected.up)):
            difference = torch.nan_to_num(one - other, nan=1e9)
            squares += float(difference.square().sum())
            norm += float(other.square().sum())
            scale = other.abs().max().clamp_min(1e-12)
            worst = max(worst, float(difference.abs().max() / scale))
    share = (squares / norm) ** 0.5
    found.worst_difference = max(found.worst_difference, share)
    found.worst_weight = max(found.worst_weight, worst)
    if not (share <= TOLERANCE and worst <= WEIGHT_TOLERANCE):
        found.wrong.append(f"{name}: differs by {share:.2g}, one weight by {worst:.2g}")


def _check_ledger(round_: Round, found: Findings) -> None:
    ledger = round_.ledger
    for run_id, run in ledger.runs.items():
        if read_state(ledger.store, run_id).jobs != replay(run.events):
            found.ledger.append(f"{run_id}: state file and events lead to different states")
    jobs = ledger.jobs.values()
    left = Counter(job.status for job in jobs if job.status is not Status.COMMITTED)
    found.ledger += [f"{count} {status} after the end" for status, count in left.items()]
    commits = Counter(event.job for event in ledger.events if event.kind == "committed")
    found.doubled += [
        f"{key} committed {count} times" for key, count in commits.items() if count > 1
    ]


def _last_locks(store: Store) -> list[str]:
    folders = [f"runs/{run}/drivers" for run in store.list("runs")]
    folders += [f"priors/{key}/claims" for key in store.list("priors")]
    return [f"{folder}/{names[-1]}" for folder in folders if (names := store.list(folder))]


def _is_released(store: Store, path: str) -> bool:
    return bool(json.loads(store.read(path))["released"])


def _check_processes(round_: Round, found: Findings) -> None:
    until = time.monotonic() + PATIENCE_S
    while True:
        left = [
            f"{title} on {name}"
            for title in (LANE, CONTROLLER, DISPATCHER, *HELPERS)
            for name, _ in round_.cluster.processes(title)
        ]
        if not left or time.monotonic() > until:
            break
        time.sleep(0.5)
    found.processes += left


__all__ = ["Findings", "Path", "check_round"]
