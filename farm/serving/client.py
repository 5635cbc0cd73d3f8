"""The engine's client interface for the HTTP side, local or remote.

Owns the boundary between event loop and engine: an async stream of progress that ends with the
image. It has two implementations: ``LocalEngine`` here, in the same process, and
``ReplicaClient`` over Ray Serve in ``cluster/client.py``.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import AsyncGenerator, Sequence
from concurrent.futures import Future
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from farm.adapters.record import BaseFamily
from farm.errors import Draining, RequestRefused, TooBusy
from farm.serving.config import EngineStats
from farm.serving.request import GenerationRequest, Picture, Progress, Ticket

if TYPE_CHECKING:
    from farm.serving.engine.engine import Engine

__all__ = [
    "ServedBase",
    "EngineClient",
    "EngineLoad",
    "LocalEngine",
    "ImageEvent",
    "generate_with",
    "flat_stats",
]

ImageEvent = tuple[int, Progress | Picture]
"""An event, and the index of its image in the request."""


@dataclass(frozen=True, slots=True)
class ServedBase:
    """Facts about the base that the HTTP side needs to check a request."""

    id: str
    """Public name; never a path."""
    fingerprint: str
    resolution_px: int
    side_multiple_px: int
    """Sides of images are multiples of this."""
    family: BaseFamily


@dataclass(frozen=True, slots=True)
class EngineLoad:
    """The load of the engines, summed over replicas."""

    ready: bool
    wait_s: float = 0.0
    """Estimated wait before an image requested now would start."""
    stats: dict[str, Any] = field(default_factory=dict)


class EngineClient(Protocol):
    """Generates images, in this process or in others."""

    async def facts(self) -> ServedBase:
        """The served base. Raises Draining while no engine is ready."""
        ...

    def generate(
        self, requests: Sequence[GenerationRequest], *, listen: bool
    ) -> AsyncGenerator[ImageEvent]:
        """Generate images in parallel: events with the image's index, the image last.

        Either all are accepted or none; the first error ends them all. Without ``listen`` only
        images are sent. Closing the generator cancels unfinished images. Raises ServingError,
        UserError, StoreError.
        """
        ...

    async def load(self) -> EngineLoad:
        """The current load, from known values; returns immediately."""
        ...


class LocalEngine:
    """An engine in this process."""

    def __init__(self, engine: Engine, facts: ServedBase) -> None:
        self._engine = engine
        self._facts = facts
        self._draining = False

    def drain(self) -> None:
        """Accept no new requests; running ones finish."""
        self._draining = True

    async def facts(self) -> ServedBase:
        return self._facts

    async def generate(
        self, requests: Sequence[GenerationRequest], *, listen: bool
    ) -> AsyncGenerator[ImageEvent]:
        if self._draining:
            raise Draining("the endpoint is shutting down", "try again in a moment")
        async with contextlib.aclosing(
            generate_with(self._engine, requests, listen=listen)
        ) as news:
            async for item in news:
                yield item

    async def load(self) -> EngineLoad:
        stats = self._engine.stats()
        is_ready = not self._draining and self._engine.healthy
        return EngineLoad(ready=is_ready, wait_s=stats.wait_s, stats=flat_stats(stats))


def flat_stats(stats: EngineStats) -> dict[str, Any]:
    """An engine's statistics as plain values, including computed ones."""
    values = asdict(stats)
    values["batch_fill"] = stats.batch_fill
    values["step_s"] = stats.denoise_s / stats.passes if stats.passes else 0.0
    return values


async def generate_with(
    engine: Engine, requests: Sequence[GenerationRequest], *, listen: bool
) -> AsyncGenerator[ImageEvent]:
    """Generate with an engine in this process; see ``EngineClient.generate``."""
    loop = asyncio.get_running_loop()
    inbox: asyncio.Queue[tuple[int, Progress | Future[Picture]]] = asyncio.Queue()

    def post(index: int, item: Progress | Future[Picture]) -> None:
        with contextlib.suppress(RuntimeError):  # the event loop has closed
            loop.call_soon_threadsafe(inbox.put_nowait, (index, item))

    tickets: list[Ticket] = []
    try:
        for request in requests:
            try:
                tickets.append(engine.submit(request))
            except TooBusy as error:
                raise _never_in_time(engine, requests) or error from None
        for index, ticket in enumerate(tickets):
            if listen:
                yield index, ticket.progress
                ticket.listen(partial(post, index))
            ticket.future.add_done_callback(partial(post, index))
        num_done = 0
        while num_done < len(tickets):
            index, item = await inbox.get()
            if isinstance(item, Progress):
                yield index, item
            else:
                yield index, item.result()
                num_done += 1
    finally:
        for ticket in tickets:
            ticket.cancel()  # does nothing if the image is finished


def _never_in_time(engine: Engine, requests: Sequence[GenerationRequest]) -> RequestRefused | None:
    """The refusal of images that an idle engine would refuse too, because each waits for those
    before it; None if waiting helps."""
    from farm.serving.engine.row import size_of

    capacity, last = engine.capacity, requests[-1]
    costs = [capacity.cost(one, size_of(engine.base, one)) for one in requests]
    wait_s = sum(costs[:-1]) * engine.stats().seconds_per_cost
    needed_s = wait_s + last.steps * capacity.pass_s(size_of(engine.base, last))
    if wait_s <= engine.config.max_wait_s and needed_s <= (last.deadline_s or math.inf):
        return None
    return RequestRefused(
        f"{'this image' if len(requests) == 1 else f'{len(requests)} images'} would take about "
        f"{needed_s:.0f} s even if nothing else waited, longer than this endpoint lets a request "
        "wait",
        "request fewer images, fewer steps or a smaller size",
        "n" if len(requests) > 1 else "num_inference_steps",
    )
