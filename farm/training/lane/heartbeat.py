"""The thread that exchanges reports and orders with the dispatcher while the lane trains.

Owns the timing: at once after an event, otherwise once per beat. ``job_table`` makes the reports.
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
"""Events within this time share one report."""


class Heartbeat:
    """Exchanges reports and orders until ``end``."""

    def __init__(self, table: JobTable, link: Link, *, beat_s: float) -> None:
        self._table, self._link, self._beat_s = table, link, beat_s
        self._process = psutil.Process()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)
        self.lost: BaseException | None = None
        """Why the dispatcher cannot be reached; the lane must end."""

    def start(self) -> None:
        """Start the thread; it sends the first report at once."""
        self._thread.start()

    def end(self) -> None:
        """Stop the thread and send the last report."""
        self._ended.set()
        self._table.notify()
        self._thread.join()
        if self.lost is None:
            with suppress(FarmError):
                self._exchange(leaving=True)

    def _run(self) -> None:
        while not self._ended.is_set():
            try:
                self._exchange()
            except BaseException as error:  # the training thread reads it and ends the lane
                self.lost = error
                self._table.notify()
                return
            with self._table.changed:
                if not self._table.has_results:
                    self._table.changed.wait(timeout=self._beat_s)
            time.sleep(GATHER_S)

    def _exchange(self, *, leaving: bool = False) -> None:
        self._table.rss_bytes = self._process.memory_info().rss
        report = self._table.report(leaving=leaving)
        self._table.apply(report, self._link.exchange(report))
