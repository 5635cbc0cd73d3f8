"""The sockets of the endpoint, bound before anything is loaded.

A taken port is then reported within milliseconds, and no other program can take it meanwhile.
"""

from __future__ import annotations

import errno
import socket
from typing import Any

from farm.errors import UserError

__all__ = ["bind_sockets"]

PRIVILEGED_PORTS = 1024


def bind_sockets(host: str, port: int) -> list[socket.socket]:
    """Bind one socket for each address of a host. They do not listen yet.

    Raises:
        UserError: if the port is taken or reserved, or the host is not one of this machine.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise UserError(
            f"--host {host!r} is not an address or a name that this machine knows",
            "use 127.0.0.1 for this machine alone, or 0.0.0.0 for all its networks",
        ) from error
    bound: list[socket.socket] = []
    try:
        for family, kind, protocol, _, address in found:
            if bound and port == 0:
                break  # one free port, not one per address
            bound.append(_bound(family, kind, protocol, address))
    except OSError as error:
        for one in bound:
            one.close()
        raise _explained(host, port, error) from error
    return bound


def _bound(family: int, kind: int, protocol: int, address: Any) -> socket.socket:
    made = socket.socket(family, kind, protocol)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        made.bind(address)
    except OSError:
        made.close()
        raise
    return made


def _explained(host: str, port: int, error: OSError) -> UserError:
    if error.errno == errno.EADDRINUSE:
        return UserError(
            f"port {port} on {host} is already in use",
            f"stop the program that uses it, or choose another port, such as --port {port + 1}; "
            "--port 0 takes any free one",
        )
    if error.errno == errno.EACCES and port < PRIVILEGED_PORTS:
        return UserError(
            f"port {port} is reserved for the system", "choose a port from 1024 on, such as 8000"
        )
    if error.errno == errno.EADDRNOTAVAIL:
        return UserError(
            f"--host {host} is not an address of this machine",
            "use 127.0.0.1 for this machine alone, or 0.0.0.0 for all its networks",
        )
    return UserError(f"cannot listen on {host}, port {port}: {error}", "change --host or --port")
