"""Jobs by status and by lane, and the live view's sums, updated with every change of a job.

Owns the indexes. Every change of a job is passed to ``move`` once, so that the cost of a heartbeat
does not depend on the number of jobs. The sums always equal a count over all jobs; a test compares
the two.
"""

from __future__ import annotations

from collections.abc import Mapping

from farm.training.dispatch.job_state import FINAL, HELD, WITHOUT_ADAPTER, Job, Status
from farm.training.dispatch.run_jobs import RunJobs

__all__ = ["JobIndex"]


class JobIndex:
    """The indexes of one run's jobs."""

    def __init__(self, run: RunJobs, jobs: Mapping[str, Job]) -> None:
        """Count all jobs of the run once."""
        columns = run.columns
        self._number = run.number
        self._prior_of, self._recipe_of = columns.prior_of, columns.recipe_of
        self._steps = [recipe.steps for recipe in columns.recipes]
        self._priors = {key: number for number, key in enumerate(columns.priors)}
        self._open_by_prior = [0] * len(columns.priors)
        self._counts = dict.fromkeys(Status, 0)
        self._held: dict[str, dict[str, None]] = {}
        self._failed: dict[str, None] = {}
        self._steps_total = self._steps_done = self._steps_dropped = self.num_open = 0
        self._ahead: dict[str, int] = {}
        """Steps that a lane has trained and that are not in the ledger yet."""
        self._steps_ahead = 0
        for key in run:
            self._add(jobs[key])

    def _add(self, job: Job) -> None:
        number = self._number[job.key]
        steps = self._steps[self._recipe_of[number]]
        self._counts[job.status] += 1
        self._steps_total += steps
        if job.status in WITHOUT_ADAPTER:
            self._failed[job.key] = None
        if job.status in FINAL:
            self._steps_done += steps
            self._steps_dropped += _steps_dropped(job, steps)
            return
        self._steps_done += min(steps, job.step)
        self.num_open += 1
        self._count_prior(number, 1)
        if job.status in HELD:
            self._held.setdefault(job.lane, {})[job.key] = None

    def move(self, before: Job, after: Job) -> None:
        """Update the indexes for a changed job."""
        key = after.key
        number = self._number[key]
        if before.status is not after.status:
            self._counts[before.status] -= 1
            self._counts[after.status] += 1
            if after.status in WITHOUT_ADAPTER:
                self._failed[key] = None
            else:
                self._failed.pop(key, None)
            ended = (after.status in FINAL) - (before.status in FINAL)
            if ended:
                self.num_open -= ended
                self._count_prior(number, -ended)
        self._move_holder(before, after)
        steps = self._steps[self._recipe_of[number]]
        self._steps_done += _steps_done(after, steps) - _steps_done(before, steps)
        self._steps_dropped += _steps_dropped(after, steps) - _steps_dropped(before, steps)
        self._steps_ahead -= self._ahead.pop(key, 0)

    def _move_holder(self, before: Job, after: Job) -> None:
        was_held, is_held = before.status in HELD, after.status in HELD
        if was_held and not (is_held and before.lane == after.lane):
            held = self._held[before.lane]
            del held[before.key]
            if not held:
                del self._held[before.lane]
        if is_held:
            self._held.setdefault(after.lane, {})[after.key] = None

    def _count_prior(self, number: int, change: int) -> None:
        prior = self._prior_of[number]
        if prior >= 0:
            self._open_by_prior[prior] += change

    def note_live(self, job: Job, step: int) -> None:
        """Note how many steps of a job its lane has trained, in the ledger or not."""
        steps = self._steps[self._recipe_of[self._number[job.key]]]
        ahead = max(0, min(steps, step) - min(steps, job.step))
        self._steps_ahead += ahead - self._ahead.pop(job.key, 0)
        if ahead:
            self._ahead[job.key] = ahead

    @property
    def counts(self) -> dict[str, int]:
        """The number of jobs in each status."""
        return {str(status): number for status, number in self._counts.items()}

    @property
    def done_share(self) -> float:
        """The share of all jobs' steps that is trained or no longer needed."""
        if not self._steps_total:
            return 1.0
        return (self._steps_done + self._steps_ahead) / self._steps_total

    @property
    def dropped_share(self) -> float:
        """The part of ``done_share`` that was not trained: the rest of jobs that ended early."""
        return self._steps_dropped / self._steps_total if self._steps_total else 0.0

    def held_by(self, lane: str) -> list[str]:
        """The jobs that a lane holds according to the ledger, in the order of their leases."""
        return list(self._held.get(lane, ()))

    def failed(self, most: int) -> list[str] | None:
        """The jobs that ended without an adapter, or whose last attempt failed, in the manifest's
        order; None if there are more than ``most``."""
        if len(self._failed) > most:
            return None
        return sorted(self._failed, key=self._number.__getitem__)

    def is_prior_needed(self, prior_key: str) -> bool:
        """Whether a job that has not ended trains against a prior set."""
        number = self._priors.get(prior_key)
        return number is not None and self._open_by_prior[number] > 0


def _steps_done(job: Job, steps: int) -> int:
    return steps if job.status in FINAL else min(steps, job.step)


def _steps_dropped(job: Job, steps: int) -> int:
    is_untrained = job.status in FINAL and (job.status in WITHOUT_ADAPTER or job.reused)
    return steps - min(steps, job.step) if is_untrained else 0
