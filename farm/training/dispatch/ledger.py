"""The ledger: an append-only record in the store of what happened to every job of a run.

Owns the writing of events to segments under ``runs/<run_id>/ledger/``, and the resulting state. The
dispatcher decides which lane gets which job, and the state machine (``job_state``) what an event
changes.

Events are only hints about the store: an adapter is committed if its marker exists, so losing the
last segment costs at most another check of the store.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable
from typing import Unpack

from farm.model_imports.gc_pause import leave_to_counts
from farm.storage import Store
from farm.training.dispatch.compaction import (
    Compactor,
    JobsCopy,
    Tally,
    read_state,
    write_tally,
)
from farm.training.dispatch.job_state import (
    FINAL,
    Event,
    EventDetails,
    EventKind,
    Job,
    Status,
    Why,
    advance,
    counts,
    replay,
)
from farm.training.dispatch.segments import (
    SUFFIX,
    Position,
    ledger_folder,
    read_events,
    segment_name,
)

__all__ = [
    "FINAL",
    "Event",
    "EventKind",
    "Job",
    "Ledger",
    "Status",
    "Why",
    "advance",
    "counts",
    "read_events",
    "replay",
]

Clock = Callable[[], float]

SEGMENT_BYTES = 64 * 1024
"""A segment is rewritten with more events each time until it is this long; then a new one begins.
Object stores cannot append, and thousands of one-line objects would be slow to read."""
COMPACT_EVENTS = 20_000
"""Fewest events between two state files: replaying them takes a tenth of a second."""
COMPACT_SHARE = 8
"""A state file is due after as many events as an eighth of the jobs, so that writing the files
costs a bounded share of writing the events."""


class Ledger:
    """The only writer of a run's ledger, and the state that its events lead to."""

    def __init__(
        self,
        store: Store,
        run_id: str,
        *,
        epoch: int,
        clock: Clock = time.time,
        compact_events: int = COMPACT_EVENTS,
    ) -> None:
        """Replay the events of earlier epochs.

        Args:
            epoch: this writer's lock number, higher than that of every earlier writer.
            compact_events: fewest events between two state files.
        """
        self._store, self._run_id, self._epoch, self._clock = store, run_id, epoch, clock
        self._state = read_state(store, run_id)
        self.jobs: dict[str, Job] = self._state.jobs
        """By key, in the order of their first events; read-only for others."""
        self._segment = self._first_free_segment()
        self._num_segments = len(self._state.segments)
        self._lines: list[str] = []
        self._bytes = 0
        self._is_dirty = False
        self._written: Position | None = None
        """The end of the last event that this writer has written."""
        self._tallied: Position | None = None
        self._compactor = Compactor(store, run_id)
        self._copy: JobsCopy | None = None
        """Of the state for the next state file."""
        self._compact_events = compact_events
        self._num_uncompacted = self._state.num_replayed

    def _first_free_segment(self) -> int:
        """Starts after this epoch's existing segments, if the writer was restarted."""
        prefix = f"{self._epoch:06d}-"
        own = [name for name in self._state.segments if name.startswith(prefix)]
        numbers = [int(name.removeprefix(prefix)) for name in own]
        return max(numbers, default=-1) + 1

    def append(self, kind: EventKind, job: str, **details: Unpack[EventDetails]) -> Job:
        """Record one event; the next ``flush`` writes it to the store."""
        event = Event(kind, job, self._clock(), **details)
        before, after = self._state.apply(event)
        if after is not before:
            if self._copy is not None and before is not None:
                self._copy.note(before)
            self._add(event.encode())
        return after

    def queue(self, keys: Iterable[str]) -> None:
        """Record jobs that are new to the ledger as queued; fast for many."""
        at = self._clock()
        for key in keys:
            if key not in self.jobs:
                self.jobs[key] = Job(key, changed=at)
                self._add(f'{{"kind":"queued","job":{json.dumps(key)},"at":{at!r}}}')

    def _add(self, line: str) -> None:
        self._lines.append(line)
        self._bytes += len(line) + 1
        self._is_dirty = True

    def flush(self) -> None:
        """Write the events since the last flush; without events, write nothing.

        Raises:
            StoreError: if the store does not accept it; the events are kept for the next attempt.
        """
        if self._is_dirty:
            self._write_segment()
        if self._copy is not None:
            self._continue_copy()

    def _write_segment(self) -> None:
        name = segment_name(self._epoch, self._segment)
        path = f"{ledger_folder(self._run_id)}/{name}{SUFFIX}"
        self._store.write(path, ("\n".join(self._lines) + "\n").encode())
        self._is_dirty = False
        self._written = Position(name, len(self._lines))
        if self._bytes >= SEGMENT_BYTES:
            self._num_segments += 1
            self._num_uncompacted += len(self._lines)
            self._segment += 1
            self._lines, self._bytes = [], 0
            self._compact(name)

    def _compact(self, segment: str) -> None:
        """Begin a state file if one is due; ``segment`` has just been completed."""
        due = max(self._compact_events, len(self.jobs) // COMPACT_SHARE)
        if self._num_uncompacted < due or self._copy is not None or self._compactor.is_busy:
            return
        self._num_uncompacted = 0
        self._copy = JobsCopy(
            self.jobs,
            segment,
            num_segments=self._num_segments,
            first_lease=self._state.first_lease,
        )

    def _continue_copy(self) -> None:
        assert self._copy is not None
        try:
            if not self._copy.advance():
                return
            self._compactor.start(self._copy)
        except RuntimeError:  # jobs were added: the next state file contains them
            pass
        self._copy = None
        leave_to_counts(len(self.jobs))

    @property
    def first_lease(self) -> float:
        """Time of the run's first lease; 0 before it."""
        return self._state.first_lease

    @property
    def is_tally_outdated(self) -> bool:
        """Whether all events are written, some of them after the last tally."""
        return not self._is_dirty and self._written != self._tallied

    def write_tally(self, tally: Tally | None) -> None:
        """Write the sums after the last event; None removes those of an earlier one."""
        assert self._written is not None
        write_tally(self._store, self._run_id, tally, self._written)
        self._tallied = self._written

    def settle(self) -> None:
        """Complete a state file that has been begun."""
        while self._copy is not None:
            self._continue_copy()
        self._compactor.join()
