"""A function of fixed tensors as one CUDA graph: hundreds of kernels with a single launch.

Owns warm-up, capture and replay. The function must read and write the same tensors in every call,
never wait for the device, and return tensors. Where it cannot be captured, it runs as it is.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from farm.base.device.cuda_errors import device_is_lost, without_frames

__all__ = ["WARM_UP_CALLS", "Captured", "Pool"]

LOG = logging.getLogger(__name__)

WARM_UP_CALLS = 2
"""Calls that run normally first, so that libraries choose their kernels outside the capture."""


class Pool:
    """Memory that several graphs use in turn.

    Their calls must follow each other in one queue, and a result must be used before the next call
    of any of them, which may overwrite it.
    """

    def __init__(self) -> None:
        self._handle: Any = None

    def handle(self) -> Any:
        """CUDA's identifier of the pool."""
        if self._handle is None:
            self._handle = torch.cuda.graph_pool_handle()
        return self._handle


class Captured:
    """Runs a function; on a CUDA device, replays it from its third call on."""

    def __init__(
        self,
        run: Callable[[], Tensor],
        device: torch.device,
        *,
        name: str,
        pool: Pool | None = None,
    ) -> None:
        """Wrap a function.

        Args:
            name: for the log.
            pool: memory shared with other functions, see ``Pool``; None means memory of its own.
        """
        self._pool = pool or Pool()
        self._run, self._device, self._name = run, device, name
        self._graph: torch.cuda.CUDAGraph | None = None
        self._output: Tensor | None = None
        self._calls = 0
        self._may_capture = device.type == "cuda"

    @property
    def is_replayed(self) -> bool:
        """Whether calls replay a graph."""
        return self._graph is not None

    def __call__(self) -> Tensor:
        """Run or replay the function; the next call overwrites the returned tensor."""
        if self._graph is not None:
            self._graph.replay()
            assert self._output is not None
            return self._output
        if not self._may_capture:
            return self._kept(self._run())
        self._calls += 1
        if self._calls <= WARM_UP_CALLS:
            return self._beside(self._run)
        try:
            self._capture()
        except torch.OutOfMemoryError:
            self._graph = None
            raise
        except RuntimeError as error:
            self._graph, self._may_capture = None, False
            if device_is_lost(error):
                raise
            reason = str(without_frames(error)).strip().splitlines() or ["unknown"]
            LOG.warning("%s runs without a CUDA graph: %s", self._name, reason[0][:300])
        return self()

    def _kept(self, found: Tensor) -> Tensor:
        """The result in the tensor of the first call, as a replay would leave it."""
        if self._output is None:
            self._output = found.clone()
        else:
            self._output.copy_(found)
        return self._output

    def _beside(self, run: Callable[[], Tensor]) -> Tensor:
        """Run in another stream, as warm-up for a capture must."""
        current = torch.cuda.current_stream(self._device)
        stream = self._stream()
        stream.wait_stream(current)
        with torch.cuda.stream(stream):
            found = run()
        current.wait_stream(stream)
        found.record_stream(current)
        return found

    def _capture(self) -> None:
        graph = torch.cuda.CUDAGraph()
        # other threads may use the device meanwhile
        with torch.cuda.graph(
            graph,
            pool=self._pool.handle(),
            stream=self._stream(),
            capture_error_mode="thread_local",
        ):
            self._output = self._run()
        self._graph = graph

    def _stream(self) -> torch.cuda.Stream:
        """A stream of the current one's priority, which the kernels of a graph keep."""
        priority = torch.cuda.current_stream(self._device).priority
        return torch.cuda.Stream(self._device, priority=priority)  # type: ignore[no-untyped-call]
