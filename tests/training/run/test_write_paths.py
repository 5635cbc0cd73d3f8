"""Every write path, killed at every point and with a store that fails at every point.

A run's processes follow one another: each takes the lock, writes ledger, checkpoint, prior set,
adapter and name, and is killed or meets a failing store somewhere. What readers see in between is
complete or absent, and the last process, which nothing disturbs, finishes the run.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.store.write_paths import saved_adapter, slot_state

from farm.adapters.file_names import DIFFUSERS_FILE, RECORD_FILE
from farm.adapters.registry import Registry
from farm.base.interface import Base
from farm.base.loading import load_base
from farm.errors import StoreError
from farm.intake.job import PriorSpec
from farm.locks import Owner, StoreLock
from farm.storage import Store
from farm.training.dispatch.compaction import read_state
from farm.training.dispatch.ledger import Ledger, Status, read_events, replay
from farm.training.lane.publisher import Publisher, load_checkpoint
from farm.training.priors.storage import (
    commit_prior_set,
    is_ready,
    parts_of,
    read_prior_set,
    write_part,
    write_prompt,
)

Result = TypeVar("Result")
Fault = Literal["none", "refused", "unanswered", "killed before", "killed after"]
FAULTS: tuple[Fault, ...] = ("refused", "unanswered", "killed before", "killed after")
RUN, JOB, TTL_S = "r", "k" * 32, 60.0
SPEC = PriorSpec(
    base_fingerprint="f" * 64,
    class_prompt="a photo of a cat",
    num_images=2,
    resolution_px=64,
    steps=1,
)


class Killed(BaseException):
    """The process is gone."""


class FaultyStore(Store):
    """Each access meets the next fault; an unanswered write is done and raises."""

    def __init__(self, url: str, faults: Sequence[Fault]) -> None:
        super().__init__(url)
        self._faults = iter(faults)

    def _attempt(self, path: str, call: Callable[[], Result], *, is_write: bool = False) -> Result:
        fault = next(self._faults, "none")
        if fault == "killed before":
            raise Killed
        if fault == "refused":
            raise StoreError("refused")
        result = call()
        if fault == "killed after":
            raise Killed
        if fault == "unanswered":
            raise StoreError("no answer")
        return result


@dataclass
class World:
    """What all processes share, and what was seen so far."""

    folder: Path
    base: Base
    now: float = 1_000.0
    locks: list[int] = field(default_factory=list)
    record: bytes | None = None
    is_flushed: bool = False
    """Whether a commit is certainly in the ledger."""

    @property
    def url(self) -> str:
        return str(self.folder / "store")

    def live(self, number: int, faults: Sequence[Fault]) -> bool:
        """One process from start to end; whether it finished."""
        store = FaultyStore(self.url, faults)
        try:
            return self._work(number, store)
        except (Killed, StoreError):
            return False
        finally:
            self.now += 2 * TTL_S  # no one knows whether it is dead: its lock expires
            self._look()

    def _work(self, number: int, store: Store) -> bool:
        owner = Owner("", number, "", f"token {number}")
        lock = StoreLock.take(
            store, f"runs/{RUN}/drivers", ttl_s=TTL_S, owner=owner, clock=lambda: self.now
        )
        if lock is None:
            return False
        self.locks.append(lock.number)
        ledger = Ledger(store, RUN, epoch=lock.number, clock=lambda: self.now)
        ledger.queue([JOB])
        ledger.append("leased", JOB, lane=f"l{number}")
        ledger.flush()
        assert lock.renew()
        self._save_checkpoint(store, number)
        self._write_prior(store, f"a{number}")
        is_new = self._publish(store, number)
        ledger.append("committed" if is_new else "reused", JOB, lane=f"l{number}", step=number)
        ledger.flush()
        self.is_flushed = True
        lock.release()
        return True

    def _save_checkpoint(self, store: Store, step: int) -> None:
        publisher = Publisher(store, self.base, (), lambda _: None, num_threads=1)
        publisher.checkpoint(slot_state(JOB, step))
        publisher.close()

    def _write_prior(self, store: Store, attempt: str) -> None:
        if is_ready(store, SPEC.key):
            return
        arrays = {
            "id": np.arange(2),
            "seed": np.arange(2),
            "image": np.zeros((2, 4, 4, 3), np.uint8),
            "moments": np.ones((2, 2, 4, 8, 8), np.float32),
        }
        records = [write_part(store, attempt, part, arrays) for part in parts_of(SPEC)]
        records.append(write_prompt(store, attempt, self.base, SPEC))
        commit_prior_set(store, SPEC, attempt, records)

    def _publish(self, store: Store, number: int) -> bool:
        files = {DIFFUSERS_FILE: f"weights {number}".encode(), "x.safetensors": b"x%d" % number}
        return Registry(store).publish(
            *saved_adapter(self.folder / f"adapter-{number}", JOB, files)
        )

    def _look(self) -> None:
        """What any reader may do at any moment."""
        store = Store(self.url)
        registry = Registry(store)
        assert len(set(self.locks)) == len(self.locks)  # no number is given twice
        named = registry.resolve("default", "kira")
        if registry.is_committed(JOB):
            record = store.read(f"adapters/{JOB}/{RECORD_FILE}")
            assert self.record in (None, record)  # what is committed stays
            self.record = record
            with tempfile.TemporaryDirectory() as folder:
                registry.fetch(JOB, folder)
        else:
            assert named is None
            assert self.record is None
        state = load_checkpoint(store, JOB)
        assert state is None or float(state.weights.layers["unet.to_q"].up[0, 0]) == state.step
        if is_ready(store, SPEC.key):
            assert read_prior_set(store, SPEC.key)["moments"].shape == (2, 2, 4, 8, 8)
        jobs = replay(read_events(store, RUN))
        assert read_state(store, RUN).jobs == jobs
        if self.is_flushed:
            assert jobs[JOB].status is Status.COMMITTED


@pytest.fixture(scope="module")
def base() -> Base:
    return load_base("tiny")


def some_faults() -> st.SearchStrategy[list[Fault]]:
    """Faults that are spread over a process's forty or so accesses."""
    quiet = st.integers(0, 30)
    return st.lists(st.tuples(quiet, st.sampled_from(FAULTS)), max_size=3).map(_spread)


def _spread(pairs: Sequence[tuple[int, Fault]]) -> list[Fault]:
    def faults() -> Iterator[Fault]:
        for quiet, fault in pairs:
            yield from ["none"] * quiet  # type: ignore[misc]
            yield fault

    return list(faults())


@settings(max_examples=25)
@given(lives=st.lists(some_faults(), max_size=4))
def test_what_is_written_is_whole_and_lasts_wherever_processes_are_killed(
    base: Base, lives: list[list[Fault]]
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        world = World(Path(folder), base)
        for number, faults in enumerate(lives):
            world.live(number, faults)
        assert world.live(len(lives), [])
        store = Store(world.url)
        assert replay(read_events(store, RUN))[JOB].status is Status.COMMITTED
        assert is_ready(store, SPEC.key)
        named = Registry(store).resolve("default", "kira")
        assert named is not None
        assert world.record is not None
        assert named.job_key == JOB
