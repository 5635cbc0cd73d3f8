"""The remaining time of a run, from its own speed.

Owns the arithmetic: how much of the work is done, and how long the rest takes. The driver applies
it; its display and `farm status` show the driver's number. Reads no clock.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from farm.training.dispatch.job_state import FINAL, Status

if TYPE_CHECKING:
    from farm.training.dispatch.messages import Snapshot
    from farm.training.plan.estimate import Estimate

__all__ = ["Pace", "Work", "left_after"]

DROPPED = FINAL - {Status.COMMITTED}
"""Statuses of jobs that ended without their work."""
WINDOW = 0.4
"""Share of the work, the latest, from whose time the speed is measured: a part of seconds would
mislead, because lanes start one after another and samples follow the last step."""
PLAN_WEIGHT = 0.1
"""Share of the work that the plan's speed counts as at the start; nothing once a window is done."""
MOST_ASSUMED = 0.5
"""Share of what is left that may be assumed as done since the last progress."""


def left_after(left_s: float, age_s: float) -> float:
    """A remaining time once some more time has passed without news."""
    return max(left_s - max(age_s, 0.0), (1 - MOST_ASSUMED) * left_s)


class Pace:
    """Remaining time, from the speed of the run so far and, at its start, of the plan.

    Between two steps of progress the work is assumed to continue at that speed, up to a limit;
    beyond it the remaining time grows with the time that passes. It never reaches zero before the
    work is done. Work that is dropped or has to be done again changes what is left, not the speed.
    """

    def __init__(self, expected_s: float | None = None, first_share: float = MOST_ASSUMED) -> None:
        """Nothing is measured yet.

        Args:
            expected_s: the whole run by the plan; None if there is no plan.
            first_share: the share that is done when the first progress is seen.
        """
        self._expected_s, self._first_share = expected_s, first_share
        self._first = 0.0
        self._worked = self._last = 0.0
        self._seen: deque[tuple[float, float]] = deque()
        """(time, work done) of each progress in the window, and of the last before it."""
        self._pace = expected_s

    def note(self, now: float, share: float, dropped: float = 0.0) -> float | None:
        """Record the progress; return the remaining seconds, or None if not known.

        Args:
            share: what is done or no longer needed.
            dropped: the part of it that was dropped instead.
        """
        done = share - dropped
        if not self._seen:
            self._first = self._worked = self._last = done
        self._worked += max(0.0, done - self._last)
        self._last = done
        if not self._seen or self._worked > self._seen[-1][1]:
            self._seen.append((now, self._worked))
        last_at, last = self._seen[-1]
        assumed, end = last, last + 1.0 - share
        if self._pace:
            most = last + MOST_ASSUMED * (end - last)
            if last == self._first:
                most = max(last, self._first_share)
            assumed = min(most, last + (now - last_at) / self._pace)
        pace = self._measure(now, assumed)
        if pace is None or assumed >= end:
            return None
        if now == last_at:
            self._pace = pace
        return (end - assumed) * pace

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
        self._first: tuple[float, float, float, float] | None = None
        self._has_begun = False

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

    def done(self, snapshot: Snapshot) -> tuple[float, float]:
        """The share that is done or no longer needed, and the part of it that was dropped instead.

        0 until this start of the run has trained a step or dropped a job; below 0 if jobs that an
        earlier start had dropped are trained after all.
        """
        parts = self._expected
        if parts is None or not parts.total_s:
            return snapshot.done_share, snapshot.dropped_share
        num_jobs = max(snapshot.num_jobs, 1)
        ended, lost = (
            sum(snapshot.counts.get(status, 0) for status in statuses) / num_jobs
            for statuses in (FINAL, DROPPED)
        )
        now = snapshot.done_share, ended, snapshot.dropped_share, lost
        self._first = self._first or now
        first_trained, first_ended, *_ = self._first
        if first_trained >= 1 or first_ended >= 1:
            return 1.0, 0.0
        # the plan covers only what an earlier start has left
        rest = (1 - first_trained, 1 - first_ended) * 2
        trained, ended, untrained, lost = (
            (value - first) / most
            for value, first, most in zip(now, self._first, rest, strict=True)
        )
        steps_s, ends_s = parts.photos_s + parts.training_s, parts.pictures_s + parts.end_s
        dropped = (steps_s * untrained + ends_s * lost) / parts.total_s
        self._has_begun |= trained > untrained
        if not self._has_begun:
            return dropped, dropped
        done_s = parts.start_s + parts.class_images_s + steps_s * trained + ends_s * ended
        return done_s / parts.total_s, dropped
