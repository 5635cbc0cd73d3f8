"""Where the checkpoints of running jobs are in the store, and the deletion of those left behind.

Owns the store's ``checkpoints/``; ``publisher`` writes and reads it. Imports no torch, so that a
run's driver needs none.
"""

from __future__ import annotations

from collections.abc import Collection

from farm.storage import Store

__all__ = ["checkpoint_folder", "drop_left_checkpoints"]

ROOT = "checkpoints"


def checkpoint_folder(key: str) -> str:
    """The folder of a job's checkpoints, which are its subfolders by step."""
    return f"{ROOT}/{key}"


def drop_left_checkpoints(store: Store, committed: Collection[str]) -> int:
    """Delete checkpoints of jobs whose adapters are committed; returns of how many jobs.

    A lane that is killed between the commit and the deletion leaves them.

    Raises:
        StoreError, StoreUnusable: if the store does not answer; call it again later.
    """
    left = [key for key in store.list(ROOT) if key in committed]
    for key in left:
        store.delete(checkpoint_folder(key))
    return len(left)
