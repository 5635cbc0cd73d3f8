"""Python's garbage collector does not stop a started endpoint."""

from __future__ import annotations

import gc
import time

import pytest

from farm.serving import collector_pauses
from farm.serving.collector_pauses import CollectorPauses


def full_collection_s() -> float:
    started_s = time.perf_counter()
    gc.collect()
    return time.perf_counter() - started_s


def test_what_a_started_endpoint_holds_is_not_collected_again() -> None:
    held = [[number] for number in range(300_000)]
    alone_s = min(full_collection_s() for _ in range(3))
    with CollectorPauses().shortened():
        inside_s = min(full_collection_s() for _ in range(3))
    assert inside_s < alone_s / 3
    assert gc.get_freeze_count() == 0
    assert len(held) == 300_000


def test_objects_that_make_collections_long_are_left_out_of_later_ones(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pauses = CollectorPauses()
    with pauses.shortened():
        at_start = gc.get_freeze_count()
        gc.collect()
        pauses.settle()
        assert gc.get_freeze_count() <= at_start  # that one was short
        held = [[number] for number in range(1_000)]
        monkeypatch.setattr(collector_pauses, "LONG_PAUSE_S", 0.0)
        gc.collect()
        pauses.settle()
        assert gc.get_freeze_count() >= at_start + len(held) / 2


def test_the_farms_own_process_leaves_them_out_until_it_ends(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(collector_pauses, "keeps_imports", lambda: True)
    held = [[number] for number in range(1_000)]
    try:
        with CollectorPauses().shortened():
            pass
        assert gc.get_freeze_count() >= len(held)
    finally:
        gc.unfreeze()


def test_garbage_of_requests_is_still_collected() -> None:
    with CollectorPauses().shortened():
        ring: list[object] = []
        ring.append(ring)
        del ring
        assert gc.collect() >= 1
