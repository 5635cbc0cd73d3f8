"""A run has one driver: another one is refused before it loads anything, and when it begins."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from support.manifests import QUICK, request, write_manifest

from farm.errors import UserError
from farm.locks import StoreLock, held
from farm.training.dispatch.ledger import Status
from farm.training.dispatch.messages import Notice, Snapshot
from farm.training.execute import prepare_run, run_manifest
from farm.training.run.driver import Driver, lock_run, write_run_files
from farm.training.run.earlier import refuse_driven
from farm.training.run.status import run_status


def test_a_run_has_one_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = write_manifest(tmp_path / "m", 1)
    prepared = prepare_run(request(manifest, tmp_path / "store"))
    other = StoreLock.take(prepared.store, f"runs/{prepared.run_id}/drivers", ttl_s=60)
    assert other is not None
    with pytest.raises(UserError, match="is already driven by process"):
        run_manifest(request(manifest, tmp_path / "store"))
    mine = request(manifest, tmp_path / "store")
    refuse_driven(mine)  # nothing of that run is in the store yet
    write_run_files(prepared, other)
    with pytest.raises(UserError, match=f"run {prepared.run_id} is already driven by process"):
        refuse_driven(mine)
    refuse_driven(replace(mine, recipe=QUICK | {"seed": 1}))  # another run of the same manifest
    store = prepared.store  # damaged runs of the same manifest concern no other
    store.write("runs/0/run.json", store.read(f"runs/{prepared.run_id}/run.json"))
    store.write("runs/0/drivers/000001.json", b"{")
    (tmp_path / "store/runs/1/run.json").mkdir(parents=True)
    refuse_driven(replace(mine, recipe=QUICK | {"seed": 1}))
    with monkeypatch.context() as patch:  # the base has other weights now: another run, too
        patch.setattr("farm.base.loading.fingerprint_build", lambda name: "0" * 64)
        refuse_driven(mine)
    summary = run_manifest(replace(mine, take_over=True))
    assert summary.committed == 1
    assert not other.renew()
    refuse_driven(mine)  # its driver has ended


class Shown:
    """A display that keeps what it was given."""

    def __init__(self) -> None:
        self.snapshots: list[Snapshot] = []

    def show(self, snapshot: Snapshot, news: Sequence[Notice]) -> None:
        self.snapshots.append(snapshot)


def test_the_display_and_farm_status_show_the_drivers_remaining_time(tmp_path: Path) -> None:
    prepared = prepare_run(request(write_manifest(tmp_path / "m", 2), tmp_path / "store"))
    folder, view = f"runs/{prepared.run_id}/drivers", Shown()
    driver = Driver(prepared, lock_run(prepared), view, threading.Event())
    write_run_files(prepared, driver.lock)
    counts = dict.fromkeys(map(str, Status), 0) | {"training": 2}
    driver.show(Snapshot(counts, 2, 0.0, (), 0, is_done=False), [])
    found = held(prepared.store, folder)
    assert found is not None
    facts = run_status(prepared.store, prepared.run_id, now=found[1]["at"])
    (shown,) = view.snapshots
    assert prepared.plan is not None
    assert facts["eta_s"] == shown.left_s == pytest.approx(prepared.plan.estimate.total_s)
    # a line of the driver itself keeps the time, and a release ends it
    driver.show_line(shown, "still here")
    assert view.snapshots[1].left_s is not None
    driver.lock.release()
    assert run_status(prepared.store, prepared.run_id)["eta_s"] is None
