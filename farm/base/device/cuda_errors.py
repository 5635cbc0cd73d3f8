"""CUDA errors: out of memory, and errors after which the process must be replaced."""

from __future__ import annotations

from typing import TypeVar

from farm.errors import FarmError

__all__ = ["caused_by", "device_is_lost", "without_frames"]

_PASSING = ("out of memory", "ALLOC_FAILED", "NOT_INITIALIZED")
"""Memory errors; the device stays usable."""


_Error = TypeVar("_Error", bound=BaseException)


def without_frames(error: _Error) -> _Error:
    """The same exception without its traceback, whose frames keep the failed call's tensors."""
    error.__traceback__ = None
    return error


def caused_by(error: BaseException, reported: FarmError) -> FarmError:
    """The error to report to the user, with the original as its cause."""
    reported.__cause__ = without_frames(error)
    return reported


def device_is_lost(error: BaseException | None) -> bool:
    """Whether every further call to the device will fail, and only a new process helps.

    An illegal access, a failed assertion or a hardware fault ends a CUDA context for good.
    """
    while error is not None:
        text = str(error)
        if "CUDA error" in text and not any(word in text for word in _PASSING):
            return True
        error = error.__cause__
    return False
