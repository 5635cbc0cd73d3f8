"""Compacted ledgers: they give the same state as the segments, or are ignored."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from farm.storage import Store
from farm.training.dispatch import ledger as ledger_module
from farm.training.dispatch.compaction import read_state
from farm.training.dispatch.ledger import EventKind, Ledger, read_events, replay

FOLDER = "runs/r/ledger"
KINDS: list[EventKind] = [
    "queued", "leased", "progress", "released", "lost", "committed", "failed", "retry",
    "quarantined", "rejected", "cancelled", "vanished", "reused",
]  # fmt: skip


@pytest.fixture(autouse=True)
def short_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger_module, "SEGMENT_BYTES", 300)


def state_files(store: Store) -> list[str]:
    return [name for name in store.list(FOLDER) if name.endswith(".state")]


def write(store: Store, num: int = 60, *, epoch: int = 1, prefix: str = "job") -> Ledger:
    """A ledger of some segments and state files."""
    ledger = Ledger(store, "r", epoch=epoch, compact_events=10)
    for number in range(num):
        key, lane = f"{prefix}-{number % 20:02d}", f"{number}#x"
        ledger.append("queued", key)
        ledger.append("leased", key, lane=lane, expires=5.0)
        ledger.append("progress", key, lane=lane, step=number, expires=9.5)
        if number % 3:
            ledger.append("failed", key, lane=lane, reason="too\u2028hot", remedy="cool it")
            ledger.append("retry", key)
        else:
            ledger.append("committed", key, lane=lane, step=7, seconds=1.25)
        ledger.flush()
        ledger.settle()
    return ledger


def test_a_restart_replays_only_what_no_state_file_covers(tmp_path: Path) -> None:
    store = Store(tmp_path)
    ledger = write(store)
    state = read_state(store, "r")
    everything = list(read_events(store, "r"))
    assert state.jobs == ledger.jobs == replay(everything)
    assert list(state.jobs) == list(replay(everything))
    assert 0 <= state.num_replayed < len(everything) / 2
    assert state.first_lease == min(event.at for event in everything if event.kind == "leased")
    assert 1 <= len(state_files(store)) <= 2


def test_a_torn_state_file_is_passed_over_for_the_one_before_or_the_segments(
    tmp_path: Path,
) -> None:
    store = Store(tmp_path)
    expected = write(store).jobs
    for name in reversed(state_files(store)):
        path = f"{FOLDER}/{name}"
        whole = store.read(path)
        for torn in (b"", whole[:20], whole[: len(whole) // 2], whole[:-1], whole + b"x", b"[]\n"):
            store.write(path, torn)
            assert read_state(store, "r").jobs == expected
    assert read_state(store, "r").num_replayed == len(list(read_events(store, "r")))
    for name in state_files(store):
        store.delete(f"{FOLDER}/{name}")
    assert Ledger(store, "r", epoch=2).jobs == expected


def test_a_state_file_is_void_once_the_segments_it_covers_have_changed(tmp_path: Path) -> None:
    store = Store(tmp_path)
    write(store, epoch=2)
    late = b'{"kind":"queued","job":"late","at":1.0}\n'
    store.write(f"{FOLDER}/000001-000009.jsonl", late)  # a writer that was thought dead
    assert "late" in read_state(store, "r").jobs
    assert read_state(store, "r").jobs == replay(read_events(store, "r"))


def test_a_ledger_of_a_farm_without_state_files_is_read_and_compacted(tmp_path: Path) -> None:
    store = Store(tmp_path)
    write(store)
    for name in state_files(store):
        store.delete(f"{FOLDER}/{name}")
    ledger = write(store, 20, epoch=2, prefix="more")
    assert state_files(store)
    assert read_state(store, "r").jobs == ledger.jobs == replay(read_events(store, "r"))


def test_a_store_that_refuses_state_files_costs_time_and_no_event(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path)
    write_object = Store.write

    def refuse(self: Store, path: str, data: bytes) -> None:
        if path.endswith(".state"):
            raise OSError("no space")
        write_object(self, path, data)

    monkeypatch.setattr(Store, "write", refuse)
    ledger = write(store)
    assert state_files(store) == []
    assert read_state(store, "r").jobs == ledger.jobs


step = st.tuples(
    st.sampled_from(KINDS), st.sampled_from("abcde"), st.sampled_from(["0#x", "1#y"]),
    st.integers(0, 9), st.sampled_from(["go", "go", "flush", "restart"]),
)  # fmt: skip


@settings(deadline=None, max_examples=60, suppress_health_check=list(HealthCheck))
@given(history=st.lists(step, max_size=60))
def test_after_any_history_state_files_and_segments_agree(
    history: list[tuple[EventKind, str, str, int, str]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    store, epoch = Store(tmp_path_factory.mktemp("s")), 1
    ledger = Ledger(store, "r", epoch=epoch, compact_events=3)
    for kind, key, lane, number, then in history:
        ledger.append(kind, key, lane=lane, step=number, reason="because", seconds=number / 3)
        if then == "go":
            continue
        ledger.flush()
        ledger.settle()
        assert read_state(store, "r").jobs == replay(read_events(store, "r")) == ledger.jobs
        if then == "restart":
            epoch += 1
            ledger = Ledger(store, "r", epoch=epoch, compact_events=3)
