"""Middleware in Ray Serve's HTTP proxies, in front of the ingresses.

Owns what callers see when an ingress dies, when the application is removed, and while the endpoint
drains: a second try on another ingress, or this endpoint's own 503 with ``Retry-After``. Ray Serve
itself would answer with plain-text 404s and 500s. Every request of the endpoint may be repeated: it
changes nothing, and an image depends on its request alone.

Installed by ``environment.bound_ray_proxy``. Requests to other applications on the same cluster
pass through unchanged. Imports no Ray.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from dataclasses import dataclass
from typing import Any, Literal

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from farm.errors import Draining, ServingError
from farm.serving.http import events
from farm.serving.http.errors import error_answer
from farm.serving.http.middleware import PLAIN_HEADERS

__all__ = ["STATE", "ProxyReport", "ProxyState", "RetryingProxy", "Stage", "set_stage"]

logger = logging.getLogger(__name__)

NUM_ATTEMPTS = 3
"""Attempts at a request. More would let one request that ends an ingress end them all."""
PAUSES_S = (0.1, 0.5)
"""Before the second and the third attempt; the router needs a moment to drop a dead ingress."""
READY_S = 5.0
"""How long ``/ready`` may wait for an ingress."""
READ_S = 30.0
"""The same for every route that generates nothing."""
MAX_TAPE_BYTES = 512 << 10
"""A longer request body is not kept for another attempt. Ingresses refuse far shorter ones."""
GENERATE = "/v1/images/generations"
HEALTH = "/-/healthz"
FILES = frozenset({"/", "/page.js", "/page.css", "/openapi.json", "/health", "/ready", "/metrics"})
FOLDERS = ("/v1/images/", "/v1/models", "/v1/pictures/")
INGRESS_HEADER = "x-content-type-options"
"""Set in every response of an ingress, and in none of Ray Serve's own."""
RAYS_STATUSES = frozenset({404, 408, 429, 500, 503})

Stage = Literal["serving", "unready", "refusing"]
"""``unready``: readiness checks fail, requests are still accepted. ``refusing``: none are."""


@dataclass
class ProxyState:
    """The state of this proxy process."""

    is_installed: bool = False
    """Whether requests pass through ``RetryingProxy``."""
    stage: Stage = "serving"
    is_alone: bool = False
    """Whether the endpoint is the cluster's only application."""
    in_flight: int = 0
    retried: int = 0
    refused: int = 0


@dataclass(frozen=True, slots=True)
class ProxyReport:
    """What a proxy reports to the process that drains it."""

    is_installed: bool
    in_flight: int
    retried: int
    refused: int


STATE = ProxyState()


def set_stage(_proxy: Any, stage: Stage, is_alone: bool) -> ProxyReport:
    """Called in a proxy's process, through ``__ray_call__`` of its actor."""
    STATE.stage, STATE.is_alone = stage, is_alone
    return ProxyReport(STATE.is_installed, STATE.in_flight, STATE.retried, STATE.refused)


