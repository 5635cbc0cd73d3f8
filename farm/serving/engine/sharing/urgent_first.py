"""A thread that runs tasks in order, except that some may go first.

Which ones go first is asked when the thread is free, not when they are submitted: who is below its
share may change while they wait.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

__all__ = ["UrgentFirst"]

Call = Callable[[], None]
IsUrgent = Callable[[], bool]


class UrgentFirst:
    """One thread. Any thread may submit."""

    def __init__(self, name: str) -> None:
        self._first: deque[tuple[Call, Future[None]]] = deque()
        self._tasks: deque[tuple[Call, IsUrgent]] = deque()
        self._lock = threading.Lock()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=name)

    def submit(self, task: Call, is_urgent: IsUrgent = lambda: False) -> None:
        """Add a task.

        Args:
            is_urgent: whether it may precede tasks submitted before it; called in the thread.
        """
        with self._lock:
            self._tasks.append((task, is_urgent))
        self._thread.submit(self._next)

    def submit_first(self, call: Call) -> Future[None]:
        """Add a call that precedes all tasks, but not earlier calls."""
        future: Future[None] = Future()
        with self._lock:
            self._first.append((call, future))
        self._thread.submit(self._next)
        return future

    def close(self) -> None:
        """Stop after the current task."""
        self._thread.shutdown(wait=True, cancel_futures=True)

    def _next(self) -> None:
        with self._lock:
            if self._first:
                call, future = self._first.popleft()
            else:
                urgent = (i for i, (_, is_urgent) in enumerate(self._tasks) if is_urgent())
                chosen = next(urgent, 0)
                call, future = self._tasks[chosen][0], Future()
                del self._tasks[chosen]
        try:
            future.set_result(call())
        except BaseException as error:
            future.set_exception(error)
