"""A recording stand-in for ``torch.cuda``'s streams and events, with the order that they enforce.

Every piece of work takes the next number of its stream. A stream knows, of every stream, the last
number that its own next work comes after: through events it waited for, or through the host, which
waited before it launched the work.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest
from torch import Tensor

from farm.base.device import queues

__all__ = ["RecordedStream", "RecordedStreams"]


@dataclass(eq=False)
class RecordedStream:
    """One stream."""

    owner: RecordedStreams
    priority: int
    after: Counter[RecordedStream] = field(default_factory=Counter)
    """The last work of each stream that the next work here comes after."""

    def wait_event(self, event: _Event) -> None:
        self.after |= event.reached


class _Event:
    def __init__(self, owner: RecordedStreams) -> None:
        self._owner = owner
        self.reached: Counter[RecordedStream] = Counter()

    def record(self, stream: RecordedStream) -> None:
        self.reached = Counter(stream.after)

    def synchronize(self) -> None:
        self._owner.host |= self.reached


class RecordedStreams:
    """The stand-in; ``install`` puts it in the place of ``torch.cuda``, on a CPU."""

    def __init__(self) -> None:
        self.host: Counter[RecordedStream] = Counter()
        """Work that the host has waited for."""
        self.kept: set[tuple[int, RecordedStream]] = set()
        """Tensors, by their address, whose memory is kept for a stream."""
        self._current = threading.local()
        self._default = RecordedStream(self, 0)

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(queues, "_api_of", lambda device: self)
        monkeypatch.setattr(
            Tensor, "record_stream", lambda one, stream: self.kept.add((one.data_ptr(), stream))
        )

    # -- as torch.cuda ------------------------------------------------------------------------

    def Stream(self, device: object, priority: int = 0) -> RecordedStream:  # noqa: N802
        return RecordedStream(self, priority)

    def Event(self, blocking: bool = False) -> _Event:  # noqa: N802
        return _Event(self)

    def current_stream(self, device: object = None) -> RecordedStream:
        return getattr(self._current, "stream", self._default)

    @contextmanager
    def stream(self, stream: RecordedStream) -> Iterator[None]:
        before = self.current_stream()
        self._current.stream = stream
        try:
            yield
        finally:
            self._current.stream = before

    # -- for tests ----------------------------------------------------------------------------

    def work(self) -> tuple[RecordedStream, int]:
        """Launch work in the calling thread's stream; returns the stream and the work's number."""
        stream = self.current_stream()
        stream.after |= self.host
        stream.after[stream] += 1
        return stream, stream.after[stream]

    def is_after(self, made: tuple[RecordedStream, int]) -> bool:
        """Whether the calling thread's next work comes after some earlier work."""
        stream, number = made
        return (self.current_stream().after | self.host)[stream] >= number
