"""The cache's bounded tiers: local disk and host memory.

Owns each tier's content and size, and the eviction order (least recently used, never entries in
use). The cache fetches and verifies adapters.
"""

from __future__ import annotations

import os
import re
import shutil
import stat
import threading
import time
import uuid
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Literal, TypeVar

from farm.errors import UserError

__all__ = ["KEY", "DiskTier", "MemoryTier", "Pinned", "Tier"]

Value = TypeVar("Value")

KEY = re.compile(r"[0-9a-f]{32}")
"""A job's key: the only valid name of an adapter's folder here."""
ASIDE = re.compile(r"\.[0-9a-f]{32}\.[0-9a-f]{32}")
"""Name of a folder being filled or removed."""
_HAS_PROC = os.path.isdir("/proc/self/fd")

ABANDONED_AFTER_S = 3600.0
"""Longer than any load takes; a partly written folder this old no longer has a writer."""

Tier = Literal["slot", "host", "disk", "store"]
"""Where an adapter was found, nearest first."""


@dataclass(eq=False)
class _Entry(Generic[Value]):
    value: Value
    num_bytes: int
    uses: int = 0


class Pinned(Generic[Value]):
    """A value in use, which stays in its tier until ``release``."""

    def __init__(self, value: Value, release: Callable[[], None] = lambda: None) -> None:
        self.value = value
        self._release: Callable[[], None] | None = release

    def release(self) -> None:
        """Release the value; a second call does nothing."""
        release, self._release = self._release, None
        if release is not None:
            release()


