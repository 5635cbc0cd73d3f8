"""Claims: which process may do a thing that only one may do, with nothing but a store between them.

Owns numbered claim files. A claim is taken by creating ``<folder>/<number>.json`` exclusively, the
number one above the highest; it ends when it is released, when it expires unrenewed, or when its
owner is seen to be dead on this very machine. The number is a fencing token: whoever holds a lower
one than the highest is a process of the past, whatever it believes.

Used for the driver of a run (so that there is one writer of its ledger) and for the drawing of a
prior set (so that two runs never draw the same one).
"""

from __future__ import annotations

import json
import os
import time
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path

from farm.storage import Store

__all__ = ["StoreLock", "Owner", "current_owner", "holder", "release_dead"]

Clock = Callable[[], float]


@dataclass(frozen=True, slots=True)
class Owner:
    """A process, told apart from every other one there ever was."""

    machine: str
    """Boot and process-number space; empty where the system does not tell."""
    pid: int
    started: str
    """The process's start in clock ticks since boot, so that a reused pid is not mistaken."""
    token: str
    """Random: two owners in one process differ."""

    def is_dead(self) -> bool:
        """Whether the process is known to be gone; False where that cannot be known."""
        if not self.machine or self.machine != _machine():
            return False
        return _start_ticks(self.pid) != self.started


def current_owner() -> Owner:
    """This process as an owner, with a fresh token."""
    pid = os.getpid()
    return Owner(_machine(), pid, _start_ticks(pid), uuid.uuid4().hex)


@cache
def _machine() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}-{os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:
        return ""


def _start_ticks(pid: int) -> str:
    try:  # the 22nd field; the second one is the name in brackets and may hold spaces
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[-1].split()
        # a zombie runs no more, whether its parent has noticed or not
        return "" if fields[0] in "ZX" else fields[19]
    except (OSError, IndexError):
        return ""


@dataclass(frozen=True, slots=True)
class _Body:
    owner: Owner
    expires: float
    released: bool = False

    def is_held(self, now: float) -> bool:
        return not self.released and now < self.expires and not self.owner.is_dead()

    def encode(self) -> bytes:
        return json.dumps(asdict(self), sort_keys=True).encode()

    @classmethod
    def decode(cls, data: bytes) -> _Body:
        body = json.loads(data)
        return cls(Owner(**body["owner"]), float(body["expires"]), bool(body["released"]))


class StoreLock:
    """A claim that this process holds. Renew it before it expires; release it at the end."""

    def __init__(
        self, store: Store, folder: str, number: int, body: _Body, ttl_s: float, clock: Clock
    ) -> None:
        self._store, self.folder = store, folder
        self._body, self._ttl_s, self._clock = body, ttl_s, clock
        self.number = number
        """The fencing token, 1 for the first claim ever taken in this folder."""

    @classmethod
    def take(
        cls,
        store: Store,
        folder: str,
        *,
        ttl_s: float,
        owner: Owner | None = None,
        clock: Clock = time.time,
        force: bool = False,
    ) -> StoreLock | None:
        """Take the claim, or return None while another process holds it.

        Args:
            ttl_s: seconds without renewal after which others may take it.
            force: take it from a holder that seems alive; the holder finds out when it renews.
        """
        body = _Body(owner or current_owner(), clock() + ttl_s)
        number = _highest(store, folder)
        if number and not force and _read(store, folder, number).is_held(clock()):
            return None
        number += 1
        if not store.create(_path(folder, number), body.encode()):
            return None  # another process was faster by a moment
        return cls(store, folder, number, body, ttl_s, clock)

    @property
    def owner(self) -> Owner:
        """The process that holds it."""
        return self._body.owner

    def renew(self) -> bool:
        """Push the expiry out; False if another process took the claim meanwhile."""
        if _highest(self._store, self.folder) != self.number:
            return False
        self._body = replace(self._body, expires=self._clock() + self._ttl_s)
        self._store.write(_path(self.folder, self.number), self._body.encode())
        return True

    def release(self) -> None:
        """Let the next one have it at once."""
        self._body = replace(self._body, released=True)
        self._store.write(_path(self.folder, self.number), self._body.encode())


def holder(store: Store, folder: str, now: float | None = None) -> Owner | None:
    """Who holds the claim of a folder at this moment; None if nobody does."""
    number = _highest(store, folder)
    if not number:
        return None
    body = _read(store, folder, number)
    return body.owner if body.is_held(time.time() if now is None else now) else None


def release_dead(store: Store, folder: str, token: str) -> bool:
    """Release the claim of an owner that is gone; says whether there was anything to release."""
    number = _highest(store, folder)
    if not number:
        return False
    body = _read(store, folder, number)
    if body.released or body.owner.token != token:
        return False
    store.write(_path(folder, number), replace(body, released=True).encode())
    return True


def _highest(store: Store, folder: str) -> int:
    numbers = [name.removesuffix(".json") for name in store.list(folder)]
    return max((int(number) for number in numbers if number.isdigit()), default=0)


def _read(store: Store, folder: str, number: int) -> _Body:
    return _Body.decode(store.read(_path(folder, number)))


def _path(folder: str, number: int) -> str:
    return f"{folder}/{number:06d}.json"
