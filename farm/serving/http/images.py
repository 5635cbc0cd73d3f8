"""Generation over HTTP: from a validated order to a response or an event stream.

Owns the conversion of the engine's events to the response, the outcome counters, and the
cancellation of a disconnected caller's work. The engine generates.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import time
from collections.abc import AsyncGenerator, Awaitable, Iterator
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive

from farm.errors import Draining, RequestRefused, StoreError, TooBusy
from farm.serving.access.api_keys import Tenant
from farm.serving.client import ServedBase
from farm.serving.http import events
from farm.serving.http.idempotency import digest_of, seed_of
from farm.serving.http.image_metadata import encode_picture
from farm.serving.http.schemas import GenerateRequest
from farm.serving.http.services import Services
from farm.serving.http.sse import EventStream, gone
from farm.serving.http.validate import Order, check_adapters, validate_request
from farm.serving.request import Picture, Progress

__all__ = ["answer_images", "answer_once", "stream_images"]

Result = TypeVar("Result")

GRACE_S = 30.0
"""Time beyond the deadline for decoding, encoding and transport."""


async def _make_item(
    services: Services, order: Order, base_id: str, index: int, picture: Picture
) -> dict[str, Any]:
    """A finished image as a response item."""
    request = order.pictures[index]
    metadata = {
        **picture.metadata,
        "base": base_id,  # the public name; the engine's own may be a path
        "request": request.id.rsplit("-", 2)[0],
        "notes": [*order.notes, *picture.metadata.get("notes", ())],
    }

    def make() -> dict[str, str]:
        data = encode_picture(
            picture.pixels, metadata, order.output_format, quality=order.asked.output_compression
        )
        if order.asked.response_format == "url" and not order.asked.stream:
            return {"url": order.link_root + services.shelf.put(data, order.output_format)}
        return {"b64_json": base64.b64encode(data).decode()}

    loop = asyncio.get_running_loop()
    content = await loop.run_in_executor(services.encoders, make)
    services.metrics.count("farm_pictures", outcome="generated")
    for stage, seconds in picture.metadata.get("seconds", {}).items():
        services.metrics.observe("farm_picture_seconds", seconds, stage=stage)
    return {
        **content,
        "revised_prompt": request.prompt,
        "seed": request.seed,
        "notes": metadata["notes"],
        "receipt": metadata,
    }


async def _answer(services: Services, order: Order, base: ServedBase) -> bytes:
    items: dict[int, dict[str, Any]] = {}
    stream = services.client.generate(order.pictures, listen=False)
    # the engine enforces deadlines itself; this covers an engine that stopped responding
    async with asyncio.timeout(services.limits.deadline_s + GRACE_S):
        async with contextlib.aclosing(stream) as news:
            async for index, item in news:
                if isinstance(item, Picture):
                    items[index] = await _make_item(services, order, base.id, index, item)
    shared = order.shared()
    answer = {
        "created": shared.pop("created_at"),
        "data": [items[index] for index in sorted(items)],
        **shared,
        "usage": order.usage(base, len(items)),
    }
    return json.dumps(answer).encode()


async def answer_images(
    services: Services, tenant: Tenant, asked: GenerateRequest, request: Request
) -> Response:
    """Generate, and respond when all images are finished."""
    order, base = await validate_request(services, tenant, asked, request)
    try:
        with _counted(services, order):
            body = await _unless_gone(request.receive, _answer(services, order, base))
    except _CallerLeft:
        return Response(status_code=499)  # never received; the metrics count it
    return Response(body, media_type="application/json")


async def answer_once(
    services: Services, tenant: Tenant, asked: GenerateRequest, request: Request, key: str
) -> Response:
    """As ``answer_images``, with an idempotency key: a repeated request gets the first response.

    Raises:
        KeyReused: if the key was used for another request.
    """
    if asked.stream:
        raise RequestRefused(
            "a stream cannot be repeated", "leave out 'stream' or the key", "Idempotency-Key"
        )
    digest = digest_of(asked.model_dump_json())

    async def generate() -> bytes:
        seed = seed_of(tenant.key_id, key, digest)
        order, base = await validate_request(services, tenant, asked, request, seed)
        with _counted(services, order):
            return await _answer(services, order, base)

    answer = services.replays.answer(tenant.key_id, key, digest, generate)
    try:
        body, is_replayed = await _unless_gone(request.receive, answer)
    except _CallerLeft:
        return Response(status_code=499)
    if not is_replayed:
        return Response(body, media_type="application/json")
    await check_adapters(services, tenant, asked)  # one may have been revoked meanwhile
    headers = {"idempotency-replayed": "true"}
    return Response(body, media_type="application/json", headers=headers)


class _CallerLeft(asyncio.CancelledError):
    """The caller closed the connection."""


async def _unless_gone(receive: Receive, work: Awaitable[Result]) -> Result:
    """The result of the work, which is cancelled if the caller disconnects first.

    Raises:
        _CallerLeft: if the caller disconnected.
    """
    working = asyncio.ensure_future(work)
    watching = asyncio.create_task(gone(receive))
    try:
        await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise _CallerLeft
        return working.result()
    finally:
        for task in (working, watching):
            task.cancel()
        await asyncio.gather(working, watching, return_exceptions=True)


@contextlib.contextmanager
def _counted(services: Services, order: Order) -> Iterator[None]:
    """Count an order's images as waiting, and by the reason if they are not generated."""
    count, metrics = len(order.pictures), services.metrics
    try:
        with services.room.enter(order.tenant.key_id, count, services.wait_s):
            metrics.set("farm_pictures_waiting", services.room.total)
            yield
    except (asyncio.CancelledError, GeneratorExit):
        metrics.count("farm_pictures", count, outcome="cancelled")
        raise
    except Exception as error:
        metrics.count("farm_pictures", count, outcome=_outcome(error))
        raise
    finally:
        metrics.set("farm_pictures_waiting", services.room.total)


