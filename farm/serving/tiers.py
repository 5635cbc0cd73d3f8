"""Bounded places where adapters wait: the local disk and the host's memory.

Owns what each tier holds, how much of it, and what leaves first (least recently used, and never
what is in use). Where adapters come from and whether they are good is the cache's business.
"""

from __future__ import annotations

import shutil
import threading
import time
import uuid
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Literal, TypeVar

__all__ = ["CacheLimits", "CacheStats", "DiskTier", "MemoryTier", "Pinned", "Tier"]

Value = TypeVar("Value")

ABANDONED_AFTER_S = 3600.0
"""No adapter takes so long to arrive; a half-written folder that old has no writer any more."""

Tier = Literal["slot", "host", "disk", "store"]
"""Where an adapter was found, nearest first."""


@dataclass(frozen=True, slots=True)
class CacheLimits:
    """How much each tier may hold."""

    disk_bytes: int = 20 << 30
    host_bytes: int = 4 << 30
    max_file_bytes: int = 1 << 30
    """A weights file larger than this is no adapter."""
    num_loaders: int = 8
    """Adapters that may load at once; enough to hide a bucket's latency."""
    bad_for_s: float = 300.0
    """How long a bad adapter is remembered; its files may be mended meanwhile."""


@dataclass(slots=True)
class CacheStats:
    """Counts since the start."""

    host_hits: int = 0
    disk_hits: int = 0
    store_loads: int = 0
    joined_loads: int = 0
    """Requests that waited for a load which another one had begun."""
    refused: int = 0
    failed: int = 0
    load_s: float = 0.0
    """Seconds that loads took, summed."""
    host_bytes: int = 0
    disk_bytes: int = 0


@dataclass(eq=False)
class _Entry(Generic[Value]):
    value: Value
    num_bytes: int
    uses: int = 0


class Pinned(Generic[Value]):
    """A value in use: it does not leave its tier until ``release``."""

    def __init__(self, value: Value, release: Callable[[], None] = lambda: None) -> None:
        self.value = value
        self._release: Callable[[], None] | None = release

    def release(self) -> None:
        """Give the value back; a second call does nothing."""
        release, self._release = self._release, None
        if release is not None:
            release()