class RetryingProxy:
    """The outermost layer of a Ray Serve proxy."""

    def __init__(self, app: ASGIApp, state: ProxyState = STATE) -> None:
        self._app = app
        self._state = state
        state.is_installed = True

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = str(scope.get("path", ""))
        path = path.removesuffix("/") or path
        is_checked = scope["type"] == "http" and (_is_ours(path) or self._is_proxys_health(path))
        if not is_checked:
            await self._app(scope, receive, send)
        elif self._refuses(path):
            await self._refuse(_leaving(), scope, receive, send)
        else:
            self._state.in_flight += 1
            try:
                await self._answer(path, scope, receive, send)
            finally:
                self._state.in_flight -= 1

    def _is_proxys_health(self, path: str) -> bool:
        """Ray Serve's own health check, which stands for all applications of the cluster."""
        return path == HEALTH and self._state.is_alone

    def _refuses(self, path: str) -> bool:
        if self._state.stage == "serving" or path == "/health":
            return False
        return self._state.stage == "refusing" or path in ("/ready", HEALTH)

    async def _answer(self, path: str, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, again if its ingress is lost."""
        tape = _Tape(receive)
        answer = _Answer(send)
        for attempt in range(NUM_ATTEMPTS):
            if attempt:
                self._state.retried += 1
                await asyncio.sleep(PAUSES_S[attempt - 1])
            answer.begin_attempt()
            is_late = await self._attempt(path, scope, tape, answer)
            if answer.is_whole or tape.is_gone:
                return
            if is_late or not tape.can_replay or not answer.may_repeat:
                break
        if answer.has_begun:
            await answer.break_off(_lost())
            return
        error = answer.error or _lost()
        await self._refuse(error, scope, receive, send)

    async def _attempt(self, path: str, scope: Scope, tape: _Tape, answer: _Answer) -> bool:
        """One attempt; whether it took too long. The proxy ends quietly when it is cancelled."""
        limit_s = {"/ready": READY_S, GENERATE: None}.get(path, READ_S)
        again = {**scope, "headers": list(scope["headers"]), "state": dict(scope.get("state", {}))}
        try:
            async with asyncio.timeout(limit_s) as timeout:
                answer.waiting = timeout
                await self._app(again, tape.replay(), answer.send)
        except TimeoutError:
            return True
        except Exception:
            # an ingress's errors are responses; this is one of Ray Serve's
            logger.exception("the proxy failed")
        return timeout.expired()

    async def _refuse(
        self, error: ServingError | TimeoutError, scope: Scope, receive: Receive, send: Send
    ) -> None:
        self._state.refused += 1
        status, body, headers = error_answer(error)
        given = Headers(scope=scope).get("x-request-id", "")
        request_id = given if given.isascii() and 0 < len(given) <= 64 else None
        named = {"x-request-id": request_id or f"req_{secrets.token_hex(12)}"}
        await JSONResponse(body, status, {**PLAIN_HEADERS, **headers, **named})(
            scope, receive, send
        )


class _Tape:
    """A request's messages, recorded while they are read, for another attempt."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._messages: list[Message] = []
        self._num_bytes = 0
        self.is_gone = False
        """Whether the caller has disconnected."""

    @property
    def can_replay(self) -> bool:
        """Whether the messages are all kept."""
        return self._num_bytes <= MAX_TAPE_BYTES

    def replay(self) -> Receive:
        """A ``receive`` that begins with the recorded messages."""
        position = 0

        async def receive() -> Message:
            nonlocal position
            if position < len(self._messages):
                message = self._messages[position]
            else:
                message = await self._receive()
                self._record(message)
            position += 1
            return message

        return receive

    def _record(self, message: Message) -> None:
        if message["type"] == "http.disconnect":
            self.is_gone = True
            return
        self._num_bytes += len(message.get("body", b""))
        if self.can_replay:
            self._messages.append(message)
        else:
            self._messages.clear()


class _Answer:
    """A ``send`` that holds a response's start until its first body, and recognizes Ray Serve's own
    responses."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._start: Message | None = None
        self._is_stream = False
        self._has_completed_picture = False
        self._is_rays = False
        self.has_begun = False
        """Whether the caller has received any of it."""
        self.is_whole = False
        self.error: ServingError | TimeoutError | None = None
        """What to answer in place of Ray Serve's response."""
        self.waiting: asyncio.Timeout | None = None
        """The limit until the response begins; a slow reader may take longer."""

    def begin_attempt(self) -> None:
        """Forget the start of the last attempt."""
        self._start, self._is_rays, self.error = None, False, None

    @property
    def may_repeat(self) -> bool:
        """Whether another attempt can still give a correct response. A stream's events begin
        again, as they do when an engine is lost, but no image is sent twice."""
        if isinstance(self.error, TimeoutError):
            return False
        return not self.has_begun or (self._is_stream and not self._has_completed_picture)

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._start = message
            self._is_rays = _is_rays(message)
            return
        if self._is_rays:
            assert self._start is not None
            self.error = _own_error(int(self._start["status"]))
            return
        if self._start is not None:
            await self._begin(self._start)
            self._start = None
        self._has_completed_picture |= b"image_generation.completed" in message.get("body", b"")
        is_last = not message.get("more_body", False)
        await self._send(message)
        self.is_whole = is_last

    async def _begin(self, start: Message) -> None:
        if self.waiting is not None:
            self.waiting.reschedule(None)
        if self.has_begun:  # a second attempt at a stream continues under the first one's head
            return
        self.has_begun = True
        kind = Headers(raw=start["headers"]).get("content-type", "")
        self._is_stream = kind.startswith("text/event-stream")
        await self._send(start)

    async def break_off(self, error: ServingError) -> None:
        """End a response that cannot be completed: a stream with an error event; any other by
        closing the connection, which the server does when a response ends early."""
        if self._is_stream:
            _, body, _ = error_answer(error)
            last = events.encode_event(events.failed(body))
            await self._send({"type": "http.response.body", "body": last, "more_body": False})


def _is_ours(path: str) -> bool:
    return path in FILES or path.startswith(FOLDERS)


def _is_rays(start: Message) -> bool:
    headers = Headers(raw=start["headers"])
    is_plain = headers.get("content-type", "").startswith("text/plain")
    return int(start["status"]) in RAYS_STATUSES and is_plain and INGRESS_HEADER not in headers


def _own_error(status: int) -> ServingError | TimeoutError:
    if status == 408:
        return TimeoutError()
    if status == 404:
        return Draining("no endpoint is deployed here at the moment", "ask again in a moment")
    return _lost()


def _lost() -> Draining:
    return Draining("no ingress is ready at the moment", "ask again in a moment")


def _leaving() -> Draining:
    return Draining("the endpoint is shutting down", "try again in a moment")
