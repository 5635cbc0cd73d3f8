"""The lane runs of a driver: each is watched and restarted independently, with backoff.

Owns the decision when a lane run is started, restarted or abandoned. A lane run is one Ray Train
run on one node; the function that starts one is an argument. Does not import Ray.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from farm.errors import LaneLost
from farm.training.dispatch.messages import Snapshot

__all__ = ["LaneRuns", "Run"]

MAX_BARREN_STARTS = 3
"""Consecutive failed starts of a lane run that are allowed while no job of the run is finished."""
FIRST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 60.0
READY_S = 1.0
"""How long jobs must have been ready before a run whose lanes have returned is started again."""


class Run(Protocol):
    """A started Ray Train run of lanes."""

    name: str
    error: BaseException | None

    @property
    def is_alive(self) -> bool:
        """Whether it is still running."""
        ...

    def join(self, timeout_s: float) -> None:
        """Wait for its end."""
        ...


@dataclass
class _Place:
    """The lanes of one node; a restart may move them to another node."""

    number: int
    run: Run
    jobs_ended: int
    """Finished jobs of the whole run when this lane run was started."""
    is_noted: bool = False
    """Whether its end was handled."""
    barren: int = 0
    not_before: float = 0.0


class LaneRuns:
    """Starts one lane run per place, and keeps them alive while there is work."""

    def __init__(
        self,
        make: Callable[[str], Run],
        *,
        prefix: str,
        num_places: int,
        ended: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Start them all.

        Args:
            make: starts a lane run under a unique name.
            ended: called with the name of each run that has ended, with all its lanes.
        """
        self._make, self._prefix, self._ended, self._clock = make, prefix, ended, clock
        self._num_starts = 0
        self._ready_since: float | None = None
        self._places = [_Place(number, self._start(number), 0) for number in range(num_places)]

    def _start(self, number: int) -> Run:
        self._num_starts += 1
        return self._make(f"{self._prefix}-{self._num_starts}-{number}")

    @property
    def alive(self) -> list[Run]:
        """Runs that have not ended."""
        return [place.run for place in self._places if place.run.is_alive]

    def names_without_lanes(self, snapshot: Snapshot) -> list[str]:
        """Live runs of which no lane has reported: their node is missing."""
        lanes = {lane.lane.rpartition(".")[0] for lane in snapshot.lanes}
        return [run.name for run in self.alive if run.name not in lanes]

    def keep(self, snapshot: Snapshot) -> None:
        """Handle runs that ended, and restart those for which there is work.

        Raises:
            LaneLost: if every run fails repeatedly while no job is finished.
        """
        tally = snapshot.counts
        jobs_ended = sum(tally[name] for name in ("committed", "quarantined", "rejected"))
        num_ready = tally["queued"] - snapshot.waiting_for_priors
        num_open = snapshot.num_jobs - jobs_ended - tally["cancelled"] - snapshot.waiting_for_priors
        now = self._clock()
        if num_ready <= 0:
            self._ready_since = None
        elif self._ready_since is None:
            self._ready_since = now
        is_ready = self._ready_since is not None and now - self._ready_since >= READY_S
        for place in self._places:
            if place.run.is_alive:
                continue
            if not place.is_noted:
                self._note(place, jobs_ended, now)
            has_work = is_ready if place.run.error is None else num_open > 0
            if has_work and now >= place.not_before and place.barren < MAX_BARREN_STARTS:
                place.run, place.jobs_ended = self._start(place.number), jobs_ended
                place.is_noted = False
        self._give_up_if_hopeless(num_open)

    def _note(self, place: _Place, jobs_ended: int, now: float) -> None:
        place.is_noted = True
        self._ended(place.run.name)
        if place.run.error is None:
            place.barren, place.not_before = 0, 0.0
            return
        place.barren = 1 if jobs_ended > place.jobs_ended else place.barren + 1
        pause_s = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2 ** (place.barren - 1))
        place.not_before = now + pause_s

    def _give_up_if_hopeless(self, num_open: int) -> None:
        """Raise only if no run is alive or may be restarted: one can train the jobs of all."""
        if num_open <= 0 or any(place.run.is_alive for place in self._places):
            return
        errors = [place.run.error for place in self._places if place.barren >= MAX_BARREN_STARTS]
        if len(errors) == len(self._places):
            raise LaneLost(
                f"the lanes ended {MAX_BARREN_STARTS} times without finishing a job: {errors[-1]}",
                "see `farm logs`; nothing is lost, and the same command resumes",
            )
