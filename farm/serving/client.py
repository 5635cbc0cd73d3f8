"""The engine as the HTTP side sees it, wherever it runs.

Owns the border between event loop and engine: an async stream of progress that ends with the
picture. Two implementations stand behind it: ``LocalEngine`` here, in the same process, and the
one over Ray Serve in ``app.py``.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from farm.errors import Draining
from farm.serving.request import DrawRequest, Picture, Progress, Ticket

if TYPE_CHECKING:
    from farm.serving.engine import Engine

__all__ = ["BaseFacts", "EngineClient", "EngineLoad", "LocalEngine"]


@dataclass(frozen=True, slots=True)
class BaseFacts:
    """What the HTTP side must know of the base to check a request."""

    id: str
    """Its public name; never a path."""
    fingerprint: str
    resolution_px: int
    side_multiple_px: int
    """Sides of pictures are multiples of this."""


@dataclass(frozen=True, slots=True)
class EngineLoad:
    """How the engines stand, summed over replicas."""

    ready: bool
    wait_s: float = 0.0
    """Estimate of how long a picture asked for now would take to begin."""
    stats: dict[str, Any] = field(default_factory=dict)


class EngineClient(Protocol):
    """Draws pictures, somewhere."""

    async def facts(self) -> BaseFacts:
        """What base it holds. Raises Draining while there is no engine yet."""
        ...

    def draw(self, request: DrawRequest, *, listen: bool) -> AsyncGenerator[Progress | Picture]:
        """Draw one picture: progress if ``listen``, then the picture, last.

        Closing the generator cancels the request. Raises ServingError, UserError, StoreError.
        """
        ...

    async def load(self) -> EngineLoad:
        """How busy it is; answers fast, from what is known."""
        ...


class LocalEngine:
    """An engine in this process."""

    def __init__(self, engine: Engine, facts: BaseFacts) -> None:
        self._engine = engine
        self._facts = facts
        self._draining = False

    def drain(self) -> None:
        """Take no new request; those begun are finished."""
        self._draining = True

    async def facts(self) -> BaseFacts:
        return self._facts

    async def draw(
        self, request: DrawRequest, *, listen: bool
    ) -> AsyncGenerator[Progress | Picture]:
        if self._draining:
            raise Draining("the endpoint is shutting down", "ask again in a moment")
        ticket = self._engine.submit(request)
        try:
            if listen:
                async with contextlib.aclosing(_progress_of(ticket)) as steps:
                    async for progress in steps:
                        yield progress
            yield await asyncio.wrap_future(ticket.future)
        finally:
            ticket.cancel()  # nothing once the picture is there

    async def load(self) -> EngineLoad:
        stats = self._engine.stats()
        return EngineLoad(
            ready=not self._draining and self._engine.healthy, wait_s=stats.wait_s, stats={}
        )


async def _progress_of(ticket: Ticket) -> AsyncGenerator[Progress]:
    """Progress until the ticket ends, handed over from the engine's thread."""
    loop = asyncio.get_running_loop()
    news: asyncio.Queue[Progress | None] = asyncio.Queue()

    def tell(progress: Progress | None) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has closed: nobody listens
            loop.call_soon_threadsafe(news.put_nowait, progress)

    yield ticket.progress
    ticket.listen(tell)
    ticket.future.add_done_callback(lambda _: tell(None))
    while (progress := await news.get()) is not None:
        yield progress
