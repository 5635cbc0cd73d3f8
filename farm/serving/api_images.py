"""Drawing over HTTP: from a request's JSON to pictures, and to the events of a stream.

Owns what a request means: which adapters, which prompt, which seeds; admission, in the order in
which it is cheap; and that a caller who leaves takes his pictures' work with him. The drawing
itself is the engine's part.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import re
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from farm.errors import RequestRefused
from farm.serving import events
from farm.serving.api_errors import error_answer
from farm.serving.api_services import Services
from farm.serving.auth import Tenant
from farm.serving.catalog import AdapterFacts
from farm.serving.client import BaseFacts
from farm.serving.receipts import encode_picture
from farm.serving.request import MAX_SEED, AdapterRef, DrawRequest, Picture, Progress
from farm.serving.schemas import GenerateRequest

__all__ = ["answer_images", "stream_images"]

HEARTBEAT_S = 10.0
DEFAULT_GUIDANCE = 5.0
MAX_PREVIEWS = 3
_PLACEHOLDER = re.compile(r"\[V(?::([A-Za-z0-9_][A-Za-z0-9_.\-]{0,127}))?\]")


@dataclass(frozen=True)
class Order:
    """A request understood: what is to be drawn, one entry per picture."""

    asked: GenerateRequest
    tenant: Tenant
    pictures: tuple[DrawRequest, ...]
    width_px: int
    height_px: int
    link_root: str

    @property
    def output_format(self) -> Any:
        """Of the files."""
        return self.asked.output_format or "png"

    def shared(self) -> dict[str, Any]:
        """What every answer and event repeats of the request, in OpenAI's words."""
        quality = {"standard": "medium", "hd": "high"}.get(
            self.asked.quality or "auto", self.asked.quality or "auto"
        )
        return {
            "created_at": int(time.time()),
            "size": f"{self.width_px}x{self.height_px}",
            "quality": quality,
            "background": "opaque",
            "output_format": self.output_format,
        }

    def usage(self, base: BaseFacts, num_pictures: int) -> dict[str, Any]:
        """Latent cells drawn, in the place where OpenAI counts tokens."""
        cells = (self.width_px // base.side_multiple_px) * (self.height_px // base.side_multiple_px)
        details = {"text_tokens": 0, "image_tokens": 0}
        return {
            "input_tokens": 0,
            "input_tokens_details": details,
            "output_tokens": cells * num_pictures,
            "total_tokens": cells * num_pictures,
        }


# -- understanding the request -----------------------------------------------------------------


async def understand(
    services: Services, tenant: Tenant, asked: GenerateRequest, request: Request
) -> tuple[Order, BaseFacts]:
    """Check a request against the limits, the key's rate and the catalog; nothing is drawn.

    Raises:
        ServingError: what is wrong, or when to come again.
    """
    limits = services.limits
    base = await services.client.facts()
    width_px, height_px = asked.side_px(base.resolution_px)
    _check_side(width_px, height_px, base.side_multiple_px)
    num_pictures = asked.n or 1
    limits.check_cost(width_px, height_px, asked.steps, num_pictures)
    for field, text in (("prompt", asked.prompt), ("negative_prompt", asked.negative_prompt)):
        if text is not None and len(text) > limits.max_prompt_characters:
            most = limits.max_prompt_characters
            raise RequestRefused(f"{field}: longer than {most} characters", "", field)
    # counted before the names are looked up, so that guessing names costs the guesser
    per_minute = tenant.pictures_per_minute or limits.pictures_per_minute
    services.rates.take(tenant.key_id, num_pictures, per_minute)
    used = await _find_adapters(services, tenant, asked, base)
    prompt = _fill(asked.prompt, [facts for facts, _, _ in used])
    first_seed = asked.seed if asked.seed is not None else secrets.randbelow(2**32)
    if first_seed > MAX_SEED - num_pictures:
        raise RequestRefused("seed: too large for n pictures that count up from it", "", "seed")
    template = DrawRequest(
        id="",
        prompt=prompt,
        negative_prompt=asked.negative_prompt or "",
        steps=asked.steps,
        guidance=asked.guidance_scale if asked.guidance_scale is not None else DEFAULT_GUIDANCE,
        scheduler=asked.scheduler or "base",
        width_px=width_px,
        height_px=height_px,
        adapters=tuple((ref, weight) for _, ref, weight in used),
        tenant=tenant.namespace,
        deadline_s=limits.deadline_s,
        preview_every=_preview_every(asked),
    )
    request_id = request.state.request_id
    # the id is the request's own and unique, even if a caller names two requests alike
    unique = secrets.token_hex(4)
    pictures = tuple(
        replace(template, id=f"{request_id}-{unique}-{index}", seed=first_seed + index)
        for index in range(num_pictures)
    )
    root = services.public_url or str(request.base_url).rstrip("/")
    return Order(asked, tenant, pictures, width_px, height_px, root), base


def _check_side(width_px: int, height_px: int, multiple_px: int) -> None:
    if width_px % multiple_px or height_px % multiple_px:
        raise RequestRefused(f"size: sides are multiples of {multiple_px} px", "round it", "size")


def _preview_every(asked: GenerateRequest) -> int:
    """Steps between previews, so that as many come as were asked for, evenly spread."""
    count = (asked.partial_images or 0) if asked.stream else 0
    return max(1, asked.steps // (count + 1)) if count else 0


async def _find_adapters(
    services: Services, tenant: Tenant, asked: GenerateRequest, base: BaseFacts
) -> list[tuple[AdapterFacts, AdapterRef, float]]:
    """The adapters of a request, the one that ``model`` names first."""
    wanted: list[tuple[str, float]] = []
    if asked.model is not None and asked.model not in (base.id, "base"):
        weight = asked.adapter_weight
        wanted.append((asked.model, weight if weight is not None else 1.0))
    wanted += [(use.model, use.weight) for use in asked.adapters or ()]

    async def find(model: str, weight: float) -> tuple[AdapterFacts, AdapterRef, float]:
        named, facts = await services.catalog.resolve(tenant.namespace, model)
        if facts.base_fingerprint != base.fingerprint:
            raise RequestRefused(
                f"{named.name} was trained on another base than this endpoint holds",
                "train it on this base, or ask the endpoint of its own",
                "model",
            )
        return facts, AdapterRef(named.job_key, tenant.namespace, named.name, named.sha256), weight

    return list(await asyncio.gather(*(find(model, weight) for model, weight in wanted)))


def _fill(prompt: str, used: Sequence[AdapterFacts]) -> str:
    """The prompt with identifiers in place of ``[V]`` and ``[V:name]``."""
    by_name = {facts.name: facts for facts in used}

    def identifier(match: re.Match[str]) -> str:
        name = match.group(1)
        facts = by_name.get(name) if name else (used[0] if used else None)
        if facts is None:
            raise RequestRefused(
                f"prompt: no adapter of this request stands for {match.group(0)}",
                "name one in 'model' or in 'adapters'",
                "prompt",
            )
        return facts.identifier

    return _PLACEHOLDER.sub(identifier, prompt)


# -- drawing -----------------------------------------------------------------------------------


async def _make_item(
    services: Services, order: Order, index: int, picture: Picture
) -> dict[str, Any]:
    """A finished picture as the answer holds it."""
    drawn = order.pictures[index]
    receipt = {**picture.receipt, "request": drawn.id.rsplit("-", 2)[0]}

    def make() -> dict[str, str]:
        data = encode_picture(
            picture.pixels, receipt, order.output_format, quality=order.asked.output_compression
        )
        if order.asked.response_format == "url" and not order.asked.stream:
            return {"url": order.link_root + services.shelf.put(data, order.output_format)}
        return {"b64_json": base64.b64encode(data).decode()}

    loop = asyncio.get_running_loop()
    content = await loop.run_in_executor(services.encoders, make)
    services.metrics.count("farm_pictures", outcome="drawn")
    return {
        **content,
        "revised_prompt": drawn.prompt,
        "seed": drawn.seed,
        "receipt": receipt,
    }


async def _answer(services: Services, order: Order, base: BaseFacts) -> bytes:
    items: dict[int, dict[str, Any]] = {}
    async with contextlib.aclosing(services.client.draw(order.pictures, listen=False)) as news:
        async for index, item in news:
            if isinstance(item, Picture):
                items[index] = await _make_item(services, order, index, item)
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
    """Draw, and answer when all pictures are there."""
    order, base = await understand(services, tenant, asked, request)
    with _counted(services, order):
        body = await _unless_gone(request.receive, _answer(services, order, base))
    if body is None:
        return Response(status_code=499)  # nobody reads it; the access log does
    return Response(body, media_type="application/json")


async def _unless_gone(receive: Receive, work: Awaitable[bytes]) -> bytes | None:
    """The work's result; None, with the work cancelled, if the caller leaves first."""
    working = asyncio.ensure_future(work)
    watching = asyncio.create_task(_gone(receive))
    try:
        await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
        return working.result() if working.done() else None
    finally:
        for task in (working, watching):
            task.cancel()
        await asyncio.gather(working, watching, return_exceptions=True)


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


@contextlib.contextmanager
def _counted(services: Services, order: Order) -> Any:
    """Count an order's pictures as waited for, and its end by outcome."""
    count = len(order.pictures)
    with services.room.enter(order.tenant.key_id, count, services.wait_s):
        services.metrics.set("farm_pictures_waiting", services.room.total)
        try:
            yield
        except asyncio.CancelledError:
            services.metrics.count("farm_pictures", count, outcome="cancelled")
            raise
        except Exception as error:
            status = error_answer(error)[0]
            outcome = {429: "refused", 503: "unavailable", 504: "late"}.get(status, "failed")
            services.metrics.count("farm_pictures", count, outcome=outcome)
            raise
    services.metrics.set("farm_pictures_waiting", services.room.total)


# -- streaming ---------------------------------------------------------------------------------


async def stream_images(
    services: Services, tenant: Tenant, asked: GenerateRequest, request: Request
) -> Response:
    """Draw, and tell of it while it happens. What is refused is refused before the stream."""
    order, base = await understand(services, tenant, asked, request)
    stream = _events(services, order, base)
    # the first event is awaited here, so that a full queue is still a 429
    first = await anext(stream)
    return EventStream(_with_first(first, stream))


async def _with_first(first: bytes, rest: AsyncGenerator[bytes]) -> AsyncGenerator[bytes]:
    async with contextlib.aclosing(rest):
        yield first
        async for event in rest:
            yield event


async def _events(services: Services, order: Order, base: BaseFacts) -> AsyncGenerator[bytes]:
    num_shown = [0] * len(order.pictures)
    with _counted(services, order):
        drawing = services.client.draw(order.pictures, listen=True)
        async with contextlib.aclosing(drawing) as news:
            async for index, item in news:
                if isinstance(item, Picture):
                    done = await _make_item(services, order, index, item)
                    done["usage"] = order.usage(base, 1)
                    yield events.encode_event(events.completed(order.shared(), done, index))
                    continue
                if item.preview is not None and num_shown[index] < (
                    order.asked.partial_images or 0
                ):
                    yield await _partial(services, order, index, item, num_shown[index])
                    num_shown[index] += 1
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
    """A progress event for those who asked for it, a comment for the others."""
    if not order.asked.stream_progress:
        return f": {item.stage} {item.step}/{item.steps}\n\n".encode()
    now = int(time.time())
    return events.encode_event(events.progress(now, item.stage, item.step, item.steps, index))


class EventStream(Response):
    """A response of server-sent events: with a heartbeat, and ended when the caller leaves."""

    media_type = "text/event-stream"

    def __init__(self, stream: AsyncGenerator[bytes]) -> None:
        super().__init__(headers={"x-accel-buffering": "no", "cache-control": "no-store"})
        del self.headers["content-length"]
        self._stream = stream

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        telling = asyncio.create_task(self._tell(send))
        watching = asyncio.create_task(_gone(receive))
        try:
            await asyncio.wait({telling, watching}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (telling, watching):
                task.cancel()
            await asyncio.gather(telling, watching, return_exceptions=True)
            await self._stream.aclose()

    async def _tell(self, send: Send) -> None:
        async def one(data: bytes, more: bool = True) -> None:
            await send({"type": "http.response.body", "body": data, "more_body": more})

        try:
            async for event in _with_heartbeat(self._stream):
                await one(event)
        except Exception as error:
            _, body, _ = error_answer(error)
            await one(events.encode_event(events.failed(body)))
        await one(b"", more=False)


async def _with_heartbeat(stream: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The events, with a comment wherever they are silent for long."""
    upcoming: asyncio.Task[bytes] | None = None
    try:
        while True:
            upcoming = upcoming or asyncio.ensure_future(_next(stream))
            done, _ = await asyncio.wait({upcoming}, timeout=HEARTBEAT_S)
            if not done:
                yield events.KEEP_ALIVE
                continue
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
