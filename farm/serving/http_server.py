"""The HTTP server in front of the app: uvicorn, with a bound on everything a connection can hold.

Owns the protocol class: size and number of headers, the URL's length, the time to a complete head,
trailers, pipelined requests, and responses that the client does not read. Complete requests are
checked in ``http/middleware.py``. ``bounded_config`` configures the server of ``farm serve``;
``cluster/environment.py`` installs the same class in Ray Serve's proxies.
"""

from __future__ import annotations

import asyncio
import json
import secrets
from functools import partial
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from farm.serving.http.connections import (
    BACKLOG,
    ConnectionBook,
    ConnectionLimits,
    address_group,
    connections_within,
    raise_file_limit,
)
from farm.serving.http.errors import error_body

__all__ = ["BoundedProtocol", "bounded_config"]

LINGER_S = 2.0
"""How long a refused client may continue to send, so that it can read the refusal."""
LINGER_BYTES = 1 << 20
UNREAD_S = 5.0
"""How long the rest of a body may take to arrive once its request is answered."""
FRAMING_PER_BYTE = 8
"""Bytes of chunk headers allowed for each byte of a body: chunks of one byte take six."""
REASONS = {
    400: (b"Bad Request", "this is not an HTTP request", "invalid_request"),
    408: (b"Request Timeout", "the request did not arrive in time", "timeout"),
    414: (b"URI Too Long", "the URL is too long", "url_too_long"),
    431: (b"Request Header Fields Too Large", "the headers are too large", "headers_too_large"),
    503: (b"Service Unavailable", "too many connections", "too_many_connections"),
}
IDLE, HEAD, BODY, ENDING = range(4)
"""What is being read: nothing, a request's head, its body, or bytes to discard after a refusal."""


class _Refused(Exception):
    """Raised inside the parser's callbacks, which ends the parsing."""


class _CountingTransport:
    """A transport that counts what is written to it.

    Its methods are the transport's own, found without a detour: they are called for every request.
    """

    def __init__(self, transport: asyncio.Transport) -> None:
        self._write, self._is_closing = transport.write, transport.is_closing
        self.num_written = 0
        for name in dir(transport):
            if not name.startswith("_") and name != "write":
                setattr(self, name, getattr(transport, name))

    def write(self, data: bytes) -> None:
        if self._is_closing():  # the client left before a pipelined request was answered
            return
        self.num_written += len(data)
        self._write(data)


