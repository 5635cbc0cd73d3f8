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
from collections import OrderedDict, deque
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
        *,
        rest: float = REST,
    ) -> None:
        """Args:
        rest: ratio of rest to work; 0 if no engine is in this process.
        work_clock: CPU seconds of the loop's thread.
        """
        self._work_clock, self._clock, self._rest = work_clock, clock, rest
        self._open: dict[str, int] = {}
        # callers with a request that began since the last turn, or with requests that wait
        self._waiting: OrderedDict[str, Waiting] = OrderedDict()
        self._began_s: tuple[float, float] | None = None
        """The work and the time when the round began; None while no request waits."""

    async def take(self, caller: str) -> None:
        """Wait for the caller's turn, which it has at once if no other request of it has just
        begun. The request is open until ``leave``, which must follow, even after an error."""
        self._open[caller] = self._open.get(caller, 0) + 1
        waiting = self._waiting.get(caller)
        if waiting is not None:
            turn = asyncio.get_running_loop().create_future()
            waiting.append(turn)
            self._began_s = self._began_s or (self._work_clock(), self._clock())
            await turn
            return
        if not self._waiting:
            loop = asyncio.get_running_loop()
            loop.call_soon(self._pass_on, loop)
        self._waiting[caller] = deque()

    def leave(self, caller: str) -> None:
        """Note that a request has been answered, or its client has left."""
        if self._open[caller] > 1:
            self._open[caller] -= 1
        else:
            del self._open[caller]

    def _pass_on(self, loop: asyncio.AbstractEventLoop) -> None:
        """Begin the next waiting request, once the loop has rested."""
        if self._began_s is None:
            self._waiting.clear()
            return
        worked_s = self._work_clock() - self._began_s[0]
        rest_s = (1 + self._rest) * worked_s - (self._clock() - self._began_s[1])
        if self._rest and rest_s > 0 and len(self._open) > 1:
            loop.call_later(max(LEAST_REST_S, rest_s), self._pass_on, loop)
            return
        for caller, waiting in list(self._waiting.items()):
            while waiting and waiting[0].done():  # the client has left
                waiting.popleft()
            if not waiting:
                del self._waiting[caller]
        self._began_s = None
        if self._waiting:
            caller, waiting = next(iter(self._waiting.items()))
            self._waiting.move_to_end(caller)
            waiting.popleft().set_result(None)
            if any(self._waiting.values()):
                self._began_s = self._work_clock(), self._clock()
            loop.call_soon(self._pass_on, loop)
