"""Images behind signed links: storage and access.

Owns the links of ``response_format: url``. A link names an image by 128 random bits and the minute
of its expiry, and carries a signature over both, so it is verified before the store is read and
cannot be altered. Images are kept in a store, so any process of the endpoint can serve them;
folders are named by the minute of expiry, so cleaning up takes one listing.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import time
from collections.abc import Callable
from urllib.parse import urlencode

from farm.storage import Store

__all__ = ["ImageLinks"]

LIFETIME_S = 600.0
_FILE = re.compile(r"[0-9a-f]{32}\.(png|jpeg|webp)")
FOLDER = "served"


class ImageLinks:
    """Finished images behind links that expire."""

    def __init__(
        self,
        store: Store,
        secret: bytes,
        *,
        lifetime_s: float = LIFETIME_S,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Args:
        secret: signs the links; the same in every process that serves them.
        """
        self._store = store
        self._secret = secret
        self._lifetime_s = lifetime_s
        self._clock = clock

    def put(self, data: bytes, output_format: str) -> str:
        """Store an image; returns its link, a path with a query."""
        expires = int(self._clock() + self._lifetime_s)
        file = f"{secrets.token_hex(16)}.{output_format}"
        self._store.write(_path(file, expires), data)
        query = urlencode({"expires": expires, "signature": self._sign(file, expires)})
        return f"/v1/pictures/{file}?{query}"

    def get(self, file: str, expires: str, signature: str) -> bytes | None:
        """The image behind a link; None if the link is forged, malformed or expired."""
        if not _FILE.fullmatch(file) or not re.fullmatch(r"[0-9]{1,12}", expires):
            return None
        expected = self._sign(file, int(expires)).encode()
        good = hmac.compare_digest(expected, signature.encode("utf-8", "surrogatepass"))
        if not good or self._clock() > int(expires):
            return None
        try:
            return self._store.read(_path(file, int(expires)))
        except FileNotFoundError:
            return None

    def sweep(self) -> int:
        """Remove expired images; returns the number of folders removed."""
        now_minute = int(self._clock()) // 60
        old = [
            minute
            for minute in self._store.list(FOLDER)
            if minute.isdigit() and int(minute) < now_minute
        ]
        for minute in old:
            self._store.delete(f"{FOLDER}/{minute}")
        return len(old)

    def _sign(self, file: str, expires: int) -> str:
        message = f"{file}|{expires}".encode()
        return hmac.new(self._secret, message, hashlib.sha256).hexdigest()


def _path(file: str, expires: int) -> str:
    return f"{FOLDER}/{expires // 60}/{file}"
