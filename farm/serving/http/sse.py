"""A response of server-sent events that ends when its caller disconnects.

Owns the heartbeat and the end of a stream: after the last event, after an error, or when the client
stops reading. The events themselves are in ``events.py``.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from farm.serving.http import events
from farm.serving.http.errors import error_answer

__all__ = ["EventStream", "gone"]

HEARTBEAT_S = 10.0


async def gone(receive: Receive) -> None:
    """Return when the caller has closed the connection."""
    while (await receive())["type"] != "http.disconnect":
        pass


class EventStream(Response):
    """A response of server-sent events with a heartbeat; ends when the caller disconnects."""

    media_type = "text/event-stream"

    def __init__(self, stream: AsyncGenerator[bytes], silence_s: float) -> None:
        """Args:
        silence_s: the stream times out after this long without an event.
        """
        super().__init__(headers={"x-accel-buffering": "no", "cache-control": "no-store"})
        del self.headers["content-length"]
        self._stream = stream
        self._silence_s = silence_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        sending = asyncio.create_task(self._send_events(send))
        watching = asyncio.create_task(gone(receive))
        try:
            await asyncio.wait({sending, watching}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (sending, watching):
                task.cancel()
            await asyncio.gather(sending, watching, return_exceptions=True)
            await self._stream.aclose()

    async def _send_events(self, send: Send) -> None:
        async def one(data: bytes, more: bool = True) -> None:
            await send({"type": "http.response.body", "body": data, "more_body": more})

        try:
            async for event in _with_heartbeat(self._stream, self._silence_s):
                await one(event)
        except Exception as error:
            _, body, _ = error_answer(error)
            await one(events.encode_event(events.failed(body)))
        await one(b"", more=False)


async def _with_heartbeat(stream: AsyncIterator[bytes], silence_s: float) -> AsyncIterator[bytes]:
    """The events, with keep-alive comments during long pauses.

    Raises:
        TimeoutError: if a pause is longer than ``silence_s``.
    """
    upcoming: asyncio.Task[bytes] | None = None
    silent_s = 0.0
    try:
        while True:
            upcoming = upcoming or asyncio.ensure_future(_next(stream))
            done, _ = await asyncio.wait({upcoming}, timeout=HEARTBEAT_S)
            if not done:
                silent_s += HEARTBEAT_S
                if silent_s > silence_s:
                    raise TimeoutError
                yield events.KEEP_ALIVE
                continue
            silent_s = 0.0
            try:
                event = upcoming.result()
            except StopAsyncIteration:
                return
            upcoming = None
            yield event
    finally:
        if upcoming is not None:
            upcoming.cancel()
            await asyncio.gather(upcoming, return_exceptions=True)


async def _next(stream: AsyncIterator[bytes]) -> bytes:
    return await anext(stream)
