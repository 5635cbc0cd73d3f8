"""Loading many small objects without the garbage collector looking at all of them repeatedly."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["gc_paused", "leave_to_counts"]

MANY_JOBS = 20_000
"""From this many on, a collection of cyclic garbage would delay the lanes' exchanges noticeably."""


@contextmanager
def gc_paused() -> Iterator[None]:
    """No cyclic garbage collection inside; a collection over a million live objects takes a second
    and frees none of them."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def leave_to_counts(num_jobs: int) -> None:
    """Exclude all objects that are alive now from cyclic garbage collection, if there are many
    jobs; they are still freed when their reference counts reach zero."""
    if num_jobs < MANY_JOBS:
        return
    if gc.isenabled():
        gc.collect(1)
    gc.freeze()
