"""What a round's ledger shows while faults are injected: who holds a job, when a fault is over."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from farm.storage import Store
from farm.training.dispatch.job_state import Event, Job, replay
from farm.training.dispatch.segments import read_segments, segment_names
from farm.training.run.files import list_runs

PROGRESS = ("progress", "committed", "reused")


@dataclass
class Fault:
    """One fault, and how the run came through it."""

    kind: str
    at: float
    """Monotonic time at which it began, or at which it ended if it lasts."""
    affected: dict[str, str] = field(default_factory=dict)
    """The lane of each job that the fault took down; empty if it took down the whole run."""
    waiting: set[str] = field(default_factory=set)
    """Affected jobs that do not train again yet."""
    is_measured: bool = True
    """Whether the run has something to recover from."""
    recovered_s: float | None = None
    steps_lost: int = 0


class RunView:
    """One run's ledger."""

    def __init__(self, store: Store, run_id: str) -> None:
        self._store, self._run_id = store, run_id
        self._segments: dict[str, list[Event]] = {}
        self.events: list[Event] = []
        self.jobs: dict[str, Job] = {}

    def read_new(self) -> list[Event]:
        """Events since the last call; segments before the last two do not change any more."""
        names = segment_names(self._store, self._run_id)
        for name in names:
            if name not in self._segments or name in names[-2:]:
                self._segments[name] = list(read_segments(self._store, self._run_id, [name]))
        events = [event for name in names for event in self._segments[name]]
        new = events[len(self.events) :]
        self.events = events
        self.jobs = replay(new, self.jobs)
        return new


class LedgerView:
    """Reads the ledgers of the store past the proxy, and measures recoveries.

    A driver that reads the manifest while a photo is replaced starts another run.
    """

    def __init__(self, store: Store) -> None:
        self.store = store
        self.runs: dict[str, RunView] = {}
        self.run_id = ""
        """The run that has written last."""
        self.events: list[Event] = []
        """Of all runs."""
        self.arrived: list[float] = []
        self.faults: list[Fault] = []

    def refresh(self) -> None:
        """Read new events, and note the faults that they end."""
        for run_id in list_runs(self.store):
            run = self.runs.setdefault(run_id, RunView(self.store, run_id))
            events = run.read_new()
            if not events:
                continue
            self.run_id, now = run_id, time.monotonic()
            for event in events:
                self.events.append(event)
                self.arrived.append(now)
                for fault in self.faults:
                    if fault.is_measured and fault.recovered_s is None and now > fault.at:
                        _note(fault, event, now)

    @property
    def jobs(self) -> dict[str, Job]:
        """The jobs of the run that has written last."""
        return self.runs[self.run_id].jobs if self.run_id else {}

    def held(self) -> dict[str, str]:
        """The lane of each job that is leased or trains."""
        return {key: job.lane for key, job in self.jobs.items() if job.is_held}

    def num_open(self) -> int:
        """Jobs that have not ended; -1 before the run begins."""
        return sum(not job.is_final for job in self.jobs.values()) if self.jobs else -1

    def has_progress_since(self, moment: float) -> bool:
        """Whether a lane has trained since then."""
        pairs = zip(reversed(self.events), reversed(self.arrived), strict=True)
        return any(event.kind in PROGRESS for event, at in pairs if at > moment)

    def count_lost_steps(self) -> int:
        """Note the steps that each fault made lanes train again; returns those of no fault."""
        others = 0
        known: dict[str, tuple[str, int]] = {}
        for event, at in zip(self.events, self.arrived, strict=True):
            if event.kind == "failed" and event.job in known:
                known[event.job] = ("", known[event.job][1])  # the same lane may train it again
            if event.kind != "progress":
                continue
            lane, step = known.get(event.job, (event.lane, 0))
            if lane != event.lane and event.step < step:
                cause = next(
                    (one for one in reversed(self.faults) if _explains(one, event.job, lane, at)),
                    None,
                )
                if cause is None:
                    others += step - event.step
                else:
                    cause.steps_lost += step - event.step
                step = event.step
            known[event.job] = (event.lane, max(step, event.step))
        return others


def _note(fault: Fault, event: Event, now: float) -> None:
    if fault.affected:
        was = fault.affected.get(event.job)
        ended = event.kind in ("committed", "reused", "quarantined", "rejected")
        if was is not None and (ended or (event.kind == "progress" and event.lane != was)):
            fault.waiting.discard(event.job)
        if fault.waiting:
            return
    elif event.kind not in PROGRESS:
        return
    fault.recovered_s = now - fault.at


def _explains(fault: Fault, job: str, lane: str, at: float) -> bool:
    if fault.at > at:
        return False
    return fault.affected.get(job) == lane or (not lane and fault.kind.startswith("NaN"))
