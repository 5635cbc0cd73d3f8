"""Temporary folders named after their owner, so that those of killed processes can be removed.

Owns the naming rule ``farm-<use>-<machine>-<pid>-<start>-<random>`` and the sweep.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from farm.keys import bytes_digest
from farm.locks import Owner, current_owner

__all__ = ["scratch_folder", "sweep_folders"]

PREFIX = "farm-train"


def scratch_folder() -> tempfile.TemporaryDirectory[str]:
    """A temporary folder of this process, removed when it is closed."""
    owner = current_owner()
    name = f"{PREFIX}-{_machine_of(owner)}-{owner.pid}-{owner.started or 0}-"
    return tempfile.TemporaryDirectory(prefix=name, ignore_cleanup_errors=True)


def sweep_folders() -> int:
    """Remove the folders of processes of this machine that are gone; returns how many."""
    me = current_owner()
    swept = 0
    for path in Path(tempfile.gettempdir()).glob(f"{PREFIX}-{_machine_of(me)}-*"):
        parts = path.name.removeprefix(f"{PREFIX}-").split("-")
        if len(parts) < 4 or not parts[1].isdigit():
            continue
        if Owner(me.machine, int(parts[1]), parts[2], "").is_dead():
            shutil.rmtree(path, ignore_errors=True)
            swept += 1
    return swept


def _machine_of(owner: Owner) -> str:
    return bytes_digest(owner.machine.encode())[:8]
