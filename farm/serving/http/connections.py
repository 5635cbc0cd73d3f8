"""Connection limits: how many connections are held, for how long, and which one is evicted.

Owns the limits of connections and request heads, the count by address, the deadlines, and the
process's limit of open files. Knows nothing of HTTP: ``http_server.py`` reports what a connection
is doing and decides how an expired one is closed.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import os
from collections import OrderedDict
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

from pydantic import BaseModel, ConfigDict, Field

__all__ = [
    "BACKLOG",
    "Connection",
    "ConnectionBook",
    "ConnectionLimits",
    "address_group",
    "connections_within",
    "raise_file_limit",
]

logger = logging.getLogger(__name__)

SWEEP_EVERY_S = 0.5
BACKLOG = 128
"""Length of the kernel's accept queue: a burst opens no more files than this at once."""
MIN_CONNECTIONS = 16
PROGRESS_BYTES = 64 * 1024
"""What a slow reader must receive within the write timeout."""


class ConnectionLimits(BaseModel):
    """Limits on connections and request heads."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_connections: int = Field(1024, ge=MIN_CONNECTIONS)
    """Total; fewer if the process may not open that many files."""
    connections_per_address: int = Field(256, ge=1)
    """From one IPv4 address or IPv6 /64 network, loopback included. Behind a reverse proxy all
    connections come from the proxy: raise it to ``max_connections``."""
    reserved_files: int = Field(256, ge=32)
    """Open files kept for the store, the cache and the engine."""
    head_timeout_s: float = Field(10.0, gt=0)
    """From the first byte of a request (or the opening of a connection) to the end of its head."""
    idle_timeout_s: float = Field(75.0, gt=0)
    """How long a connection may wait for its next request; longer than load balancers wait, so that
    none reuses a connection that is being closed."""
    write_timeout_s: float = Field(30.0, gt=0)
    """Within this time a client must receive 64 KiB of a response, or the rest of it."""
    max_head_bytes: int = Field(32 * 1024, ge=1024)
    """Request line and headers together; also the limit of a body's trailers."""
    max_headers: int = Field(100, ge=8)
    max_url_bytes: int = Field(8 * 1024, ge=256)
    max_pipelined: int = Field(8, ge=1)
    """Requests pipelined on one connection before the first is answered."""
    trusted_proxies: tuple[str, ...] = ()
    """Addresses whose ``X-Forwarded-For`` and ``X-Forwarded-Proto`` are trusted."""


class Connection(Protocol):
    """What the connection book requires of a connection."""

    address: str
    """Address group that the connection counts against."""
    deadline_s: float | None
    """When ``expire`` is called, in the loop's time; None for never."""

    def expire(self) -> None:
        """End the connection: its deadline has passed."""

    def abort(self) -> None:
        """Close immediately, without sending anything more."""

    def unsent_bytes(self) -> int:
        """Response bytes not yet sent to the client."""

    def taken_bytes(self) -> int:
        """Bytes that the client has received since the connection opened."""


@dataclass(slots=True)
class _Stall:
    """A client with unsent bytes."""

    taken: int
    """Bytes received when the client last made progress."""
    sweeps: int = 0
    """Sweeps since then. Sweeps are counted instead of seconds because a blocked event loop cannot
    send either."""


