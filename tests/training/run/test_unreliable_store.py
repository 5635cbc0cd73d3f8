"""Write paths on an object store that drops, delays, repeats, reorders and cuts requests short, by
processes that are killed at every point: nothing committed is lost, nothing half-written is seen as
whole.

``FARM_MODEL_EXAMPLES`` sets how many random plans of faults each path meets.
"""

from __future__ import annotations

import itertools
import os
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tenacity.nap
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.assignments import FINGERPRINT
from support.store.unreliable_store import (
    FAULTS,
    Fault,
    Killed,
    Objects,
    Work,
    at_every_point,
    carry_out,
    open_store,
)
from support.store.write_paths import saved_adapter, slot_state

from farm.adapters.file_names import DIFFUSERS_FILE
from farm.adapters.record import AdapterRecord
from farm.adapters.registry import Registry
from farm.errors import FarmError
from farm.intake.job import PriorSpec
from farm.keys import bytes_digest
from farm.locks import StoreLock, current_owner, holder
from farm.storage import Store
from farm.training.dispatch import ledger as ledger_module
from farm.training.dispatch.compaction import read_state
from farm.training.dispatch.ledger import Ledger, read_events, replay
from farm.training.lane.publisher import Publisher, load_checkpoint
from farm.training.priors import storage as prior_storage
from farm.training.priors.storage import (
    Part,
    PartRecord,
    commit_prior_set,
    is_ready,
    read_prior_set,
    write_part,
)
from farm.training.run.files import ask, close_requests, open_requests

KEY, OTHER_KEY = "a" * 32, "b" * 32
NUM_EXAMPLES = int(os.environ.get("FARM_MODEL_EXAMPLES", "15"))

plans = st.lists(st.sampled_from(("", "", *FAULTS)), max_size=40)
random_plans = settings(
    max_examples=NUM_EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck)
)
in_threads = pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
"""A fault may end the thread that writes state files."""


@pytest.fixture(autouse=True, scope="module")
def _no_pauses() -> Iterator[None]:
    """Retries follow each other at once."""
    patch = pytest.MonkeyPatch()
    patch.setattr(tenacity.nap, "time", types.SimpleNamespace(sleep=lambda _: None))
    patch.setattr(ledger_module, "SEGMENT_BYTES", 300)
    yield
    patch.undo()


# -- adapters and names ---------------------------------------------------------------------------


class Adapters:
    """Adapters that are published, and what readers may see meanwhile."""

    def __init__(self, folder: Path) -> None:
        self.store, self.objects = open_store()
        self.registry = Registry(self.store)
        self.folder = folder
        self.objects.observe = self.check
        self.committed: dict[str, AdapterRecord] = {}

    def saved(self, weights: str, key: str = KEY) -> tuple[AdapterRecord, Path]:
        """An adapter of these weights; two trainings of a job differ in the last bits."""
        files = {DIFFUSERS_FILE: weights, "samples/000.png": f"image of {weights}"}
        contents = {name: text.encode() for name, text in files.items()}
        return saved_adapter(self.folder / f"{key[:1]}-{weights}", key, contents)

    def publish(self, weights: str, key: str = KEY) -> None:
        self.registry.publish(*self.saved(weights, key))

    def check(self) -> None:
        """What is committed is whole and stays as it is; names point to what is committed."""
        for key in (KEY, OTHER_KEY):
            if self.registry.is_committed(key):
                record = self.registry.record(key)
                assert self.committed.setdefault(key, record) == record
                self.check_files(record)
            else:
                assert key not in self.committed
        named = self.registry.resolve("default", "kira")
        if named is not None:
            assert named.sha256 == self.committed[named.job_key].files[DIFFUSERS_FILE]

    def check_files(self, record: AdapterRecord) -> None:
        for name, sha256 in record.files.items():
            data = self.store.read(f"adapters/{record.job_key}/{name}")
            assert bytes_digest(data) == sha256, f"{name} is not the file of its record"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("adapters")


def test_an_adapter_is_published_whole_whatever_happens_at_any_request(folder: Path) -> None:
    def make() -> tuple[Objects, Work]:
        adapters, trained = Adapters(folder), itertools.count()
        return adapters.objects, lambda: adapters.publish(f"weights {next(trained)}")

    at_every_point(make)


