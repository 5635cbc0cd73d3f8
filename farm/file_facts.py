"""Facts about files, kept on this machine until the files change.

Owns the user's cache folder and one table in it: what a computation found in a file, by the file's
address and version. The cache only saves time. One that is damaged, locked or read-only is not
used, and nothing is reported.

A file's version is its size, the times of its last changes and its inode, or the tag that an object
store gives it. A file that changed within the last seconds has no version yet: another change might
not be visible in its times.
"""

from __future__ import annotations

import json
import os
import sqlite3
import time
import zlib
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

__all__ = ["FactsTable", "cache_folder", "local_version", "object_version"]

SETTLED_S = 2.0
"""File systems store times with a granularity of up to two seconds."""
MAX_ROWS = 2_000_000
"""Files remembered, about 200 bytes each; beyond that the oldest quarter is dropped."""
ROWS_A_QUERY = 500
BUSY_S = 2.0
"""How long to wait for another process that writes the table."""
TAGS = ("ETag", "etag", "md5Hash", "generation", "content_md5")


def cache_folder() -> Path:
    """Where the farm caches what can be computed again: ``$FARM_CACHE``, else the platform's user
    cache."""
    root = os.environ.get("FARM_CACHE") or os.path.join(
        os.environ.get("XDG_CACHE_HOME", "~/.cache"), "dreambooth-farm"
    )
    return Path(root).expanduser()


def local_version(path: str) -> str | None:
    """The version of a local file; None if there is no such file or it changed just now."""
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return None
    if time.time() - max(found.st_mtime, found.st_ctime) < SETTLED_S:
        return None
    times = f"{found.st_mtime_ns}:{found.st_ctime_ns}"
    return f"{found.st_size}:{times}:{found.st_dev}:{found.st_ino}"


def object_version(info: Mapping[str, Any]) -> str | None:
    """The version of an object from what its store says of it; None if it gives no tag."""
    tags = [f"{name}={info[name]}" for name in TAGS if info.get(name)]
    return ":".join([str(info.get("size")), *tags]) if tags else None


class FactsTable:
    """Facts of one kind by address and version."""

    def __init__(self, name: str, version: str) -> None:
        """``version`` is that of the computation: facts of another one are not used."""
        self._path = cache_folder() / f"{name}.sqlite"
        self._version = zlib.crc32(version.encode()) & 0x7FFF_FFFF

    def known(self, addresses: Iterable[str]) -> dict[str, tuple[str, Any]]:
        """Version and facts of the files that are in the table."""
        found: dict[str, tuple[str, Any]] = {}
        asked = [address for address in addresses if _is_text(address)]

        def read(table: sqlite3.Connection) -> None:
            for start in range(0, len(asked), ROWS_A_QUERY):
                part = asked[start : start + ROWS_A_QUERY]
                marks = ",".join("?" * len(part))
                query = f"SELECT address, version, facts FROM facts WHERE address IN ({marks})"
                for address, version, facts in table.execute(query, part):
                    found[address] = (version, json.loads(facts))

        self._use(read)
        return found

    def add(self, rows: Iterable[tuple[str, str, Any]]) -> None:
        """Remember (address, version, facts) of files."""
        encoded = [
            (address, version, json.dumps(facts))
            for address, version, facts in rows
            if _is_text(address)
        ]

        def write(table: sqlite3.Connection) -> None:
            table.executemany("INSERT OR REPLACE INTO facts VALUES (?, ?, ?)", encoded)
            (number,) = table.execute("SELECT count(*) FROM facts").fetchone()
            if number > MAX_ROWS:
                oldest = "SELECT rowid FROM facts ORDER BY rowid LIMIT ?"
                table.execute(f"DELETE FROM facts WHERE rowid IN ({oldest})", (number // 4,))

        if encoded:
            self._use(write)

    def _use(self, use: Callable[[sqlite3.Connection], None]) -> None:
        """Read or change the table, if it can be opened."""
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with closing(sqlite3.connect(self._path, timeout=BUSY_S)) as table, table:
                self._prepare(table)
                use(table)
        except sqlite3.OperationalError:
            return  # locked, read-only, or no space
        except sqlite3.DatabaseError:  # torn, or something else: begin again
            with suppress(OSError):
                self._path.unlink(missing_ok=True)
        except (OSError, ValueError):
            return

    def _prepare(self, table: sqlite3.Connection) -> None:
        table.execute("PRAGMA synchronous = OFF")  # a torn table only makes the next check slower
        (written,) = table.execute("PRAGMA user_version").fetchone()
        if written != self._version:
            table.execute("DROP TABLE IF EXISTS facts")
            table.execute(f"PRAGMA user_version = {self._version}")
        table.execute(
            "CREATE TABLE IF NOT EXISTS facts (address TEXT PRIMARY KEY, version TEXT, facts TEXT)"
        )


def _is_text(address: str) -> bool:
    """Whether a name can be stored; names of files may contain bytes that are not text."""
    try:
        address.encode()
    except UnicodeEncodeError:
        return False
    return True
