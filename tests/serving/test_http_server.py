"""Limits of one connection, over real sockets: heads, slow senders, slow readers, counts."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from typing import Any

import pytest
import uvicorn
from starlette.types import Receive, Scope, Send

from farm.serving.http.connections import (
    ConnectionBook,
    ConnectionLimits,
    address_group,
    connections_within,
)
from farm.serving.http_server import bounded_config

BIG = b"x" * (1 << 20)
GET = b"GET /health HTTP/1.1\r\nhost: a\r\n"


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers at once, slowly, or with more than a socket holds."""
    path = scope["path"]
    if path == "/echo":
        while (await receive()).get("more_body"):
            pass
    if path == "/slow":
        await asyncio.sleep(1.5)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    for _ in range(64 if path == "/big" else 0):
        await send({"type": "http.response.body", "body": BIG, "more_body": True})
    await send({"type": "http.response.body", "body": b"ok"})


class Server:
    """The real server on a free port, in a thread."""

    def __init__(self, limits: ConnectionLimits) -> None:
        config = bounded_config(app, limits, host="127.0.0.1", port=0, lifespan="off")
        config.load()
        self.book: ConnectionBook = config.http_protocol_class.keywords["book"]  # type: ignore[union-attr]
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, daemon=True)
        self._thread.start()
        while not self._server.started:
            time.sleep(0.01)
        self.port = self._server.servers[0].sockets[0].getsockname()[1]

    def stop(self) -> None:
        self._server.should_exit = True
        self._thread.join(10)

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=10)


@contextmanager
def serving(**limits: Any) -> Iterator[Server]:
    server = Server(ConnectionLimits(**limits))
    try:
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serving(head_timeout_s=1, idle_timeout_s=3, write_timeout_s=1) as live:
        yield live


def read_all(connection: socket.socket) -> bytes:
    """Everything until the server closes; what it sent before it cut the connection off."""
    data = b""
    try:
        while piece := connection.recv(65536):
            data += piece
    except ConnectionResetError:
        pass
    return data


def ask(server: Server, head: bytes) -> tuple[int, dict[str, Any]]:
    """Status and JSON of an answer after which the server closes."""
    with closing(server.connect()) as connection:
        connection.sendall(head)
        top, _, body = read_all(connection).partition(b"\r\n\r\n")
    return int(top.split()[1]), json.loads(body) if body.startswith(b"{") else {}


def is_well(server: Server) -> bool:
    status, _ = ask(server, GET + b"connection: close\r\n\r\n")
    return status == 200


# -- heads -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (GET + b"a: b\r\n" * 150, 431),
        (GET + b"a: " + b"b" * 60_000, 431),
        (GET + b"a" * 60_000, 431),
        (b"GET /" + b"a" * 9_000 + b" HTTP/1.1\r\n", 414),
        (b"GET /?" + b"a" * 60_000, 414),
        (b"\r\n" * 30_000, 431),
        (b"NONSENSE\r\n\r\n", 400),
    ],
)
def test_a_head_beyond_its_bounds_is_refused_in_our_own_form(
    server: Server, head: bytes, status: int
) -> None:
    got, answer = ask(server, head)
    assert got == status
    assert set(answer["error"]) == {"message", "type", "param", "code"}
    assert is_well(server)


ENDLESS: dict[str, tuple[bytes, bytes]] = {
    "headers": (GET, b"a: b\r\n" * 10_000),
    "one value": (GET + b"a: ", b"b" * 60_000),
    "one name": (GET, b"a" * 60_000),
    "a URL": (b"GET /", b"a" * 60_000),
    "empty lines": (b"", b"\r\n" * 30_000),
    "trailers": (
        b"POST /echo HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n0\r\n",
        b"a: b\r\n" * 10_000,
    ),
    "one trailer": (
        b"POST /echo HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n0\r\na: ",
        b"b" * 60_000,
    ),
    "a chunk's extension": (
        b"POST /echo HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n1;",
        b"a" * 60_000,
    ),
    "requests ahead": (b"GET /slow HTTP/1.1\r\nhost: a\r\n\r\n", (GET + b"\r\n") * 1_000),
    "a body after its answer": (
        b"POST /health HTTP/1.1\r\nhost: a\r\ncontent-length: 99999999999\r\n\r\n",
        b"a" * 60_000,
    ),
}


@pytest.mark.parametrize("what", ENDLESS)
def test_what_does_not_end_is_cut_off(server: Server, what: str) -> None:
    first, more = ENDLESS[what]
    until_s = time.monotonic() + 20
    with closing(server.connect()) as connection, pytest.raises(OSError):  # noqa: PT011, PT012
        connection.sendall(first)
        while time.monotonic() < until_s:
            connection.sendall(more)
            time.sleep(0.02)
    assert time.monotonic() < until_s
    assert is_well(server)


