"""The addresses that a manifest, which may be untrusted, is allowed to name.

Owns the protocols for reading photos, archives and tables, and the hosts that web addresses may
reach. fsspec supports many more protocols, some of which run code, chain others, or read what the
user has no access to. Hosts are checked at the address of each connection, after name resolution
and every redirect, so that neither a DNS name nor an unusual spelling of an address bypasses the
check.
"""

from __future__ import annotations

import io
import os
import re
import socket
from collections.abc import Mapping
from functools import cache
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Any

import fsspec

from farm.errors import PhotoFault
from farm.intake.photos.budget import MAX_PHOTO_BYTES

__all__ = [
    "ALLOWED_PROTOCOLS",
    "ALLOW_PRIVATE_HOSTS",
    "PATTERN_REMEDY",
    "allows_private_hosts",
    "check_reference",
    "filesystem_of",
    "is_public",
    "private_host_fault",
    "worker_environment",
]

PATTERN_REMEDY = (
    "correct the pattern: case counts, and in place of braces `{jpg,png}` write a list of patterns"
)
"""For a pattern without a match. fsspec's own patterns have no braces either."""
ALLOWED_PROTOCOLS = (
    *("file", "http", "https", "s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "memory"),
)
"""Protocols of photos and tables; also allowed is an archive's member: `zip://member::archive`."""
MAX_CHARACTERS = 8_192
"""Maximum length of a reference; paths end at 4,096 bytes, signed addresses are longer."""
_ZIP = "zip://"


def check_reference(reference: str, *, is_remote: bool = False) -> None:
    """Refuse any other protocol, and chains of protocols.

    Paths without a protocol are relative to a folder or URL that the operator chose.

    Args:
        is_remote: whether a path without a protocol starts from a URL, in which `::` would chain.

    Raises:
        PhotoFault: names the protocol, and the allowed ones.
    """
    if len(reference) > MAX_CHARACTERS:
        raise _refusal(reference, f"it is longer than {MAX_CHARACTERS} characters")
    inner = reference
    if reference.startswith(_ZIP):
        member, mark, inner = reference.removeprefix(_ZIP).rpartition("::")
        if not mark or "://" in member or "::" in member:
            raise _refusal(reference, "it is not a member of an archive")
    elif "::" in reference and (is_remote or "://" in reference):
        raise _refusal(
            reference,
            "it chains protocols, through which a photo larger than "
            f"{MAX_PHOTO_BYTES // 2**20} MiB could not be refused in time",
        )
    if "\0" in reference:
        raise _refusal(reference, "it holds a NUL character")
    if "://" not in inner:
        return
    protocol = inner.partition("://")[0]
    if protocol not in ALLOWED_PROTOCOLS:
        raise _refusal(reference, f"the protocol `{protocol[:20]}` is not read")


def _refusal(reference: str, why: str) -> PhotoFault:
    protocols = ", ".join(f"{name}://" for name in ("s3", "gs", "az", "https", "file"))
    shown = reference[:200].encode("unicode_escape").decode()
    return PhotoFault(
        f"{shown} is not an address of photos: {why}",
        f"give a path, an address that begins with one of {protocols}, or "
        "`zip://member::archive` with one of these",
    )


# -- hosts ----------------------------------------------------------------------------------------

ALLOW_PRIVATE_HOSTS = "FARM_ALLOW_PRIVATE_HOSTS"
"""Environment variable behind ``--allow-private-hosts``; worker processes inherit it."""
TOTAL_S = 120.0
"""Time limit of one request, so that a server that sends a byte a minute cannot block a thread."""
CONNECT_S = 10.0
READ_S = 30.0
"""Time limit between two pieces of a response."""
_INNER_IPV4 = tuple(map(ip_network, ("192.0.0.0/24", "192.88.99.0/24", "168.63.129.16/32")))
"""Networks of protocols and clouds that Python considers global: metadata services answer there."""
_PUBLIC_IPV6 = ip_network("2000::/3")
"""All of IPv6 that is assigned to hosts of the internet."""


class PrivateHost(Exception):
    """A connection to an address that is not public. Not an ``OSError``, which would be retried."""


def allows_private_hosts(environment: Mapping[str, str] | None = None) -> bool:
    """Whether the operator allows manifests to name hosts of the private network."""
    value = (os.environ if environment is None else environment).get(ALLOW_PRIVATE_HOSTS, "")
    return value.strip().lower() in {"1", "true", "yes", "on"}


def worker_environment() -> dict[str, str]:
    """The environment that a worker on another machine needs to read the same addresses."""
    return {ALLOW_PRIVATE_HOSTS: "1"} if allows_private_hosts() else {}


def is_public(address: str) -> bool:
    """Whether an IP address is on the public internet, in any embedded form."""
    found: IPv4Address | IPv6Address = ip_address(address.partition("%")[0])
    if isinstance(found, IPv6Address):
        inner = found.ipv4_mapped or found.sixtofour or _translated(found)
        if inner is not None:
            return is_public(str(inner))
        if found.teredo is not None or found not in _PUBLIC_IPV6:
            return False
    elif any(found in network for network in _INNER_IPV4):
        return False
    return found.is_global and not found.is_multicast


def _translated(address: IPv6Address) -> IPv4Address | None:
    """The IPv4 address inside an address of NAT64 (RFC 6052), or an IPv4-compatible one."""
    prefix, low = int(address) >> 32, int(address) & 0xFFFF_FFFF
    if prefix == 0x0064_FF9B << 64 or (prefix == 0 and low > 1):
        return IPv4Address(low)
    return None


def _public_socket(info: tuple[Any, ...]) -> socket.socket:
    """A socket for a connection; aiohttp calls this with the address it is about to connect to."""
    family, kind, protocol, _, address = info
    if not is_public(address[0]):
        raise PrivateHost(address[0])
    return socket.socket(family, kind, protocol)


async def _public_client(**options: Any) -> Any:
    return _client(_public_socket, options)


async def _any_client(**options: Any) -> Any:
    return _client(None, options)


def _client(socket_factory: Any, options: dict[str, Any]) -> Any:
    import aiohttp

    # without happy eyeballs the addresses are tried one after the other, and the first refusal ends
    connector = aiohttp.TCPConnector(socket_factory=socket_factory, happy_eyeballs_delay=None)
    return aiohttp.ClientSession(
        connector=connector,
        timeout=aiohttp.ClientTimeout(total=TOTAL_S, sock_connect=CONNECT_S, sock_read=READ_S),
        # compressed answers would be inflated before their size can be bounded
        headers={"Accept-Encoding": "identity"},
        auto_decompress=False,
        response_class=_bounded_response(),
        **options,
    )


@cache
def _bounded_response() -> Any:
    """The class of responses that hold no more than was requested, whatever a server sends: fsspec
    reads the answer to a range whole."""
    import aiohttp

    class BoundedResponse(aiohttp.ClientResponse):
        async def read(self) -> bytes:
            if self._body is None:
                limit = _requested_bytes(self.request_info.headers.get("Range", ""))
                body = io.BytesIO()
                async for part in self.content.iter_any():
                    body.write(part)
                    if body.tell() > limit:
                        self.close()
                        raise PhotoFault(
                            "its server sends more than was requested",
                            "copy it here, or use another server",
                        )
                self._body = body.getvalue()
            return await super().read()

    return BoundedResponse


def _requested_bytes(header: str) -> int:
    """The size of the range that a header requests; the limit of a photo without one."""
    match = re.fullmatch(r"bytes=(\d{1,18})-(\d{1,18})", header)
    return int(match[2]) - int(match[1]) + 1 if match else MAX_PHOTO_BYTES


def filesystem_of(url: str) -> tuple[Any, str]:
    """The filesystem of an address that a manifest names, and the path in it."""
    if not url.startswith(("http://", "https://")):
        filesystem, path = fsspec.core.url_to_fs(url)
        return filesystem, str(path)
    client = _any_client if allows_private_hosts() else _public_client
    return fsspec.filesystem("http", get_client=client), url


def private_host_fault(error: BaseException) -> PhotoFault | None:
    """The fault of a refused connection, if that caused the error."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, PrivateHost):
            return PhotoFault(
                f"its host is at {seen}, which is not a public address",
                "copy the photos here, or allow private hosts with `--allow-private-hosts`",
            )
        seen = seen.__cause__ or seen.__context__
    return None
