"""Queues of work on a device: what runs beside what, and what waits for what.

Owns the use of CUDA streams. Work of low priority (encoding photos and prompts, decoding, samples,
evaluations) runs in queues of its own and fills the gaps that the main work leaves. On a CPU there
are no queues: work is done when a call returns, and nothing here does anything.

Two rules make tensors of one queue safe in another. The queue that uses them waits for a mark that
was set after they were computed. And their memory is kept until that queue is done with them:
PyTorch would otherwise give it to the next tensor of the queue that made them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

__all__ = ["Mark", "Queue", "adopt", "mark", "wait_for"]

Mark = Any
"""A point in a queue: a CUDA event, or None where nothing is asynchronous."""

HIGH, LOW = -1, 0
"""Priorities of CUDA streams. PyTorch's default stream has the lower one."""


class Queue:
    """Work of one kind, in order."""

    def __init__(self, device: torch.device, *, is_urgent: bool = False) -> None:
        """Create the queue.

        Args:
            is_urgent: whether its kernels start before those of other queues.
        """
        self._api = _api_of(device)
        priority = HIGH if is_urgent else LOW
        self._stream = None if self._api is None else self._api.Stream(device, priority=priority)

    @contextmanager
    def active(self, *after: Mark) -> Iterator[None]:
        """Within the context, work of this thread goes into the queue, after the given marks."""
        if self._api is None or self._stream is None:
            yield
            return
        with self._api.stream(self._stream):
            for point in after:
                if point is not None:
                    self._stream.wait_event(point)
            yield


def mark(device: torch.device) -> Mark:
    """The end of the work that the calling thread has queued so far."""
    api = _api_of(device)
    if api is None:
        return None
    event = api.Event(blocking=True)
    event.record(api.current_stream(device))
    return event


def wait_for(point: Mark) -> None:
    """Let the calling thread sleep until a mark is reached."""
    if point is not None:
        point.synchronize()


def adopt(tensors: Iterable[Tensor], made: Mark, device: torch.device) -> None:
    """Let the calling thread's queue use tensors of another queue.

    Args:
        made: set in the other queue after they were computed; None if the host has waited for them.
    """
    api = _api_of(device)
    if api is None:
        return
    stream = api.current_stream(device)
    if made is not None:
        stream.wait_event(made)
    for tensor in tensors:
        if tensor.device.type == device.type:
            tensor.record_stream(stream)


def _api_of(device: torch.device) -> Any:
    """The module with the device's streams and events; None if it has none."""
    return torch.cuda if device.type == "cuda" else None
