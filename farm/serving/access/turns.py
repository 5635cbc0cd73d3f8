"""Turns in the event loop: requests of a caller who sends many at once begin one after another.

Every step of a request waits until the loop has run what else is ready, and every operation of the
engine waits for the interpreter while the loop is busy. If one caller sends hundreds of requests at
once (on many connections, or pipelined), each other request would take as long as all of them. With
turns, requests beyond the first begin one in each round of the loop, the callers in turn; and while
another caller has an open request, the loop then rests as long as it has worked.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Callable

__all__ = ["Turns"]

REST = 1.0
"""Ratio of rest to work: the loop leaves the interpreter to the engine for half of the time."""
LEAST_REST_S = 0.001
"""The resolution of the loop's timers."""

Waiting = deque[asyncio.Future[None]]


class Turns:
    """The requests that wait to begin. Used in one event loop."""

    def __init__(
        self,
        work_clock: Callable[[], float] = time.thread_time,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Args:
        work_clock: CPU seconds of the loop's thread.
        """
        self._work_clock, self._clock = work_clock, clock
        self._open: Counter[str] = Counter()
        # callers with a request that began since the last turn, or with requests that wait
        self._waiting: OrderedDict[str, Waiting] = OrderedDict()
        self._worked_s = self._passed_on_s = 0.0

    async def take(self, caller: str) -> None:
        """Wait for the caller's turn, which it has at once if no other request of it has just
        begun. The request is open until ``leave``, which must follow, even after an error."""
        self._open[caller] += 1
        waiting = self._waiting.get(caller)
        if waiting is not None:
            turn = asyncio.get_running_loop().create_future()
            waiting.append(turn)
            await turn
            return
        if not self._waiting:
            self._begin_round(asyncio.get_running_loop())
        self._waiting[caller] = deque()

    def leave(self, caller: str) -> None:
        """Note that a request has been answered, or its client has left."""
        self._open[caller] -= 1
        if not self._open[caller]:
            del self._open[caller]

    def _begin_round(self, loop: asyncio.AbstractEventLoop) -> None:
        self._worked_s, self._passed_on_s = self._work_clock(), self._clock()
        loop.call_soon(self._pass_on, loop)

    def _pass_on(self, loop: asyncio.AbstractEventLoop) -> None:
        """Begin the next waiting request, once the loop has rested."""
        if not any(self._waiting.values()):
            self._waiting.clear()
            return
        worked_s = self._work_clock() - self._worked_s
        rest_s = self._passed_on_s + (1 + REST) * worked_s - self._clock()
        if rest_s > 0 and len(self._open) > 1:
            loop.call_later(max(LEAST_REST_S, rest_s), self._pass_on, loop)
            return
        for caller, waiting in list(self._waiting.items()):
            while waiting and waiting[0].done():  # the client has left
                waiting.popleft()
            if not waiting:
                del self._waiting[caller]
        if self._waiting:
            caller, waiting = next(iter(self._waiting.items()))
            self._waiting.move_to_end(caller)
            waiting.popleft().set_result(None)
            self._begin_round(loop)
