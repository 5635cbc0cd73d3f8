"""Calls from other threads to the engine's loop, which owns all state of the batch."""

from __future__ import annotations

import queue
from collections.abc import Callable
from concurrent.futures import Future

from farm.base.device.cuda_errors import without_frames
from farm.errors import Draining

__all__ = ["LoopCalls", "stopping"]

LOOK_S = 0.25
"""How often a thread waiting for a call checks whether the loop has ended."""


def stopping() -> Draining:
    """The error for callers once the engine is stopping."""
    return Draining("the engine is stopping", "try again; another replica answers")


class LoopCalls:
    """An inbox of calls. Any thread may post; the loop runs them."""

    def __init__(self) -> None:
        self._calls: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._has_ended = False

    def post(self, call: Callable[[], None]) -> None:
        """Schedule a call in the loop."""
        self._calls.put(call)

    def wake(self) -> None:
        """Wake the loop."""
        self._calls.put(lambda: None)

    def result(self, call: Callable[[], float]) -> float:
        """Run a call in the loop and wait for its result or exception.

        Raises:
            Draining: if the loop ends first.
        """
        future: Future[float] = Future()

        def run() -> None:
            try:
                future.set_result(call())
            except BaseException as error:
                future.set_exception(without_frames(error))

        self._calls.put(run)
        while True:
            try:
                return future.result(LOOK_S)
            except TimeoutError:
                if self._has_ended and not future.done():
                    raise stopping() from None

    # -- the loop's side ----------------------------------------------------------------------

    def run_waiting(self, wait_s: float) -> None:
        """Run posted calls; wait up to ``wait_s`` seconds for the first one."""
        try:
            if wait_s:
                self._calls.get(timeout=wait_s)()
            while True:
                self._calls.get_nowait()()
        except queue.Empty:
            return

    def end(self) -> None:
        """Mark the loop as ended: no further call runs."""
        self._has_ended = True