class MemoryTier(Generic[Value]):
    """Values in memory under a bound of bytes, with reference counts. Thread-safe.

    Values in use may exceed the bound; the excess is evicted on release.
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
        """Pin a value; None if it is not held."""
        with self._lock:
            entry = self._entries.get(key)
            if entry is None:
                return None
            self._entries.move_to_end(key)
            return self._pinned(entry)

    def add(self, key: str, value: Value, num_bytes: int) -> Pinned[Value]:
        """Add a value and pin it; replaces any value with the same key."""
        with self._lock:
            self._forget(key)
            entry = self._entries[key] = _Entry(value, num_bytes)
            self._num_bytes += num_bytes
            pinned = self._pinned(entry)
            self._evict()
            return pinned

    def drop(self, key: str) -> None:
        """Forget a value; its users keep the object."""
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

    Folders appear complete, by renaming, so several processes of one user may share the tier's
    folder; another process may remove an adapter at any time, which then counts as not held.

    The tier's folder is private to this user. It is kept open and all names are resolved relative
    to it, so that renaming a folder above it cannot substitute another. Only names of the tier's
    own form are ever read or removed.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        """Open a tier and adopt the adapters that an earlier process left in it.

        Raises:
            UserError: if the folder is a link, another user's, or open to others and in use.
        """
        self.folder = folder
        self.max_bytes = max_bytes
        self._lock = threading.Lock()
        self._sizes: OrderedDict[str, int] = OrderedDict()
        self._uses: dict[str, int] = {}
        self._fd = _open_private(folder)
        weakref.finalize(self, os.close, self._fd)
        self._sweep()
        found = [(self._facts(name), name) for name in os.listdir(self._fd) if KEY.fullmatch(name)]
        here = [(facts.st_mtime, name) for facts, name in found if facts is not None]
        for _, name in sorted(here):
            self._sizes[name] = self._folder_bytes(name)
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
        """The folder of an adapter, pinned inside the block; None if not held."""
        is_here = self._pin(key)
        try:
            yield self._path(key) if is_here else None
        finally:
            if is_here:
                self._unpin(key)

    @contextmanager
    def bring(self, key: str, write: Callable[[Path], None]) -> Iterator[Path]:
        """Add an adapter and pin it: ``write`` fills an empty folder, which then appears complete.
        It stays at least until the end of the block, however small the tier is."""
        assert KEY.fullmatch(key), key
        aside = _aside(key)
        os.mkdir(aside, 0o700, dir_fd=self._fd)
        try:
            write(self._path(aside))
            self._appear(key, aside)
        finally:
            shutil.rmtree(aside, ignore_errors=True, dir_fd=self._fd)
        try:
            yield self._path(key)
        finally:
            self._unpin(key)

    def _path(self, name: str) -> Path:
        """Path of a folder in the tier, through the open descriptor if the system supports it."""
        if _HAS_PROC:
            return Path(f"/proc/self/fd/{self._fd}/{name}")
        return self.folder / name

    def _facts(self, name: str) -> os.stat_result | None:
        """Status of a folder that this user created; None for anything else."""
        try:
            facts = os.stat(name, dir_fd=self._fd, follow_symlinks=False)
        except FileNotFoundError:
            return None
        return facts if stat.S_ISDIR(facts.st_mode) and facts.st_uid == os.geteuid() else None

    def _rename(self, name: str, target: str) -> None:
        os.rename(name, target, src_dir_fd=self._fd, dst_dir_fd=self._fd)

    def _appear(self, key: str, aside: str) -> None:
        with self._lock:
            try:
                self._rename(aside, key)
            except OSError:  # not empty: another process added the same content
                if self._facts(key) is None:
                    raise
            self._sizes[key] = self._folder_bytes(key)
            self._sizes.move_to_end(key)
            self._uses[key] = self._uses.get(key, 0) + 1
            self._evict()

    def _pin(self, key: str) -> bool:
        with self._lock:
            if not KEY.fullmatch(key) or self._facts(key) is None:
                self._sizes.pop(key, None)
                return False
            if key not in self._sizes:  # another process added it
                self._sizes[key] = self._folder_bytes(key)
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
        assert KEY.fullmatch(key), key
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
        doomed = _aside(key)
        try:
            self._rename(key, doomed)  # a partly removed folder is never visible
        except FileNotFoundError:
            return
        shutil.rmtree(doomed, ignore_errors=True, dir_fd=self._fd)

    def _sweep(self) -> None:
        """Remove folders that a process left partly written when it died."""
        for name in os.listdir(self._fd):
            facts = self._facts(name) if ASIDE.fullmatch(name) else None
            if facts is not None and time.time() - facts.st_mtime > ABANDONED_AFTER_S:
                shutil.rmtree(name, ignore_errors=True, dir_fd=self._fd)

    def _folder_bytes(self, name: str) -> int:
        num_bytes = 0
        try:
            for _, _, files, folder_fd in os.fwalk(name, dir_fd=self._fd):
                for file in files:
                    num_bytes += os.stat(file, dir_fd=folder_fd, follow_symlinks=False).st_size
        except FileNotFoundError:  # another process removed it
            return 0
        return num_bytes


def _aside(key: str) -> str:
    return f".{key}.{uuid.uuid4().hex}"


def _open_private(folder: Path) -> int:
    """A descriptor of a folder that is private to this user, created if missing.

    Raises:
        UserError: if it is not such a folder.
    """
    remedy = "name a folder of your own in cache_folder, or remove this one"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with suppress(FileExistsError):
        folder.mkdir(0o700)
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise UserError(
            f"the cache folder {folder} is a link, or is not a readable folder", remedy
        ) from error
    try:
        facts = os.fstat(descriptor)
        if facts.st_uid != os.geteuid():
            raise UserError(f"the cache folder {folder} belongs to another user", remedy)
        if stat.S_IMODE(facts.st_mode) & 0o077:
            names = os.listdir(descriptor)
            if not all(KEY.fullmatch(name) or ASIDE.fullmatch(name) for name in names):
                raise UserError(
                    f"the cache folder {folder} is open to other users and holds other files",
                    remedy,
                )
            os.fchmod(descriptor, 0o700)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor
