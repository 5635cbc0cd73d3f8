"""Claims: one holder at a time, and a dead one never blocks the next."""

from __future__ import annotations

import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from farm.locks import StoreLock, current_owner, holder
from farm.storage import Store


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path)


def test_a_claim_has_one_holder_until_it_is_released(store: Store) -> None:
    first = StoreLock.take(store, "c", ttl_s=60)
    assert first is not None
    assert StoreLock.take(store, "c", ttl_s=60) is None
    assert holder(store, "c") is not None
    first.release()
    assert holder(store, "c") is None
    second = StoreLock.take(store, "c", ttl_s=60)
    assert second is not None
    assert second.number == first.number + 1


def test_an_expired_claim_can_be_taken_and_its_holder_finds_out(store: Store) -> None:
    clock = Clock()
    first = StoreLock.take(store, "c", ttl_s=60, clock=clock)
    assert first is not None
    clock.now += 50
    assert first.renew()
    clock.now += 50
    assert StoreLock.take(store, "c", ttl_s=60, clock=clock) is None
    clock.now += 50
    second = StoreLock.take(store, "c", ttl_s=60, clock=clock)
    assert second is not None
    assert not first.renew()
    assert second.renew()


def test_a_claim_of_a_killed_process_is_free_at_once(tmp_path: Path, store: Store) -> None:
    code = (
        "import os, signal; from farm.storage import Store; from farm.locks import StoreLock;"
        f"assert StoreLock.take(Store({str(tmp_path)!r}), 'c', ttl_s=1e6);"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False)
    assert done.returncode == -9
    assert holder(store, "c") is None
    taken = StoreLock.take(store, "c", ttl_s=60)
    assert taken is not None
    assert taken.number == 2


def test_a_reused_process_number_is_not_the_old_process() -> None:
    me = current_owner()
    assert not me.is_dead()
    assert replace(me, started="1").is_dead()
    assert not replace(me, machine="another machine", started="1").is_dead()  # cannot be known


def test_force_takes_it_from_a_living_holder(store: Store) -> None:
    first = StoreLock.take(store, "c", ttl_s=60)
    assert first is not None
    assert StoreLock.take(store, "c", ttl_s=60, force=True) is not None
    assert not first.renew()


def test_of_many_that_race_one_wins(store: Store) -> None:
    won: list[StoreLock | None] = []
    barrier = threading.Barrier(8)

    def race() -> None:
        barrier.wait()
        won.append(StoreLock.take(store, "c", ttl_s=60))

    threads = [threading.Thread(target=race) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(lock is not None for lock in won) == 1
