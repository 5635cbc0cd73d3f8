"""The bounds on connections that a Ray Serve proxy gets, flooded over real sockets.

Ray itself is left out: the callback is called, and the server configured, as its proxies do.
"""

from __future__ import annotations

import http.client
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress

import pytest
import uvicorn
from starlette.types import Receive, Scope, Send
from uvicorn.config import HTTP_PROTOCOLS

from farm.serving.cluster import environment
from farm.serving.http.connections import ConnectionLimits

LIMITS = ConnectionLimits(connections_per_address=32, head_timeout_s=1.0)


async def ray_serve(scope: Scope, receive: Receive, send: Send) -> None:
    headers = [(b"x-content-type-options", b"nosniff")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b"ok"})


@pytest.fixture
def port(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    for name, value in environment.proxy_environment(LIMITS).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setitem(HTTP_PROTOCOLS, "auto", HTTP_PROTOCOLS["auto"])  # restored at the end
    app = ray_serve
    for middleware in environment.bound_ray_proxy():
        app = middleware.cls(app)  # type: ignore[assignment]
    config = uvicorn.Config(app, host="127.0.0.1", port=0, lifespan="off", log_level="error")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield server.servers[0].sockets[0].getsockname()[1]
    server.should_exit = True
    thread.join(10)


def health(port: int) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    connection.request("GET", "/health")
    return connection.getresponse().status


def test_a_head_without_end_is_refused(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=10) as flood:
        flood.sendall(b"GET /health HTTP/1.1\r\n")
        with suppress(OSError):
            for _ in range(1_000):
                flood.sendall(b"a: b\r\n" * 1_000)
            pytest.fail("6 MB of headers were accepted")
        assert flood.recv(12) == b"HTTP/1.1 431"
    assert health(port) == 200


def test_unfinished_heads_lock_no_one_out(port: int) -> None:
    with ExitStack() as stack:
        for _ in range(150):
            one = stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=10))
            with suppress(OSError):
                one.sendall(b"GET /health HTTP/1.1\r\nx: ")
        assert health(port) == 200
        assert len(environment._RAY_BOOKS[0]) <= LIMITS.connections_per_address
        until_s = time.monotonic() + 20
        while len(environment._RAY_BOOKS[0]) > 2 and time.monotonic() < until_s:
            time.sleep(0.1)
        assert len(environment._RAY_BOOKS[0]) <= 2
    assert health(port) == 200
