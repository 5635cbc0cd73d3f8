"""A driver that is killed in any way leaves no lock and no folders behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Literal

import psutil
import pytest

from farm import locks as claims
from farm.locks import StoreLock, holder
from farm.storage import Store
from farm.training.lane.scratch import scratch_folder, sweep_folders
from farm.training.run.lock_guard import LockGuard

DRIVER = """
import os, sys, tempfile, time
from farm.storage import Store
from farm.training.run.lock_guard import LockGuard
from farm.locks import StoreLock
from farm.training.lane.scratch import scratch_folder
store = Store(sys.argv[1])
lock = StoreLock.take(store, "c", ttl_s=3600)
if len(sys.argv) > 2:  # the current folder is gone
    with tempfile.TemporaryDirectory() as gone:
        os.chdir(gone)
guard = LockGuard(store, lock)
folder = scratch_folder("train")
print(folder.name, flush=True)
time.sleep(120)
"""


def released(store: Store) -> bool:
    """As seen from another machine, which cannot check whether the process is dead."""
    number = max(int(name.removesuffix(".json")) for name in store.list("c"))
    return bool(store.read_json(f"c/{number:06d}.json")["released"])


def await_true(condition: Callable[[], bool], seconds: float = 30) -> bool:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if condition():
            return True
        time.sleep(0.05)
    return False


def guards_of(store: Store) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter(["cmdline"]):
        if store.url in " ".join(process.info["cmdline"] or ()):
            found.append(process)
    return found


@pytest.mark.parametrize(("sign", "where"), [(signal.SIGKILL, []), (signal.SIGTERM, ["gone"])])
def test_a_killed_process_group_releases_its_claim_and_folders(
    tmp_path: Path, sign: signal.Signals, where: list[str]
) -> None:
    store = Store(tmp_path / "store")
    process = subprocess.Popen(
        [sys.executable, "-c", DRIVER, store.url, *where],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    folder = Path(process.stdout.readline().strip())
    assert folder.is_dir()
    assert not await_true(lambda: released(store), 1.5 if where else 0.0)
    os.killpg(process.pid, sign)
    process.wait()
    assert await_true(lambda: released(store))
    assert await_true(lambda: not folder.exists())
    assert holder(store, "c") is None


@pytest.mark.parametrize("left", ["lock", "folder", "nothing"])
def test_after_a_run_the_guard_does_what_is_left_and_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, left: str
) -> None:
    store = Store(tmp_path / "store")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # without other runs' folders
    lock = StoreLock.take(store, "c", ttl_s=3600)
    assert lock is not None
    guard = LockGuard(store, lock)
    assert len(guards_of(store)) == 1
    with scratch_folder("train") if left == "folder" else nullcontext():
        guard.close(is_released=left != "lock")
    if left == "nothing":
        assert await_true(lambda: not guards_of(store))
        assert not released(store)  # it trusts the driver, and does not look
    else:
        assert await_true(lambda: released(store))


def test_a_claim_that_another_driver_took_meanwhile_stays_its_own(tmp_path: Path) -> None:
    store = Store(tmp_path)
    mine = StoreLock.take(store, "c", ttl_s=60)
    assert mine is not None
    other = StoreLock.take(store, "c", ttl_s=60, force=True)
    assert other is not None
    assert not claims.release_dead(store, "c", mine.owner.token)
    assert holder(store, "c") == other.owner


@pytest.mark.parametrize("use", ["train", "adapter"])
def test_folders_of_living_processes_are_left_alone(use: Literal["train", "adapter"]) -> None:
    with scratch_folder(use) as folder:
        sweep_folders()
        assert Path(folder).is_dir()
    # a folder of another process with the same id, started at another time
    pid, ticks = os.getpid(), replace(claims.current_owner()).started
    name = Path(folder).name.replace(f"-{pid}-{ticks}-", f"-{pid}-1-")
    dead = Path(tempfile.gettempdir()) / name
    dead.mkdir()
    assert sweep_folders() >= 1
    assert not dead.exists()