@random_plans
@given(plan=plans)
def test_a_name_points_to_a_whole_adapter_under_any_plan_of_faults(
    folder: Path, plan: list[Fault]
) -> None:
    adapters, trained = Adapters(folder), itertools.count()

    def work() -> None:
        adapters.publish(f"weights {next(trained)}")
        adapters.publish("another recipe", OTHER_KEY)

    carry_out(adapters.objects, work, plan)
    assert adapters.registry.committed_keys() == [KEY, OTHER_KEY]
    named = adapters.registry.resolve("default", "kira")
    assert named is not None
    assert named.version(KEY) is not None
    assert named.version(OTHER_KEY) is not None


def test_two_lanes_that_publish_one_job_at_once_leave_one_whole_adapter(folder: Path) -> None:
    """A lane that was thought dead finishes beside its successor, with other last bits."""
    probe = Adapters(folder)
    probe.publish("first")
    for point in range(probe.objects.num_requests + 1):
        adapters = Adapters(folder)
        adapters.objects.observe = lambda: None  # while both write, readers find a digest to differ
        begun = adapters.objects.num_requests

        def interleaved(adapters: Adapters = adapters, at: int = begun + point) -> Iterator[Fault]:
            while adapters.objects.num_requests <= at:
                yield ""
            adapters.objects.plan = iter(())
            adapters.publish("second")

        adapters.objects.fail(interleaved())
        adapters.publish("first")
        adapters.objects.plan = iter(())
        adapters.check_files(adapters.registry.record(KEY))
        named = adapters.registry.resolve("default", "kira")
        assert named is not None
        assert named.sha256 == adapters.registry.record(KEY).files[DIFFUSERS_FILE]


# -- the ledger -----------------------------------------------------------------------------------


class Journal:
    """A ledger and the events that its writers know to be written."""

    def __init__(self) -> None:
        self.store, self.objects = open_store()
        self.epoch = 0
        self.acknowledged: list[tuple[str, int]] = []
        self.objects.observe = self.check

    def work(self) -> None:
        """One driver's life: a few jobs, written in several segments and state files."""
        self.epoch += 1
        ledger = Ledger(self.store, "r", epoch=self.epoch, compact_events=4)
        for number in range(8):
            key, lane = f"job-{number % 3}", f"{self.epoch}#x"
            ledger.append("queued", key)
            ledger.append("leased", key, lane=lane, expires=5.0)
            ledger.append("progress", key, lane=lane, step=number)
            ledger.append("released", key, lane=lane, step=number)
            ledger.flush()
            self.acknowledged.append((lane, number))
            ledger.settle()

    def check(self) -> None:
        events = list(read_events(self.store, "r"))
        written = {(event.lane, event.step) for event in events if event.kind == "released"}
        assert written.issuperset(self.acknowledged)
        assert read_state(self.store, "r").jobs == replay(events)


LEDGER_FAULTS: tuple[Fault, ...] = ("refused", "unanswered", "killed before", "killed after")
"""A late write of a segment would replace a later one by its beginning, until the next write a
second later; and a segment cut at the end of a line is not noticed. Both only repeat work."""


@in_threads
def test_an_event_that_was_written_is_never_lost_whatever_happens_at_any_request() -> None:
    def make() -> tuple[Objects, Work]:
        journal = Journal()
        return journal.objects, journal.work

    at_every_point(make, faults=LEDGER_FAULTS)


@in_threads
@random_plans
@given(plan=st.lists(st.sampled_from(("", "", *LEDGER_FAULTS)), max_size=60))
def test_an_event_that_was_written_is_never_lost_under_any_plan_of_faults(
    plan: list[Fault],
) -> None:
    journal = Journal()
    carry_out(journal.objects, journal.work, plan)
    journal.check()


# -- locks ----------------------------------------------------------------------------------------


@random_plans
@given(
    plan=plans,
    steps=st.lists(st.sampled_from(["take a", "take b", "renew", "release", "wait"]), max_size=14),
)
def test_a_lock_has_one_owner_under_any_plan_of_faults(plan: list[Fault], steps: list[str]) -> None:
    store, objects = open_store()
    now = [0.0]
    owners = {name: current_owner() for name in "ab"}
    locks: dict[str, StoreLock] = {}

    def act(step: str) -> None:
        name = step[-1]
        if step == "wait":
            now[0] += 40
        elif step.startswith("take"):
            lock = StoreLock.take(
                store, "locks", ttl_s=60, owner=owners[name], clock=lambda: now[0]
            )
            if lock is not None:
                locks[name] = lock
        for lock in list(locks.values()) if step in ("renew", "release") else ():
            if step == "renew":
                lock.renew()
            elif holder(store, "locks", now[0]) == lock.owner:
                lock.release()

    objects.fail(plan)
    for step in steps:
        try:
            act(step)
        except (Killed, FarmError):
            locks.clear()
        valid = [lock for lock in locks.values() if _is_valid(objects, store, lock, now[0])]
        assert len(valid) <= 1
    objects.land()
    now[0] += 61
    assert StoreLock.take(store, "locks", ttl_s=60, owner=owners["a"], clock=lambda: now[0])


