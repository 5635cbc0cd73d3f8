"""Temporary folders named after their owner, so that those of killed processes can be removed.

Owns the naming rule ``farm-<use>-<machine>-<pid>-<start>-<random>`` and the sweep.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from farm.keys import bytes_digest
from farm.locks import Owner, current_owner

__all__ = ["has_folders", "scratch_folder", "sweep_folders"]

USES = ("train", "adapter")


def scratch_folder(use: Literal["train", "adapter"]) -> tempfile.TemporaryDirectory[str]:
    """A temporary folder of this process, removed when it is closed."""
    owner = current_owner()
    name = f"farm-{use}-{_machine_of(owner)}-{owner.pid}-{owner.started or 0}-"
    return tempfile.TemporaryDirectory(prefix=name, ignore_cleanup_errors=True)


def sweep_folders() -> int:
    """Remove the folders of processes of this machine that are gone; returns how many."""
    swept = 0
    for path, owner in _folders():
        if owner.is_dead():
            shutil.rmtree(path, ignore_errors=True)
            swept += 1
    return swept


def has_folders() -> bool:
    """Whether processes of this machine, living or dead, have such folders."""
    return any(True for _ in _folders())


def _folders() -> Iterator[tuple[Path, Owner]]:
    me = current_owner()
    for path in Path(tempfile.gettempdir()).glob(f"farm-*-{_machine_of(me)}-*"):
        _, use, _, pid, *rest = path.name.split("-")
        if use in USES and len(rest) >= 2 and pid.isdigit():
            yield path, Owner(me.machine, int(pid), rest[0], "")


def _machine_of(owner: Owner) -> str:
    return bytes_digest(owner.machine.encode())[:8]