class ConnectionBook:
    """All connections of a server.

    A new connection beyond a limit evicts one without a complete request: first one that never sent
    a request, then one that is idle between requests, the longest waiting first. The new connection
    is refused only if all others are being answered.
    """

    def __init__(self, limits: ConnectionLimits, max_connections: int | None = None) -> None:
        """Args:
        max_connections: the number that the open-file limit allows; None applies ``limits``.
        """
        self.limits = limits
        most = limits.max_connections if max_connections is None else max_connections
        self.max_connections = min(limits.max_connections, most)
        self.num_refused = 0
        self._all: dict[Connection, None] = {}
        self._by_address: dict[str, int] = {}
        self._waiting: tuple[OrderedDict[Connection, None], OrderedDict[Connection, None]] = (
            OrderedDict(),  # never sent a complete request
            OrderedDict(),  # between two requests
        )
        self._stalls: dict[Connection, _Stall] = {}
        self._is_sweeping = False

    def __len__(self) -> int:
        return len(self._all)

    def enter(self, connection: Connection) -> bool:
        """Count a new connection; False if there is no room for it."""
        address = connection.address
        if self._by_address.get(address, 0) >= self.limits.connections_per_address:
            admitted = self._evict(address)
        elif len(self._all) >= self.max_connections:
            admitted = self._evict(None)
        else:
            admitted = True
        if not admitted:
            self.num_refused += 1
            return False
        self._all[connection] = None
        self._by_address[address] = self._by_address.get(address, 0) + 1
        self._waiting[0][connection] = None
        if not self._is_sweeping:
            self._is_sweeping = True
            asyncio.get_running_loop().call_later(SWEEP_EVERY_S, self._sweep)
        return True

    def leave(self, connection: Connection) -> None:
        """Stop counting a connection; a second call does nothing."""
        if connection not in self._all:
            return
        del self._all[connection]
        self.works(connection)
        self._stalls.pop(connection, None)
        left = self._by_address[connection.address] - 1
        if left:
            self._by_address[connection.address] = left
        else:
            del self._by_address[connection.address]

    def works(self, connection: Connection) -> None:
        """Mark a connection with a complete request, which is not evicted."""
        for waiting in self._waiting:
            waiting.pop(connection, None)

    def waits(self, connection: Connection) -> None:
        """Mark a connection that was answered and waits for its next request."""
        if connection in self._all:
            self._waiting[0].pop(connection, None)
            self._waiting[1][connection] = None

    def _evict(self, address: str | None) -> bool:
        for waiting in self._waiting:
            for connection in waiting:
                if address is None or connection.address == address:
                    self.leave(connection)
                    connection.abort()
                    return True
        return False

    def _sweep(self) -> None:
        loop = asyncio.get_running_loop()
        now_s = loop.time()
        for connection in list(self._all):
            if connection.deadline_s is not None and now_s >= connection.deadline_s:
                connection.expire()
            elif self._is_stalled(connection):
                connection.abort()
        self._is_sweeping = bool(self._all)
        if self._is_sweeping:
            loop.call_later(SWEEP_EVERY_S, self._sweep)

    def _is_stalled(self, connection: Connection) -> bool:
        if not connection.unsent_bytes():
            self._stalls.pop(connection, None)
            return False
        taken = connection.taken_bytes()
        stall = self._stalls.get(connection)
        if stall is None or taken - stall.taken >= PROGRESS_BYTES:
            self._stalls[connection] = _Stall(taken)
            return False
        stall.sweeps += 1
        return stall.sweeps * SWEEP_EVERY_S >= self.limits.write_timeout_s


@lru_cache(maxsize=4096)
def address_group(address: str) -> str:
    """The unit that limits apply to: an IPv4 address, or an IPv6 /64 network."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(parsed, ipaddress.IPv6Address):
        if parsed.ipv4_mapped is not None:
            return str(parsed.ipv4_mapped)
        if not parsed.is_loopback:
            return str(ipaddress.ip_network((parsed, 64), strict=False))
    return str(parsed)


def raise_file_limit() -> int | None:
    """Raise this process's limit of open files as far as allowed.

    Returns:
        The limit, or None if unknown.
    """
    try:
        import resource
    except ImportError:  # not on Windows
        return None
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 65_536 if hard == resource.RLIM_INFINITY else min(hard, 65_536)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            soft = wanted
        except (OSError, ValueError) as error:
            logger.warning("the limit of open files stays at %d: %s", soft, error)
    return wanted if soft == resource.RLIM_INFINITY else soft


def connections_within(limits: ConnectionLimits, file_limit: int | None) -> int:
    """The most connections that leave room for the reserved files and those already open."""
    if file_limit is None:
        return limits.max_connections
    room = file_limit - limits.reserved_files - BACKLOG - _num_open_files()
    return max(MIN_CONNECTIONS, min(limits.max_connections, room))


def _num_open_files() -> int:
    for folder in ("/proc/self/fd", "/dev/fd"):
        try:
            return len(os.listdir(folder))
        except OSError:
            continue
    return 64