class BoundedProtocol(HttpToolsProtocol):
    """One connection."""

    def __init__(self, *arguments: Any, book: ConnectionBook, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._book = book
        self._limits = book.limits
        self._max_headers = book.limits.max_headers
        self._reading = IDLE
        self._refused_as = 400
        self._head_bytes = 0
        self._framing_room = 0
        self._num_trailers = 0
        self._discarded = 0
        self.address = ""
        self.deadline_s: float | None = None

    # -- called by ConnectionBook -------------------------------------------------------------

    def expire(self) -> None:
        """Handle a deadline: answer 408 to a client still sending its head, cut off any other."""
        if self._reading == HEAD and not self._is_answering:
            self._refuse(408)
        else:
            self.abort()

    def abort(self) -> None:
        """Close immediately."""
        self.transport.abort()

    def unsent_bytes(self) -> int:
        """Bytes not yet sent to the client."""
        return int(self.transport.get_write_buffer_size())

    def taken_bytes(self) -> int:
        """Bytes that the client has received."""
        return self._counted.num_written - self.unsent_bytes()

    @property
    def _is_answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    # -- the connection -----------------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._counted = _CountingTransport(transport)
        super().connection_made(self._counted)  # type: ignore[arg-type]
        self.address = address_group(self.client[0] if self.client else "local")
        if not self._book.enter(self):
            self._refuse(503)
            return
        self.deadline_s = self._head_deadline_s()

    def connection_lost(self, exc: Exception | None) -> None:
        self._book.leave(self)
        self.deadline_s = None
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._reading == ENDING:
            self._discarded += len(data)
            if self._discarded > LINGER_BYTES:
                self.abort()
            return
        if self._reading == IDLE:
            self._begin_head()
        if self._reading == HEAD:
            self._head_bytes += len(data)
        else:
            self._framing_room -= len(data)
        super().data_received(data)
        if self._reading == HEAD and self._head_bytes > self._limits.max_head_bytes:
            self._refuse(431)
        elif self._reading == BODY and self._framing_room < 0:
            self.abort()

    def _begin_head(self) -> None:
        self._reading = HEAD
        self._head_bytes = 0
        # a pipelined request is timed from the response to the previous one
        self.deadline_s = None if self._is_answering else self._head_deadline_s()

    def _head_deadline_s(self) -> float:
        return float(self.loop.time() + self._limits.head_timeout_s)

    # -- the parser's callbacks ---------------------------------------------------------------

    def on_message_begin(self) -> None:
        super().on_message_begin()
        if self._reading == IDLE:  # pipelined, in one read with the previous request
            self._begin_head()

    def on_url(self, url: bytes) -> None:
        if len(self.url) + len(url) > self._limits.max_url_bytes:
            self._refused_as = 414
            raise _Refused
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        # called most often of all, so it does what uvicorn's does itself
        headers = self.headers
        if self._reading == BODY or len(headers) >= self._max_headers:
            self._refuse_header()
            return
        name = name.lower()
        if name == b"expect" and value.lower() == b"100-continue":
            self.expect_100_continue = True
        headers.append((name, value))

    def _refuse_header(self) -> None:
        """Drop a trailer, of which none is needed; refuse one header or trailer too many."""
        if self._reading == BODY:
            self._num_trailers += 1
            if self._num_trailers <= self._max_headers:
                return
        else:
            self._refused_as = 431
        raise _Refused

    def on_headers_complete(self) -> None:
        if len(self.pipeline) >= self._limits.max_pipelined:
            raise _Refused
        self._reading = BODY
        self._framing_room = self._limits.max_head_bytes + self._head_bytes
        self._num_trailers = 0
        self.deadline_s = None
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._framing_room += FRAMING_PER_BYTE * len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self._reading = IDLE
        self.deadline_s = None
        if self._is_answering:
            self._book.works(self)
        else:
            self._await_next()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.transport.is_closing():
            return
        if self._is_answering:  # the next one, pipelined
            return
        if self._reading == BODY:
            self.deadline_s = self.loop.time() + UNREAD_S
        else:
            self._await_next()

    def _await_next(self) -> None:
        self._book.waits(self)
        if self._reading == HEAD:
            self.deadline_s = self._head_deadline_s()
        else:
            self.deadline_s = self.loop.time() + self._limits.idle_timeout_s

    # -- refusing -----------------------------------------------------------------------------

    def send_400_response(self, msg: str) -> None:
        """Called by uvicorn when the parser fails, including refusals raised here."""
        self._refuse(self._refused_as)

    def _unsupported_upgrade_warning(self) -> None:
        """Log nothing: no upgrade is offered, and what follows is not parsed."""
        if self.cycle is not None:
            self.cycle.keep_alive = False

    def _refuse(self, status: int) -> None:
        """Send the refusal and allow time to read it; cut off if a response has begun."""
        if self._reading == BODY or self._is_answering or self.transport.is_closing():
            self.abort()
            return
        self._reading = ENDING
        self.deadline_s = self.loop.time() + LINGER_S
        reason, message, code = REASONS[status]
        body = json.dumps(error_body(status, message, code, None)).encode()
        request_id = f"req_{secrets.token_hex(12)}".encode()
        head = (
            b"HTTP/1.1 %d %s\r\ncontent-type: application/json\r\ncontent-length: %d\r\n"
            b"connection: close\r\nx-request-id: %s\r\ncache-control: no-store\r\n"
            b"x-content-type-options: nosniff\r\ncross-origin-resource-policy: same-origin\r\n%s"
            b"\r\n"
        ) % (
            status,
            reason,
            len(body),
            request_id,
            b"retry-after: 1\r\n" if status == 503 else b"",
        )
        self.transport.write(head + body)
        if status == 503:
            self.transport.close()
        elif self.transport.can_write_eof():
            self.transport.write_eof()


def bounded_config(app: Any, limits: ConnectionLimits, **options: Any) -> uvicorn.Config:
    """A server configuration that bounds everything a connection holds.

    Raises the process's limit of open files, and accepts no more connections than it allows.
    """
    book = ConnectionBook(limits, connections_within(limits, raise_file_limit()))
    options.setdefault("log_level", "error")  # logging every bad request would fill disks
    return uvicorn.Config(
        app,
        http=partial(BoundedProtocol, book=book),  # type: ignore[arg-type]
        ws="none",
        backlog=BACKLOG,
        timeout_keep_alive=max(1, round(limits.idle_timeout_s)),
        server_header=False,
        proxy_headers=bool(limits.trusted_proxies),
        forwarded_allow_ips=list(limits.trusted_proxies),
        **options,
    )
