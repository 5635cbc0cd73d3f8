"""What callers see of a Ray Serve proxy when ingresses are lost, removed or drained."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from starlette.types import Message, Receive, Scope, Send

from farm.serving.cluster.proxy import ProxyState, RetryingProxy

GENERATE = "/v1/images/generations"
Attempt = Callable[[Receive, Send], Awaitable[None]]


@dataclass
class Seen:
    """A response as the caller receives it."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    is_whole: bool = False

    @property
    def code(self) -> str:
        return str(json.loads(self.body)["error"]["code"])


class RayServe:
    """Stands where Ray Serve's proxy does: each request takes the next attempt, then the last."""

    def __init__(self, *attempts: Attempt) -> None:
        self.attempts = list(attempts)
        self.bodies: list[bytes] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        attempt = self.attempts.pop(0) if len(self.attempts) > 1 else self.attempts[0]
        body, more = b"", True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        self.bodies.append(body)
        await attempt(receive, send)


async def dies(receive: Receive, send: Send) -> None:
    """An ingress that is lost: Ray Serve's proxy ends without a response."""


def answers(body: bytes = b"picture", status: int = 200) -> Attempt:
    """An ingress's response; its guard sets the header."""

    async def attempt(receive: Receive, send: Send) -> None:
        headers = [(b"x-content-type-options", b"nosniff"), (b"content-type", b"application/json")]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    return attempt


def rays_own(status: int) -> Attempt:
    """Ray Serve's plain text."""

    async def attempt(receive: Receive, send: Send) -> None:
        headers = [[b"content-type", b"text/plain; charset=utf-8"]]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": b"Path '/x' not found."})

    return attempt


def streams(*events: bytes, ends: bool) -> Attempt:
    """A stream of an ingress, which is lost in the middle unless it ends."""

    async def attempt(receive: Receive, send: Send) -> None:
        headers = [(b"x-content-type-options", b"nosniff"), (b"content-type", b"text/event-stream")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        for event in events:
            await send({"type": "http.response.body", "body": event, "more_body": True})
        if ends:
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    return attempt


def ask(
    app: RayServe, path: str = GENERATE, state: ProxyState | None = None, body: bytes = b"{}"
) -> Seen:
    """Send a request in two parts through the proxy's middleware."""
    seen = Seen()
    parts: list[Message] = [
        {"type": "http.request", "body": body[:1], "more_body": True},
        {"type": "http.request", "body": body[1:], "more_body": False},
    ]

    async def receive() -> Message:
        return parts.pop(0) if parts else await asyncio.Future()

    async def send(message: Message) -> None:
        if message["type"] == "http.response.start":
            assert not seen.status
            seen.status = message["status"]
            pairs = [(bytes(name), bytes(value)) for name, value in message["headers"]]
            seen.headers = {name.decode(): value.decode() for name, value in pairs}
        else:
            seen.body += message.get("body", b"")
            seen.is_whole = not message.get("more_body", False)

    scope: dict[str, Any] = {"type": "http", "method": "POST", "path": path, "headers": []}
    asyncio.run(RetryingProxy(app, state or ProxyState())(scope, receive, send))
    return seen


def test_a_request_whose_ingress_is_lost_goes_to_another() -> None:
    app, state = RayServe(dies, answers()), ProxyState()
    seen = ask(app, state=state, body=b'{"seed": 1}')
    assert (seen.status, seen.body, state.retried, state.in_flight) == (200, b"picture", 1, 0)
    assert app.bodies == [b'{"seed": 1}'] * 2


def test_a_503_of_the_endpoint_passes_through_unchanged() -> None:
    app = RayServe(answers(b"{}", 503))
    assert (ask(app).body, len(app.bodies)) == (b"{}", 1)


@pytest.mark.parametrize("lost", [dies, rays_own(500), rays_own(503), rays_own(404)])
def test_rays_own_errors_become_the_endpoints_503(lost: Attempt) -> None:
    seen = ask(RayServe(lost))
    assert (seen.status, seen.code, seen.is_whole) == (503, "service_unavailable", True)
    assert int(seen.headers["retry-after"]) >= 1
    assert seen.headers["x-request-id"]


def test_rays_timeout_is_the_endpoints_and_is_not_repeated() -> None:
    app = RayServe(rays_own(408), answers())
    seen = ask(app)
    assert (seen.status, seen.headers["x-should-retry"], len(app.bodies)) == (504, "false", 1)


def test_a_stream_begins_again_unless_a_picture_was_sent() -> None:
    again = ask(RayServe(streams(b"a", ends=False), streams(b"a", b"b", ends=True)))
    assert (again.body, again.is_whole) == (b"aab", True)
    sent = b"event: image_generation.completed\n\n"
    ended = ask(RayServe(streams(sent, ends=False), streams(sent, ends=True)))
    assert ended.body.count(sent) == 1
    assert b"event: error" in ended.body
    assert ended.is_whole


def test_readiness_fails_before_requests_are_refused() -> None:
    state = ProxyState(stage="unready", is_alone=True)
    app = RayServe(answers())
    statuses = {path: ask(app, path, state).status for path in ("/ready", "/-/healthz", GENERATE)}
    assert statuses == {"/ready": 503, "/-/healthz": 503, GENERATE: 200}
    state.stage = "refusing"
    assert ask(app, GENERATE, state).code == "service_unavailable"
    assert ask(app, "/health", state).status == 200


def test_other_applications_of_the_cluster_are_left_alone() -> None:
    state = ProxyState(stage="refusing")
    assert ask(RayServe(rays_own(404)), "/other/v1/images", state).status == 404
    assert ask(RayServe(answers()), "/-/healthz", state).status == 200
    app = RayServe(dies, answers())
    assert ask(app, "/other", state).status == 0
    assert len(app.bodies) == 1
