"""Middleware around every route: request id, authentication, size limits, uncaught errors.

Owns the request id, authentication, the checks of web pages' origins, the body's limits in bytes
and time, the turns of callers, the pace of refusals, the common headers of every response, and the
handler of uncaught errors. A plain ASGI layer, so that streams pass through unchanged.
"""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
import time
from collections.abc import Callable

from fastapi import HTTPException
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from farm.serving.access.api_keys import Gate
from farm.serving.access.limits import Limits, RefusalPace
from farm.serving.access.turns import Turns
from farm.serving.http.connections import address_group
from farm.serving.http.errors import error_response, http_response

__all__ = ["Guard"]

logger = logging.getLogger(__name__)

_REQUEST_ID = re.compile(r"[A-Za-z0-9_\-]{1,64}")
LOOPBACK_HOSTS = frozenset({"localhost", "127.0.0.1", "[::1]", "::1", ""})
PROTECTED = ("/v1/", "/metrics")
PUBLIC = ("/v1/pictures/",)
"""Links carry their own signature."""
JSON_ROUTES = ("/v1/images/generations",)
PAGE = "/"
PLAIN_HEADERS = {
    "x-content-type-options": "nosniff",
    "cache-control": "no-store",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "content-security-policy": "default-src 'self'; img-src 'self' blob: data:; "
    "frame-ancestors 'none'; base-uri 'none'",
}


