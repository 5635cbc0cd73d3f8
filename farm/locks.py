"""Locks between processes that share only a store.

Owns numbered lock files. A process takes a lock by exclusively creating ``<folder>/<number>.json``
with the next number. The lock ends when it is released, when it expires without renewal, or when
its owner is found dead on this machine. The number is a fencing token: a process whose number is
not the highest has lost the lock, even if it has not noticed.

Used for the driver of a run (one writer of its ledger) and for the generation of a prior set (two
runs never generate the same one).
"""

from __future__ import annotations

import json
import os
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path

from farm.errors import StoreError
from farm.storage import Store

__all__ = ["StoreLock", "Owner", "current_owner", "held", "holder", "release_dead"]

Clock = Callable[[], float]


@dataclass(frozen=True, slots=True)
class Owner:
    """A process, distinct from every other process, past or present."""

    machine: str
    """Boot id and PID namespace; empty where the system does not provide them."""
    pid: int
    started: str
    """Start of the process in clock ticks since boot, which detects a reused PID."""
    token: str
    """Random, so that two owners in one process differ."""

    def is_dead(self) -> bool:
        """Whether the process is known to be gone; False if that cannot be determined."""
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
    try:  # field 22; field 2 is the name in parentheses and may contain spaces
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[-1].split()
        # a zombie no longer runs, even if its parent has not collected it
        return "" if fields[0] in "ZX" else fields[19]
    except (OSError, IndexError):
        return ""


@dataclass(frozen=True, slots=True)
class _Body:
    owner: Owner
    expires: float
    released: bool = False
    news: Mapping[str, float] = field(default_factory=dict)

    def is_held(self, now: float) -> bool:
        return not self.released and now < self.expires and not self.owner.is_dead()

    def encode(self) -> bytes:
        return json.dumps(asdict(self), sort_keys=True).encode()

    @classmethod
    def decode(cls, data: bytes) -> _Body:
        body = json.loads(data)
        owner, news = Owner(**body["owner"]), dict(body.get("news") or {})
        return cls(owner, float(body["expires"]), bool(body["released"]), news)


class StoreLock:
    """A lock held by this process. Renew it before it expires; release it at the end."""

    def __init__(
        self, store: Store, folder: str, number: int, body: _Body, ttl_s: float, clock: Clock
    ) -> None:
        self._store, self.folder = store, folder
        self._body, self._ttl_s, self._clock = body, ttl_s, clock
        self.number = number
        """The fencing token, 1 for the first lock ever taken in this folder."""

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
        """Take the lock, or return None while another process holds it.

        Args:
            ttl_s: seconds without renewal after which others may take it.
            force: take it from a holder that seems alive, which notices when it renews.
        """
        body = _Body(owner or current_owner(), clock() + ttl_s)
        number = _highest(store, folder)
        if number and not force and _read(store, folder, number).is_held(clock()):
            return None
        number += 1
        if not store.create(_path(folder, number), body.encode()):
            return None  # another process was faster
        return cls(store, folder, number, body, ttl_s, clock)

    @property
    def owner(self) -> Owner:
        """The process that holds it."""
        return self._body.owner

    def renew(self, news: Mapping[str, float] | None = None) -> bool:
        """Extend the lock; False if another process has taken it.

        Args:
            news: numbers about the holder's work, for those who ask who holds the lock.
        """
        if _highest(self._store, self.folder) != self.number:
            return False
        self._body = replace(
            self._body, expires=self._clock() + self._ttl_s, news=news or self._body.news
        )
        self._store.write(_path(self.folder, self.number), self._body.encode())
        return True

    def release(self) -> None:
        """End the lock, so that another process can take it immediately."""
        self._body = replace(self._body, released=True)
        self._store.write(_path(self.folder, self.number), self._body.encode())


def holder(store: Store, folder: str, now: float | None = None) -> Owner | None:
    """The owner that currently holds the lock of a folder; None if it is free."""
    found = held(store, folder, now)
    return found[0] if found is not None else None


def held(
    store: Store, folder: str, now: float | None = None
) -> tuple[Owner, Mapping[str, float]] | None:
    """The same, with the numbers about its work that the owner last renewed the lock with."""
    number = _highest(store, folder)
    if not number:
        return None
    body = _read(store, folder, number)
    is_held = body.is_held(time.time() if now is None else now)
    return (body.owner, body.news) if is_held else None


def release_dead(store: Store, folder: str, token: str) -> bool:
    """Release the lock of an owner that is gone; returns whether it was held."""
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
    path = _path(folder, number)
    try:
        return _Body.decode(store.read(path))
    except (ValueError, TypeError, KeyError) as error:
        raise StoreError(f"{store.url}/{path} is not a lock: {error!r}", "try again") from error


def _path(folder: str, number: int) -> str:
    return f"{folder}/{number:06d}.json"
