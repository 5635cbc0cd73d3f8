"""Services behind the routes, created once per process, and their maintenance task."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
from collections.abc import AsyncIterator
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, field

from farm.errors import FarmError
from farm.serving.access.api_keys import Gate
from farm.serving.access.catalog import Catalog
from farm.serving.access.limits import Limits, RateLimiter, WaitingRoom
from farm.serving.client import EngineClient, EngineLoad
from farm.serving.collector_pauses import CollectorPauses
from farm.serving.http.idempotency import IdempotencyCache
from farm.serving.http.links import ImageLinks
from farm.serving.metrics import Metrics, observe_stats

__all__ = ["Services"]

logger = logging.getLogger(__name__)

LOOK_EVERY_S = 1.0
SWEEP_EVERY_LOOKS = 60


def _encoders() -> ThreadPoolExecutor:
    # PNG compression releases the interpreter lock; more threads than cores would not help
    return ThreadPoolExecutor(max(2, min(8, os.cpu_count() or 2)), thread_name_prefix="encode")


@dataclass
class Services:
    """Everything behind the routes."""

    client: EngineClient
    catalog: Catalog
    gate: Gate
    shelf: ImageLinks
    metrics: Metrics
    executor: Executor
    """Threads for store reads, shared by gate and catalog."""
    limits: Limits = field(default_factory=Limits)
    public_url: str = ""
    """Public address of the endpoint; empty uses each request's host."""
    rates: RateLimiter = field(default_factory=RateLimiter)
    room: WaitingRoom = field(init=False)
    replays: IdempotencyCache = field(init=False)
    encoders: Executor = field(default_factory=_encoders)
    instance: str = field(default_factory=lambda: secrets.token_hex(4))
    last_load: EngineLoad = field(default_factory=lambda: EngineLoad(ready=False))

    def __post_init__(self) -> None:
        self.room = WaitingRoom(self.limits.pictures_waiting)
        self.replays = IdempotencyCache(
            window_s=self.limits.replay_window_s, max_bytes=self.limits.replay_mib << 20
        )

    @property
    def wait_s(self) -> float:
        """Expected wait of a new image by the last report; at least a second."""
        return max(1.0, self.last_load.wait_s)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Run the maintenance task inside the block."""
        with contextlib.suppress(FarmError):  # the first request tries again
            await self.gate.look()
        pauses = CollectorPauses()
        task = asyncio.create_task(self._maintain(pauses))
        try:
            with pauses.shortened():
                yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await self.replays.close()
            self.encoders.shutdown(wait=False, cancel_futures=True)
            self.executor.shutdown(wait=False, cancel_futures=True)

    async def _maintain(self, pauses: CollectorPauses) -> None:
        """Publish the engine's numbers, and remove images whose links have expired."""
        loop = asyncio.get_running_loop()
        looks = 0
        while True:
            try:
                self.last_load = await self.client.load()
                observe_stats(self.metrics, self.last_load.stats)
                if looks % SWEEP_EVERY_LOOKS == 0:
                    await loop.run_in_executor(self.executor, self.shelf.sweep)
            except FarmError as error:
                logger.warning("maintenance: %s", error.message)
            except Exception:
                logger.exception("maintenance")
            pauses.settle()
            looks += 1
            await asyncio.sleep(LOOK_EVERY_S)
