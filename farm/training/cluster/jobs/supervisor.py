"""Restarts a driver that died, with exponential backoff: the entrypoint of ``farm submit --retry``.

Owns the decision which exit codes are final. Ray does not restart a job's driver; this process does
only that.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

__all__ = ["FINAL_CODES", "supervise"]

FINAL_CODES = frozenset({0, 2, 3, 4, 5, 7, 130})
"""Exit codes of ``farm run`` that are final: done, refused, or stopped. Any other code counts as a
death."""
FIRST_PAUSE_S = 2.0
LONGEST_PAUSE_S = 60.0
LONG_LIFE_S = 600.0
"""If a driver ran this long before it died, its retries are counted from zero."""


def supervise(
    command: Sequence[str],
    *,
    retries: int,
    report: Callable[[str], None],
    first_pause_s: float = FIRST_PAUSE_S,
) -> int:
    """Run a command until its exit is final; returns its exit code.

    SIGTERM and SIGINT are forwarded to the command, and end the supervision.
    """
    child: subprocess.Popen[bytes] | None = None
    stopped_by: list[int] = []

    def pass_on(number: int, frame: object) -> None:
        stopped_by.append(number)
        if child is not None and child.poll() is None:
            child.send_signal(number)

    before = {one: signal.signal(one, pass_on) for one in (signal.SIGTERM, signal.SIGINT)}
    deaths = 0
    try:
        while True:
            began = time.monotonic()
            child = subprocess.Popen(list(command))
            code = child.wait()
            if code in FINAL_CODES or stopped_by:
                return code if code >= 0 else 128 - code
            deaths = 1 if time.monotonic() - began > LONG_LIFE_S else deaths + 1
            died = f"signal {-code}" if code < 0 else f"exit code {code}"
            if deaths > retries:
                report(f"the driver died ({died}) and is not started again after {retries} retries")
                return code if code >= 0 else 128 - code
            pause_s = min(LONGEST_PAUSE_S, first_pause_s * 2 ** (deaths - 1))
            report(
                f"the driver died ({died}); it is started again in {pause_s:.0f} s "
                f"({deaths} of {retries})"
            )
            _pause(pause_s, stopped_by)
            if stopped_by:
                return 130
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)


def _pause(seconds: float, stopped_by: Sequence[int]) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until and not stopped_by:
        time.sleep(0.1)


def driver_command(arguments: Sequence[str]) -> list[str]:
    """``farm`` with arguments, under this Python interpreter."""
    return [sys.executable, "-m", "farm", *arguments]
