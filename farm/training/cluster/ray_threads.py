"""This process's threads that call Ray.

A call of Ray after ``ray.shutdown`` ends the process with exit code 1 and no message. So does one
that the shutdown interrupts. Does not import Ray.
"""

from __future__ import annotations

import threading

__all__ = ["names_of_ray_threads"]

PREFIXES = ("lanes-", "priors", "cluster-watch", "StreamingExecutor")
"""Lane runs, prior sets, the watch on the nodes, and Ray Data's own thread."""


def names_of_ray_threads() -> list[str]:
    """The names of those that have not ended."""
    names = (thread.name for thread in threading.enumerate())
    return [name for name in names if name.startswith(PREFIXES)]
