"""A small process that releases the lock of a driver that died without releasing it.

A killed driver (``kill -9``, ``ray job stop`` after its timeout, SIGTERM to a process group that
includes Ray) cannot release its lock, and another machine would have to wait until the lock
expires. The guard runs in its own session, holds the reading end of a pipe from the driver, and
acts when the pipe closes: it releases the lock if the driver still owns it, and removes the
driver's temporary folders. It imports the farm only then: after nearly every run there is nothing
to do, as it learns from a byte in the pipe.

Owns the guard's process. It dies with the machine; the lock then expires.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from farm.errors import FarmError
from farm.locks import Owner, StoreLock, release_dead
from farm.storage import Store
from farm.training.lane.scratch import has_folders, sweep_folders

__all__ = ["LockGuard"]

EXIT_S = 10.0
"""How long a process may take to exit after closing its files."""


class LockGuard:
    """Starts the guard of a lock; ``close`` ends it."""

    def __init__(self, store: Store, lock: StoreLock) -> None:
        """Start the guard. If it cannot be started, the run continues without one."""
        self._pipe: int | None = None
        order = {"store": store.url, "folder": lock.folder, "owner": asdict(lock.owner)}
        reading, writing = os.pipe()
        try:
            # a grandchild in its own session: stopping a Ray job kills the driver's descendants
            starter = subprocess.Popen(
                [sys.executable, "-c", _START, json.dumps(order), _PLACE],
                stdin=reading,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
            starter.wait(timeout=30)
            self._pipe = writing
        except (OSError, subprocess.SubprocessError):
            os.close(writing)
        finally:
            os.close(reading)

    def close(self, *, is_released: bool) -> None:
        """Let the guard do what is left to do, and end.

        Args:
            is_released: whether the lock is released; if not, the guard releases it.
        """
        if self._pipe is None:
            return
        if is_released and not has_folders():
            with suppress(OSError):  # it has ended
                os.write(self._pipe, b".")
        os.close(self._pipe)
        self._pipe = None


_PLACE = str(Path(__file__).absolute().parents[3])
"""The folder or archive from which the farm is imported."""
_START = """
import os, sys
if os.fork():
    os._exit(0)
os.chdir("/")
try:
    nothing_is_left = os.read(0, 1)
except OSError:
    nothing_is_left = False
if not nothing_is_left:
    if sys.path[:1] == [""]:
        del sys.path[0]
    if sys.argv[2] not in sys.path:
        sys.path.insert(0, sys.argv[2])
    from farm.training.run.lock_guard import clean_up
    clean_up(sys.argv[1])
"""


def clean_up(order: str) -> None:
    """Once the driver is gone or has closed the pipe: release its lock and remove its folders."""
    facts = json.loads(order)
    owner = Owner(**facts["owner"])
    with suppress(FarmError, OSError):
        release_dead(Store(facts["store"]), facts["folder"], owner.token)
    until = time.monotonic() + EXIT_S
    while not owner.is_dead() and time.monotonic() < until:
        time.sleep(0.1)  # its files are closed, but it may not have exited yet
    sweep_folders()
