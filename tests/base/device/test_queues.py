"""Queues of work: order, priority and the memory of what one queue makes and another uses."""

from __future__ import annotations

import pytest
import torch
from support.training.streams import RecordedStreams

from farm.base.device.queues import Queue, adopt, mark, wait_for

DEVICE = torch.device("cpu")


@pytest.fixture
def streams(monkeypatch: pytest.MonkeyPatch) -> RecordedStreams:
    recorded = RecordedStreams()
    recorded.install(monkeypatch)
    return recorded


def test_on_a_cpu_there_are_no_queues() -> None:
    with Queue(DEVICE, is_urgent=True).active(None):
        made = mark(DEVICE)
        tensor = torch.ones(2)
    wait_for(made)
    adopt([tensor], made, DEVICE)
    assert made is None


def test_urgent_work_has_the_higher_priority_and_the_threads_queue_is_restored(
    streams: RecordedStreams,
) -> None:
    before = streams.current_stream()
    with Queue(DEVICE, is_urgent=True).active():
        urgent = streams.current_stream()
    with Queue(DEVICE).active():
        other = streams.current_stream()
    assert urgent.priority < other.priority == 0  # the lower number comes first
    assert streams.current_stream() is before


def test_a_queue_starts_after_the_marks_it_is_given(streams: RecordedStreams) -> None:
    first, second = Queue(DEVICE), Queue(DEVICE)
    with first.active():
        made = streams.work()
        point = mark(DEVICE)
        later = streams.work()
    with second.active():
        assert not streams.is_after(made)
    with second.active(point, None):
        assert streams.is_after(made)
        assert not streams.is_after(later)


def test_what_the_host_has_waited_for_is_done_for_every_queue(streams: RecordedStreams) -> None:
    with Queue(DEVICE).active():
        made = streams.work()
        point = mark(DEVICE)
    with Queue(DEVICE).active():
        assert not streams.is_after(made)
        wait_for(point)
        assert streams.is_after(made)


def test_an_adopted_tensor_is_waited_for_and_its_memory_kept(streams: RecordedStreams) -> None:
    with Queue(DEVICE).active():
        tensor, made, point = torch.ones(2), streams.work(), mark(DEVICE)
    with Queue(DEVICE).active():
        adopt([tensor], point, DEVICE)
        assert streams.is_after(made)
        assert streams.kept == {(tensor.data_ptr(), streams.current_stream())}