def _outcome(error: Exception) -> str:
    cause = getattr(error, "cause", error)  # as Ray wraps it
    if isinstance(cause, TooBusy | RequestRefused):
        return "refused"
    if isinstance(cause, Draining | StoreError):
        return "unavailable"
    return "late" if isinstance(cause, TimeoutError) else "failed"


# -- streaming ---------------------------------------------------------------------------------


async def stream_images(
    services: Services, tenant: Tenant, asked: GenerateRequest, request: Request
) -> Response:
    """Generate, and report progress in a stream. Refusals are sent before the stream begins."""
    order, base = await validate_request(services, tenant, asked, request)
    stream = _events(services, order, base)
    # the first event is awaited here so that a full queue still gives a 429
    first = await anext(stream)
    return EventStream(_with_first(first, stream), services.limits.deadline_s + GRACE_S)


async def _with_first(first: bytes, rest: AsyncGenerator[bytes]) -> AsyncGenerator[bytes]:
    async with contextlib.aclosing(rest):
        yield first
        async for event in rest:
            yield event


async def _events(services: Services, order: Order, base: ServedBase) -> AsyncGenerator[bytes]:
    num_shown = [0] * len(order.pictures)
    latest: dict[int, tuple[str, int]] = {}
    with _counted(services, order):
        stream = services.client.generate(order.pictures, listen=True)
        async with contextlib.aclosing(stream) as news:
            async for index, item in news:
                if isinstance(item, Picture):
                    done = await _make_item(services, order, base.id, index, item)
                    done["usage"] = order.usage(base, 1)
                    yield events.encode_event(events.completed(order.shared(), done, index))
                    continue
                if item.preview is not None and num_shown[index] < (
                    order.asked.partial_images or 0
                ):
                    yield await _partial(services, order, index, item, num_shown[index])
                    num_shown[index] += 1
                # a preview is decoded later than its step was reported; the image follows `done`
                is_late = item.preview is not None or item.stage == "done"
                if not is_late and latest.get(index) != (item.stage, item.step):
                    latest[index] = item.stage, item.step
                    yield _progress(order, index, item)
    yield events.DONE


async def _partial(
    services: Services, order: Order, index: int, item: Progress, shown: int
) -> bytes:
    def encode() -> str:
        assert item.preview is not None
        data = encode_picture(item.preview, None, order.output_format, fast=True)
        return base64.b64encode(data).decode()

    loop = asyncio.get_running_loop()
    picture = await loop.run_in_executor(services.encoders, encode)
    return events.encode_event(
        events.partial(order.shared(), picture, shown, item.step, item.steps, index)
    )


def _progress(order: Order, index: int, item: Progress) -> bytes:
    """A progress event if the caller requested it, else a comment."""
    if not order.asked.stream_progress:
        return f": {item.stage} {item.step}/{item.steps}\n\n".encode()
    now = int(time.time())
    return events.encode_event(events.progress(now, item.stage, item.step, item.steps, index))
