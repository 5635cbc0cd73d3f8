"""An ``EngineClient`` over the engines behind a Ray Serve handle.

Owns what happens when replicas start or stop during a request. An image depends on its request
alone, so if a replica dies another one generates the same image.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Sequence

from ray.exceptions import RayActorError, TaskCancelledError
from ray.serve.exceptions import DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle

from farm.errors import Draining
from farm.serving.client import EngineLoad, ImageEvent, ServedBase
from farm.serving.cluster.router import ROUTERS
from farm.serving.request import GenerationRequest, Picture
from farm.serving.settings import ReplicaConfig

__all__ = ["ENGINE", "ReplicaClient"]

ENGINE = "engine"
"""The name of the engine deployment."""
NUM_ATTEMPTS = 3
"""Attempts at an image when its replicas die."""
FACTS_TIMEOUT_S = 5.0
LOST = (RayActorError, DeploymentUnavailableError)
"""The replica is lost, or all replicas are."""


class ReplicaClient:
    """An ``EngineClient`` over the engines behind a handle."""

    def __init__(self, handle: DeploymentHandle, replicas: ReplicaConfig) -> None:
        self._handle = handle
        self._replicas = replicas
        self._facts: ServedBase | None = None

    async def facts(self) -> ServedBase:
        if self._facts is None:
            response = self._handle.facts.remote()
            try:
                async with asyncio.timeout(FACTS_TIMEOUT_S):
                    self._facts = await response
            except (TimeoutError, *LOST) as error:
                response.cancel()
                raise _restarting() from error
        assert self._facts is not None
        return self._facts

    async def generate(
        self, requests: Sequence[GenerationRequest], *, listen: bool
    ) -> AsyncGenerator[ImageEvent]:
        todo = dict(enumerate(requests))
        for attempt in range(NUM_ATTEMPTS):
            await self._some_engine()
            indices = sorted(todo)
            batch = tuple(todo[index] for index in indices)
            try:
                async with contextlib.aclosing(self._generate_once(batch, listen)) as news:
                    async for position, item in news:
                        index = indices[position]
                        if isinstance(item, Picture):
                            todo.pop(index, None)
                        yield index, item
                return
            except (Draining, *LOST) as error:
                if attempt == NUM_ATTEMPTS - 1:
                    raise _restarting() from error
                # a draining replica refuses immediately; give the router time to notice
                await asyncio.sleep(0.2 * (attempt + 1))

    async def _generate_once(
        self, batch: tuple[GenerationRequest, ...], listen: bool
    ) -> AsyncGenerator[ImageEvent]:
        if not listen:
            response = self._handle.generate.remote(batch)
            try:
                pictures = await response
            except asyncio.CancelledError:
                response.cancel()
                raise
            except TaskCancelledError as error:
                raise _restarting() from error
            for position, picture in enumerate(pictures):
                yield position, picture
            return
        stream = self._handle.options(stream=True).generate_listening.remote(batch)
        is_whole = False
        try:
            async for item in stream:
                yield item
            is_whole = True
        finally:
            if not is_whole:
                stream.cancel()

    async def _some_engine(self) -> None:
        """Wait briefly for any engine.

        Raises:
            Draining: if there is none in time. The request has not been sent anywhere.
        """
        router = ROUTERS.get(ENGINE)
        if router is None:  # created by the first call
            return
        if router.replica_stats():
            return
        waited_until_s = time.monotonic() + self._replicas.engine_wait_s
        while time.monotonic() < waited_until_s:
            await asyncio.sleep(0.1)
            if router.replica_stats():
                return
        raise _restarting()

    async def load(self) -> EngineLoad:
        router = ROUTERS.get(ENGINE)
        if router is None:
            await self.facts()
            router = ROUTERS.get(ENGINE)
        reports = router.replica_stats() if router is not None else []
        waits = [float(report.get("wait_s", 0.0)) for report in reports]
        stats = {"num_engines": float(len(reports))}
        return EngineLoad(ready=bool(reports), wait_s=min(waits, default=0.0), stats=stats)


def _restarting() -> Draining:
    return Draining("no engine is ready at the moment", "ask again in a moment")