def _is_valid(objects: Objects, store: Store, lock: StoreLock, now: float) -> bool:
    plan, objects.plan = objects.plan, iter(())
    try:
        return holder(store, "locks", now) == lock.owner
    finally:
        objects.plan = plan


# -- prior sets -----------------------------------------------------------------------------------


class Priors:
    """A prior set of two parts and a prompt, generated by attempts that may be killed."""

    spec = PriorSpec(
        base_fingerprint=FINGERPRINT, class_prompt="a cat", num_images=2, resolution_px=8
    )

    def __init__(self) -> None:
        self.store, self.objects = open_store()
        self.objects.observe = self.check
        self._attempts = itertools.count()

    def work(self) -> None:
        attempt = f"attempt-{next(self._attempts)}"
        part = Part(self.spec.key, 0, 0, 2)
        arrays: dict[str, Any] = {
            "id": np.arange(2),
            "seed": np.arange(2),
            "moments": np.full((2, 2, 1, 1, 1), 7.0, np.float32),
        }
        record = write_part(self.store, attempt, part, arrays)
        prompt = {"tokens": np.ones((1, 3)), "hidden": np.ones((1, 3, 2))}
        data = prior_storage._parquet(prompt)
        self.store.write(f"priors/{self.spec.key}/{attempt}/prompt.parquet", data)
        last = PartRecord(self.spec.key, "prompt.parquet", 0, bytes_digest(data))
        commit_prior_set(self.store, self.spec, attempt, [record, last])

    def check(self) -> None:
        if is_ready(self.store, self.spec.key):
            assert read_prior_set(self.store, self.spec.key)["moments"].shape[0] == 2


def test_a_prior_set_is_complete_or_missing_whatever_happens_at_any_request() -> None:
    def make() -> tuple[Objects, Work]:
        priors = Priors()
        return priors.objects, priors.work

    at_every_point(make)


# -- checkpoints ----------------------------------------------------------------------------------


class Checkpoints:
    """A job that is saved every few steps by lanes that may be killed."""

    def __init__(self) -> None:
        self.store, self.objects = open_store()
        self.objects.observe = self.check
        self.newest = 0

    def work(self) -> None:
        publisher: Any = Publisher.__new__(Publisher)
        Publisher.__init__(publisher, self.store, None, (), lambda _: None, num_threads=1)  # type: ignore[arg-type]
        try:
            for step in (100, 200, 300):
                publisher._save_checkpoint(slot_state(KEY, step))
                if publisher._trouble.current() is None:
                    self.newest = max(self.newest, step)
        finally:
            publisher.close()
        if self.newest < 300:
            raise FarmError("the last checkpoint is not written yet")

    def check(self) -> None:
        found = load_checkpoint(self.store, KEY)
        assert (found.step if found is not None else 0) >= self.newest
        if found is not None:
            assert found.weights.layers["unet.to_q"].down[0, 0].item() == found.step


def test_the_newest_complete_checkpoint_is_found_whatever_happens_at_any_request() -> None:
    def make() -> tuple[Objects, Work]:
        checkpoints = Checkpoints()
        return checkpoints.objects, checkpoints.work

    at_every_point(make, faults=("refused", "unanswered", "cut", "killed before", "killed after"))


# -- requests -------------------------------------------------------------------------------------


def test_a_request_is_carried_out_whatever_happens_at_any_request_to_the_store() -> None:
    def make() -> tuple[Objects, Work]:
        store, objects = open_store()
        ask(store, "r", "cancel", ["k1"])
        ask(store, "r", "retry", None)
        objects.num_requests = 0
        ledger: list[Any] = []

        def work() -> None:
            found = open_requests(store, "r")
            carried_out = [(request.what, request.keys) for request in found]
            store.write("ledger", b"written")
            ledger.extend(carried_out)
            close_requests(store, found)
            assert ledger[:2] == [("cancel", ["k1"]), ("retry", None)]

        return objects, work

    at_every_point(make)
