"""Stops the generation of images between two denoising steps.

Owns how a stop reaches the loop of ``farm.base.generate`` through code that does not know of it,
such as a judge. The caller states the condition for the block in which it generates.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

__all__ = ["GenerationStopped", "raise_if_stopped", "stoppable"]


class GenerationStopped(Exception):
    """The images are not needed any more; none of them is returned."""


_is_stopped: ContextVar[Callable[[], bool] | None] = ContextVar("is_stopped", default=None)


@contextmanager
def stoppable(is_stopped: Callable[[], bool]) -> Iterator[None]:
    """Ask before each denoising step that this thread makes in the block."""
    token = _is_stopped.set(is_stopped)
    try:
        yield
    finally:
        _is_stopped.reset(token)


def raise_if_stopped() -> None:
    """Called before each step.

    Raises:
        GenerationStopped: if the condition of the innermost ``stoppable`` block holds.
    """
    is_stopped = _is_stopped.get()
    if is_stopped is not None and is_stopped():
        raise GenerationStopped("the generation of images was stopped")
