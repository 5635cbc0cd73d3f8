"""Warm-up, capture and replay of a graph, with a stand-in for CUDA's graphs on a CPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from farm.base.device.captured import WARM_UP_CALLS, Captured, Pool

CUDA = torch.device("cuda")


class Graphs:
    """Replays by running the captured function's operations again; counts what was asked."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.captures: list[dict[str, Any]] = []
        self.replays = 0
        self.fails: Exception | None = None
        current = SimpleNamespace(priority=-1, wait_stream=lambda other: None)
        monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: SimpleNamespace(replay=self._replay))
        monkeypatch.setattr(torch.cuda, "graph", self._capture)
        monkeypatch.setattr(torch.cuda, "graph_pool_handle", object)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device: current)
        monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
        monkeypatch.setattr(torch.cuda, "Stream", self._stream)
        monkeypatch.setattr(Tensor, "record_stream", lambda tensor, stream: None)

    def _stream(self, device: torch.device, priority: int) -> Any:
        return SimpleNamespace(priority=priority, wait_stream=lambda other: None)

    def _replay(self) -> None:
        self.replays += 1

    @contextmanager
    def _capture(self, graph: object, **options: Any) -> Iterator[None]:
        self.captures.append(options)
        yield
        if self.fails is not None:
            raise self.fails


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> Graphs:
    return Graphs(monkeypatch)


def test_a_function_runs_twice_is_captured_once_and_then_replayed(graphs: Graphs) -> None:
    calls: list[Tensor] = []

    def run() -> Tensor:
        calls.append(torch.ones(1))
        return calls[-1]

    pool = Pool()
    captured = Captured(run, CUDA, name="a test", pool=pool)
    found = [captured() for _ in range(WARM_UP_CALLS + 3)]
    assert captured.is_replayed
    assert len(calls) == WARM_UP_CALLS + 1
    assert graphs.replays == 3
    assert all(one is calls[-1] for one in found[WARM_UP_CALLS:])
    (options,) = graphs.captures
    assert options["pool"] is pool.handle()
    assert options["stream"].priority == -1
    assert options["capture_error_mode"] == "thread_local"


def test_what_cannot_be_captured_runs_as_it_is(
    graphs: Graphs, caplog: pytest.LogCaptureFixture
) -> None:
    graphs.fails = RuntimeError("operation not permitted when stream is capturing")
    values = iter(range(10))
    captured = Captured(lambda: torch.tensor(float(next(values))), CUDA, name="a test")
    found = [float(captured()) for _ in range(5)]
    assert found == [0, 1, 3, 4, 5]  # one call was lost to the capture
    assert not captured.is_replayed
    assert len(graphs.captures) == 1
    assert "a test runs without a CUDA graph: operation not permitted" in caplog.text


def test_too_little_memory_for_a_capture_is_raised_and_tried_again(graphs: Graphs) -> None:
    captured = Captured(lambda: torch.ones(1), CUDA, name="a test")
    for _ in range(WARM_UP_CALLS):
        captured()
    graphs.fails = torch.OutOfMemoryError("full")
    with pytest.raises(torch.OutOfMemoryError):
        captured()
    graphs.fails = None
    captured()
    assert captured.is_replayed
