"""Keeps Python's garbage collector from stopping the endpoint.

Owns which objects the collector looks at. A full collection looks at every object while it holds
the interpreter lock: with the modules and the base of an endpoint that takes a second or more, in
which no request is answered. They all live as long as the process, so they are left out.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from farm.model_imports.lean import keeps_imports

__all__ = ["CollectorPauses"]

LONG_PAUSE_S = 0.05


class CollectorPauses:
    """Leaves the objects of a started endpoint out of collections, and later ones too once they
    take long. They are still freed when their reference counts reach zero."""

    def __init__(self) -> None:
        self._started_s = 0.0
        self._was_long = False

    @contextmanager
    def shortened(self) -> Iterator[None]:
        """Keep pauses short inside the block, and in a process that runs nothing but the farm until
        it ends: Python's last collection would take a second or more, too."""
        gc.freeze()
        gc.callbacks.append(self._observe)
        try:
            yield
        finally:
            gc.callbacks.remove(self._observe)
            if not keeps_imports():
                gc.unfreeze()

    def settle(self) -> None:
        """If a collection took long, leave what it kept out of the next ones."""
        if self._was_long:
            self._was_long = False
            gc.freeze()

    def _observe(self, phase: str, _: Mapping[str, int]) -> None:
        if phase == "start":
            self._started_s = time.perf_counter()
        elif time.perf_counter() - self._started_s > LONG_PAUSE_S:
            self._was_long = True