class MemoryTier(Generic[Value]):
    """Values in memory under a bound of bytes, with reference counts. Thread-safe.

    What is in use may exceed the bound; the excess leaves as soon as it is released.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self._entries: OrderedDict[str, _Entry[Value]] = OrderedDict()
        self._lock = threading.Lock()
        self._num_bytes = 0

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, key: str) -> bool:
        return key in self._entries

    @property
    def num_bytes(self) -> int:
        """Held now."""
        return self._num_bytes

    def pin(self, key: str) -> Pinned[Value] | None:
        """Take a value into use; None if it is not here."""
        with self._lock:
            entry = self._entries.get(key)
            if entry is None:
                return None
            self._entries.move_to_end(key)
            return self._pinned(entry)

    def add(self, key: str, value: Value, num_bytes: int) -> Pinned[Value]:
        """Hold a value and take it into use; it replaces one under the same key."""
        with self._lock:
            self._forget(key)
            entry = self._entries[key] = _Entry(value, num_bytes)
            self._num_bytes += num_bytes
            pinned = self._pinned(entry)
            self._evict()
            return pinned

    def drop(self, key: str) -> None:
        """Forget a value; whoever uses it keeps the object."""
        with self._lock:
            self._forget(key)

    def _pinned(self, entry: _Entry[Value]) -> Pinned[Value]:
        entry.uses += 1

        def release() -> None:
            with self._lock:
                entry.uses -= 1
                self._evict()

        return Pinned(entry.value, release)

    def _forget(self, key: str) -> None:
        entry = self._entries.pop(key, None)
        if entry is not None:
            self._num_bytes -= entry.num_bytes

    def _evict(self) -> None:
        if self._num_bytes <= self.max_bytes:
            return
        for key, entry in list(self._entries.items()):
            if not entry.uses:
                self._forget(key)
            if self._num_bytes <= self.max_bytes:
                return


class DiskTier:
    """Folders of adapters on the local disk under a bound of bytes. Thread-safe.

    Folders appear whole, by renaming, so several processes may share one place; another process
    may remove a folder at any time, and then it is simply not here.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        """Open a tier and adopt what an earlier process left in it."""
        self.folder = folder
        self.max_bytes = max_bytes
        self._lock = threading.Lock()
        self._sizes: OrderedDict[str, int] = OrderedDict()
        self._uses: dict[str, int] = {}
        folder.mkdir(parents=True, exist_ok=True)
        _sweep(folder)
        found = [path for path in folder.iterdir() if path.is_dir() and path.name[0] != "."]
        for path in sorted(found, key=lambda path: path.stat().st_mtime):
            self._sizes[path.name] = _folder_bytes(path)
        with self._lock:
            self._evict()

    def __len__(self) -> int:
        return len(self._sizes)

    @property
    def num_bytes(self) -> int:
        """Held now."""
        return sum(self._sizes.values())

    @contextmanager
    def use(self, key: str) -> Iterator[Path | None]:
        """The folder of an adapter, kept from eviction inside the block; None if not here."""
        is_here = self._pin(key)
        try:
            yield self.folder / key if is_here else None
        finally:
            if is_here:
                self._unpin(key)

    @contextmanager
    def bring(self, key: str, write: Callable[[Path], None]) -> Iterator[Path]:
        """Bring an adapter in and use it: ``write`` fills an empty folder, which then appears
        whole. It stays at least until the end of the block, however small the tier is."""
        aside = self.folder / f".{key}.{uuid.uuid4().hex}"
        aside.mkdir()
        try:
            write(aside)
            self._appear(key, aside)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
        try:
            yield self.folder / key
        finally:
            self._unpin(key)

    def _appear(self, key: str, aside: Path) -> None:
        with self._lock:
            try:
                aside.rename(self.folder / key)
            except OSError:  # not empty: another process brought the same content
                if not (self.folder / key).is_dir():
                    raise
            self._sizes[key] = _folder_bytes(self.folder / key)
            self._sizes.move_to_end(key)
            self._uses[key] = self._uses.get(key, 0) + 1
            self._evict()

    def _pin(self, key: str) -> bool:
        path = self.folder / key
        with self._lock:
            if not path.is_dir():
                self._sizes.pop(key, None)
                return False
            if key not in self._sizes:  # another process brought it
                self._sizes[key] = _folder_bytes(path)
            self._sizes.move_to_end(key)
            self._uses[key] = self._uses.get(key, 0) + 1
            return True

    def _unpin(self, key: str) -> None:
        with self._lock:
            self._uses[key] -= 1
            if not self._uses[key]:
                del self._uses[key]
            self._evict()

    def drop(self, key: str) -> None:
        """Remove an adapter's folder; readers that have it open keep reading."""
        with self._lock:
            self._remove(key)

    def _evict(self) -> None:
        excess = sum(self._sizes.values()) - self.max_bytes
        for key in list(self._sizes):
            if excess <= 0:
                return
            if key not in self._uses:
                excess -= self._sizes[key]
                self._remove(key)

    def _remove(self, key: str) -> None:
        self._sizes.pop(key, None)
        doomed = self.folder / f".{key}.{uuid.uuid4().hex}"
        try:
            (self.folder / key).rename(doomed)  # nobody finds half a folder
        except FileNotFoundError:
            return
        shutil.rmtree(doomed, ignore_errors=True)


def _sweep(folder: Path) -> None:
    """Remove what a process left half-written when it died."""
    for path in folder.glob(".*"):
        with suppress(FileNotFoundError):
            if time.time() - path.stat().st_mtime > ABANDONED_AFTER_S:
                shutil.rmtree(path, ignore_errors=True)


def _folder_bytes(folder: Path) -> int:
    try:
        return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    except FileNotFoundError:  # another process removed it meanwhile
        return 0
