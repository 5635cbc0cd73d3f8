"""The remaining time of a run, from its own speed.

Owns the arithmetic: how much of the work is done, and how long the rest takes. Reads no clock.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from farm.training.dispatch.messages import Snapshot
    from farm.training.plan.estimate import Estimate

__all__ = ["Pace", "Work"]

FINAL = ("committed", "quarantined", "rejected", "cancelled")
"""Statuses of jobs that need no more time."""
WINDOW = 0.4
"""Share of the work, the latest, from whose time the speed is measured: a part of seconds would
mislead, because lanes start one after another and samples follow the last step."""
PLAN_WEIGHT = 0.1
"""Share of the work that the plan's speed counts as at the start; nothing once a window is done."""
MOST_ASSUMED = 0.5
"""Share of what is left that may be assumed as done since the last progress."""


class Pace:
    """Remaining time, from the speed of the run so far and, at its start, of the plan.

    Between two steps of progress the work is assumed to continue at that speed, up to a limit;
    beyond it the remaining time grows with the time that passes. It never reaches zero before the
    work is done.
    """

    def __init__(self, expected_s: float | None = None, first_share: float = MOST_ASSUMED) -> None:
        """Nothing is measured yet.

        Args:
            expected_s: the whole run by the plan; None if there is no plan.
            first_share: the share that is done when the first progress is seen.
        """
        self._expected_s, self._first_share = expected_s, first_share
        self._first = 0.0
        self._seen: deque[tuple[float, float]] = deque()
        """(time, share) of each progress in the window, and of the last before it."""
        self._pace = expected_s

    def note(self, now: float, share: float) -> float | None:
        """Record the share that is done; return the remaining seconds, or None if not known."""
        if not self._seen:
            self._first = share
        if not self._seen or share > self._seen[-1][1]:
            self._seen.append((now, share))
        last_at, last = self._seen[-1]
        assumed = last
        if self._pace:
            most = last + MOST_ASSUMED * (1.0 - last)
            if last == self._first:
                most = max(last, self._first_share)
            assumed = min(most, last + (now - last_at) / self._pace)
        pace = self._measure(now, assumed)
        if pace is None or assumed >= 1.0:
            return None
        if now == last_at:
            self._pace = pace
        return (1.0 - assumed) * pace

    def _measure(self, now: float, share: float) -> float | None:
        """Seconds of the whole work at the current speed; None while nothing is measured."""
        began, first = self._window_start(share - WINDOW)
        done, took = share - first, now - began
        if self._expected_s is not None:
            weight = PLAN_WEIGHT * max(0.0, 1.0 - (share - self._first) / WINDOW)
            done, took = done + weight, took + weight * self._expected_s
        return took / done if done > 0 and took > 0 else None

    def _window_start(self, share: float) -> tuple[float, float]:
        """When a share was done, interpolated between two steps of progress."""
        while len(self._seen) > 1 and self._seen[1][1] <= share:
            self._seen.popleft()
        began, first = self._seen[0]
        if share <= first or len(self._seen) == 1:
            return began, first
        later, more = self._seen[1]
        return began + (later - began) * (share - first) / (more - first), share


class Work:
    """How much of a run is done, measured in the seconds that the plan gives each part.

    Trained steps alone are done long before the run: samples, scores and files follow them.
    """

    def __init__(self, expected: Estimate | None) -> None:
        self._expected = expected
        self._first: tuple[float, float] | None = None

    @property
    def expected_s(self) -> float | None:
        """The whole run by the plan."""
        return self._expected.total_s if self._expected is not None else None

    @property
    def first_share(self) -> float:
        """The share that is done by the plan when the first step is trained."""
        parts = self._expected
        if parts is None or not parts.total_s:
            return MOST_ASSUMED
        return (parts.start_s + parts.class_images_s) / parts.total_s

    def pace(self) -> Pace:
        """A pace for this work."""
        return Pace(self.expected_s, self.first_share)

    def share(self, snapshot: Snapshot) -> float:
        """0 to 1; 0 until this start of the run has trained a step."""
        parts = self._expected
        if parts is None or not parts.total_s:
            return snapshot.done_share
        ended = sum(snapshot.counts.get(status, 0) for status in FINAL)
        now = snapshot.done_share, ended / max(snapshot.num_jobs, 1)
        self._first = self._first or now
        # the plan covers only what an earlier start has left
        trained, ended_share = (
            (value - first) / (1 - first) if first < 1 else 1.0
            for value, first in zip(now, self._first, strict=True)
        )
        if not trained:
            return 0.0
        done_s = parts.start_s + parts.class_images_s
        done_s += (parts.photos_s + parts.training_s) * trained
        done_s += (parts.pictures_s + parts.end_s) * ended_share
        return done_s / parts.total_s
