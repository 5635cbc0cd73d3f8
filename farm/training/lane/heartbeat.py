"""The thread that speaks with the dispatcher while the lane trains.

Owns the rhythm of the words: at once when something happened, else every beat. What is said is the
book's (``held``).
"""

from __future__ import annotations

import threading
import time
from contextlib import suppress

import psutil

from farm.errors import FarmError
from farm.training.lane.job_table import JobTable
from farm.training.lane.settings import Link

__all__ = ["Heartbeat"]

GATHER_S = 0.02
"""What happens within this time is told with one word."""


class Heartbeat:
    """Exchanges reports for orders until it is ended."""

    def __init__(self, held: JobTable, link: Link, *, beat_s: float) -> None:
        self._held, self._link, self._beat_s = held, link, beat_s
        self._process = psutil.Process()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="messenger", daemon=True)
        self.lost: BaseException | None = None
        """Why the dispatcher cannot be reached; the lane must end."""

    def start(self) -> None:
        """Say hello and go on talking."""
        self._thread.start()

    def end(self) -> None:
        """Say what is left to say, and goodbye."""
        self._ended.set()
        with self._held.changed:
            self._held.changed.notify_all()
        self._thread.join()
        if self.lost is None:
            with suppress(FarmError):
                self._exchange(leaving=True)

    def _run(self) -> None:
        while not self._ended.is_set():
            try:
                self._exchange()
            except BaseException as error:  # kept for the training thread, which ends the lane
                self.lost = error
                with self._held.changed:
                    self._held.changed.notify_all()
                return
            with self._held.changed:
                if not self._held.has_results:
                    self._held.changed.wait(timeout=self._beat_s)
            time.sleep(GATHER_S)

    def _exchange(self, *, leaving: bool = False) -> None:
        self._held.rss_bytes = self._process.memory_info().rss
        report = self._held.report(leaving=leaving)
        self._held.obey(report, self._link.exchange(report))