class Guard:
    """The outermost layer of the app."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        gate: Gate,
        limits: Limits,
        observe: Callable[[str, str, int, float], None] | None = None,
        names_requests: bool = True,
        has_engine: bool = True,
    ) -> None:
        """Args:
        observe: receives the method, route, status and seconds of every request.
        names_requests: whether to add the request id to responses; Ray Serve's proxy adds it.
        has_engine: whether an engine in this process needs the interpreter too.
        """
        self._app = app
        self._gate = gate
        self._limits = limits
        self._observe = observe
        self._names_requests = names_requests
        self._pace = RefusalPace(limits.refusals_per_second)
        self._turns = Turns() if has_engine else Turns(rest=0.0)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        scope = _plain(scope)
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        request_id = given if _REQUEST_ID.fullmatch(given) else f"req_{secrets.token_hex(12)}"
        state = scope.setdefault("state", {})
        state["request_id"] = request_id
        started_s = time.perf_counter()
        answer = _Answer(scope, send, self._limits, request_id if self._names_requests else None)
        try:
            await self._respond(scope, receive, headers, answer)
            # only now, when nothing of the request is in memory any more
            if answer.is_held:
                await self._send_refusal(_caller(scope), answer)
        finally:
            if self._observe is not None:
                route = getattr(scope.get("route"), "path", "other")
                took_s = time.perf_counter() - started_s
                self._observe(scope["method"], route, answer.status, took_s)

    async def _respond(
        self, scope: Scope, receive: Receive, headers: Headers, answer: _Answer
    ) -> None:
        try:
            try:
                await self._admit(scope, headers)
            finally:
                self._check_pace(scope)
            caller = _caller(scope)
            try:
                await self._turns.take(caller)
                body = _BoundedBody(receive, self._limits)
                await self._app(scope, body.receive, answer.send)
            finally:
                self._turns.leave(caller)
        except Exception as error:
            if answer.status and not answer.is_held:  # it has begun; it can only be aborted
                raise
            answer.begin_again()
            await self._refusal(error)(scope, receive, answer.send)

    def _check_pace(self, scope: Scope) -> None:
        """Refuse a request to a protected route before it costs anything, if too many refusals of
        its caller are already delayed."""
        if scope["path"].startswith(PROTECTED) and self._pace.is_over(_caller(scope)):
            raise HTTPException(429, "too many bad requests; correct them", {"retry-after": "2"})

    async def _send_refusal(self, caller: str, answer: _Answer) -> None:
        if self._pace.is_over(caller):
            answer.close_connection()
        else:
            await asyncio.sleep(self._pace.delay_s(caller))
        await answer.release()

    async def _admit(self, scope: Scope, headers: Headers) -> None:
        """Check size and key before any of the body is read."""
        length = headers.get("content-length", "0")
        if not length.isdigit() or len(length) > 18:
            raise HTTPException(400, "content-length is not a number")
        if int(length) > self._limits.max_body_bytes:
            raise _too_large(self._limits)
        path = scope["path"]
        is_link = path.startswith(PUBLIC)
        if self._gate.is_open and not is_link:
            _check_origin(scope, headers)
        if not path.startswith(PROTECTED) or is_link:
            return
        scope["state"]["tenant"] = await self._gate.admit(
            headers.get("authorization"), _address(scope)
        )
        if path in JSON_ROUTES and scope["method"] == "POST":
            _check_json(headers)

    @staticmethod
    def _refusal(error: Exception) -> JSONResponse:
        if isinstance(error, HTTPException):
            return http_response(error)
        return error_response(error)


def _plain(scope: Scope) -> Scope:
    """The request without a slash at its end, and as GET if it is HEAD.

    The server omits the body of a response to HEAD. A redirect to the path without the slash would
    be followed neither by all clients nor, behind a proxy with TLS, with the key.
    """
    changes: dict[str, str] = {}
    if scope["method"] == "HEAD":
        changes["method"] = "GET"
    path = scope["path"]
    if path.endswith("/") and not path.endswith("//") and path != PAGE:
        changes["path"] = path.removesuffix("/")
    return {**scope, **changes} if changes else scope


def _address(scope: Scope) -> str:
    client = scope.get("client")
    return address_group(client[0]) if client else ""


def _caller(scope: Scope) -> str:
    """Whom a refusal counts against: the key, or the address of a request without a valid one."""
    tenant = scope["state"].get("tenant")
    return f"key {tenant.key_id}" if tenant is not None else _address(scope)


class _Answer:
    """A ``send`` that adds the common headers, holds refusals, and times out if the client does not
    read."""

    def __init__(self, scope: Scope, send: Send, limits: Limits, request_id: str | None) -> None:
        self.status = 0
        """0 until something is sent."""
        self._send = send
        self._timeout_s = limits.write_timeout_s
        self._request_id = request_id
        # other sites may embed images behind links, and nothing else
        is_link = scope["path"].startswith(PUBLIC)
        self._resource_policy = "cross-origin" if is_link else "same-origin"
        self._is_stuck = False
        self._held: list[Message] = []

    @property
    def is_held(self) -> bool:
        """Whether the response is a refusal, of which nothing is sent before ``release``."""
        return bool(self._held)

    def begin_again(self) -> None:
        """Forget a held refusal, in place of which another response follows."""
        self.status = 0
        self._held.clear()

    def close_connection(self) -> None:
        """Have the server close the connection after a held refusal."""
        MutableHeaders(scope=self._held[0])["connection"] = "close"

    async def release(self) -> None:
        """Send a held refusal."""
        for message in self._held:
            await self._send(message)

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = int(message["status"])
            out = MutableHeaders(scope=message)
            if self._request_id is not None:
                out["x-request-id"] = self._request_id
            for name, value in PLAIN_HEADERS.items():
                out.setdefault(name, value)
            out.setdefault("cross-origin-resource-policy", self._resource_policy)
            if 400 <= self.status < 499:  # 499: the caller has left
                self._held.append(message)
                return
        if self._held:
            self._held.append(message)
            return
        if not message.get("more_body"):
            await self._send(message)
            return
        if self._is_stuck:
            raise TimeoutError
        self._is_stuck = True
        async with asyncio.timeout(self._timeout_s):
            await self._send(message)
        self._is_stuck = False


def _check_origin(scope: Scope, headers: Headers) -> None:
    """Without keys, accept only programs on this machine and the endpoint's own page: no other page
    open in a browser here, even one whose host name resolves to 127.0.0.1 (DNS rebinding).

    Raises:
        HTTPException: 403.
    """
    host = headers.get("host", "")
    if not _is_loopback(host):
        raise HTTPException(403, "without keys this endpoint answers to localhost only")
    site = headers.get("sec-fetch-site", "none")
    followed_a_link = (
        scope["method"] == "GET"
        and scope["path"] == PAGE
        and headers.get("sec-fetch-mode") == "navigate"
        and headers.get("sec-fetch-dest") == "document"
    )
    origin = headers.get("origin")
    is_foreign = origin is not None and origin not in (f"http://{host}", f"https://{host}")
    if is_foreign or (site not in ("none", "same-origin") and not followed_a_link):
        raise HTTPException(403, "without keys this endpoint answers only its own page")


def _check_json(headers: Headers) -> None:
    """Refuse a body that is not declared as JSON: a form on any web page could have sent it.

    Raises:
        HTTPException: 415.
    """
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise HTTPException(415, "the body must be sent with content-type: application/json")


class _BoundedBody:
    """A ``receive`` that ends a body which grows too large or takes too long."""

    def __init__(self, receive: Receive, limits: Limits) -> None:
        self._receive = receive
        self._limits = limits
        self._num_bytes = 0
        self._is_whole = False
        self._until_s = asyncio.get_running_loop().time() + limits.body_timeout_s

    async def receive(self) -> Message:
        if self._is_whole:
            return await self._receive()
        try:
            async with asyncio.timeout_at(self._until_s):
                message = await self._receive()
        except TimeoutError:
            # the rest is not read, so the connection is closed
            raise HTTPException(
                408, "the body did not arrive in time", {"connection": "close"}
            ) from None
        if message["type"] == "http.request":
            self._num_bytes += len(message.get("body", b""))
            self._is_whole = not message.get("more_body", False)
            if self._num_bytes > self._limits.max_body_bytes:
                raise _too_large(self._limits)
        return message


def _too_large(limits: Limits) -> HTTPException:
    return HTTPException(
        413,
        f"the body is over the limit of {limits.max_body_bytes} bytes",
        # the rest of the body is not read, so the connection is closed
        {"connection": "close"},
    )


def _is_loopback(host: str) -> bool:
    name = host.rsplit(":", 1)[0] if not host.endswith("]") else host
    return name.lower() in LOOPBACK_HOSTS or host.lower() in LOOPBACK_HOSTS