# -- slow senders ----------------------------------------------------------------------------


@pytest.mark.parametrize("first", [b"", b"G", GET, b"\r\n"])
def test_a_head_that_drips_is_ended_in_time(server: Server, first: bytes) -> None:
    started_s = time.monotonic()
    with closing(server.connect()) as connection:
        connection.settimeout(0.2)
        with pytest.raises(OSError) as ended:  # noqa: PT011, PT012
            while time.monotonic() < started_s + 15:
                if first:
                    connection.sendall(first[:1])
                try:
                    if not connection.recv(1000):
                        if not first:
                            raise ConnectionResetError
                        time.sleep(0.05)  # it answers no more, and reads for a while
                except TimeoutError:
                    continue
        assert not isinstance(ended.value, TimeoutError)
    assert time.monotonic() - started_s < 10


def test_a_client_between_two_requests_is_kept_and_answered(server: Server) -> None:
    with closing(server.connect()) as connection:
        for _ in range(3):
            connection.sendall(GET + b"\r\n")
            assert connection.recv(1000).startswith(b"HTTP/1.1 200")
            time.sleep(1.2)  # longer than a head may take


def test_an_empty_line_after_a_request_does_not_end_its_answer(server: Server) -> None:
    with closing(server.connect()) as connection:
        connection.sendall(b"GET /slow HTTP/1.1\r\nhost: a\r\n\r\n\r\n")
        assert connection.recv(1000).startswith(b"HTTP/1.1 200")


# -- slow readers ----------------------------------------------------------------------------


def test_a_client_that_never_reads_is_cut_off(server: Server) -> None:
    eventually(lambda: not len(server.book))  # connections of other tests are gone
    with ExitStack() as stack:
        for _ in range(5):
            connection = stack.enter_context(closing(server.connect()))
            connection.sendall(b"GET /big HTTP/1.1\r\nhost: a\r\n\r\n")
        eventually(lambda: len(server.book) == 5)
        eventually(lambda: not len(server.book))
    assert is_well(server)


def test_a_client_that_reads_slowly_gets_all_of_it(server: Server) -> None:
    with closing(server.connect()) as connection:
        connection.sendall(b"GET /big HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")
        num_bytes = 0
        for turn in range(100_000):
            piece = connection.recv(1 << 20)
            num_bytes += len(piece)
            if not piece:
                break
            if turn < 60:
                time.sleep(0.05)
    assert num_bytes > 64 * len(BIG)


# -- numbers ---------------------------------------------------------------------------------


def test_a_good_client_is_answered_at_once_beside_a_flood_of_slow_ones() -> None:
    with serving(max_connections=64, connections_per_address=32) as server, ExitStack() as stack:
        kept = stack.enter_context(closing(server.connect()))
        kept.sendall(GET + b"\r\n")
        assert kept.recv(1000).startswith(b"HTTP/1.1 200")
        for _ in range(200):
            slow = stack.enter_context(closing(server.connect()))
            slow.sendall(b"GET / HTTP/1.1\r\nX-a: b")
        assert is_well(server)
        kept.sendall(GET + b"\r\n")  # one that asked before outlasts those that never did
        assert kept.recv(1000).startswith(b"HTTP/1.1 200")
        assert len(server.book) <= 32


def test_where_all_are_being_answered_the_next_one_is_told_503() -> None:
    with serving(max_connections=16, connections_per_address=2) as server, ExitStack() as stack:
        for _ in range(2):
            busy = stack.enter_context(closing(server.connect()))
            busy.sendall(b"GET /slow HTTP/1.1\r\nhost: a\r\n\r\n")
        eventually(lambda: len(server.book) == 2)
        time.sleep(0.2)
        with closing(server.connect()) as late:
            assert read_all(late).startswith(b"HTTP/1.1 503")
        assert busy.recv(1000).startswith(b"HTTP/1.1 200")


def test_addresses_are_counted_as_their_owners_have_them() -> None:
    assert address_group("10.1.2.3") == "10.1.2.3"
    assert address_group("::ffff:10.1.2.3") == "10.1.2.3"
    assert address_group("2001:db8::1") == address_group("2001:db8::ffff") == "2001:db8::/64"
    assert address_group("::1") == "::1"


def test_open_files_are_kept_for_the_store() -> None:
    limits = ConnectionLimits(max_connections=1000, reserved_files=256)
    assert connections_within(limits, 1 << 20) == 1000
    assert 100 < connections_within(limits, 1024) < 1024 - 256
    assert connections_within(limits, None) == 1000


def eventually(claim: Callable[[], bool], within_s: float = 15.0) -> None:
    until_s = time.monotonic() + within_s
    while not claim():
        assert time.monotonic() < until_s
        time.sleep(0.02)
