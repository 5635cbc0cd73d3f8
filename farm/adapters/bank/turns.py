"""Whose turn it is to use a bank's layers: threads take turns, in the order in which they asked.

A bank's layers share one routing. While a lane's training thread queues a step, another thread that
generates images waits, and the other way round. With Python's own lock, a busy thread would
take the next turns as well.
"""

from __future__ import annotations

import threading
from collections import deque

__all__ = ["Turns"]


class Turns:
    """A lock that is given in the order of requests; a thread that has it may take it again."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._waiting: deque[object] = deque()
        self._owner: int | None = None
        self._depth = 0

    def __enter__(self) -> None:
        me = threading.get_ident()
        with self._changed:
            if self._owner != me:
                ticket = object()
                self._waiting.append(ticket)
                self._changed.wait_for(lambda: self._owner is None and self._waiting[0] is ticket)
                self._waiting.popleft()
                self._owner = me
            self._depth += 1

    def __exit__(self, *error: object) -> None:
        with self._changed:
            self._depth -= 1
            if not self._depth:
                self._owner = None
                self._changed.notify_all()
