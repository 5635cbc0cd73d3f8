"""Compacted ledgers: the state of all jobs after a segment, so that restarts replay only the rest.

Owns ``runs/<run_id>/ledger/<segment>.state``, whose form ``state_file`` owns, and
``runs/<run_id>/ledger/tally.json``: what `farm status` shows, so that it reads no job. Both only
save time: the segments are kept, and a reader that finds no usable file reads them.
"""

from __future__ import annotations

import json
import threading
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from itertools import islice

from farm.errors import FarmError
from farm.model_imports.gc_pause import gc_paused
from farm.storage import Store
from farm.training.dispatch.job_state import Event, Job, advance
from farm.training.dispatch.segments import (
    Position,
    ledger_folder,
    num_events,
    read_segments,
    segment_names,
)
from farm.training.dispatch.state_file import CHUNK, StateFile

__all__ = [
    "RATE_WINDOW_S",
    "Compactor",
    "JobsCopy",
    "LedgerState",
    "Tally",
    "newest_file",
    "read_state",
    "read_tally",
    "write_tally",
]

SUFFIX = ".state"
COPIED_AT_ONCE = 10_000
"""Jobs copied with each write of the ledger: half a millisecond on an idle machine."""
KEPT_FILES = 2
TALLY = "tally.json"
TALLY_LAG = 50
"""Segments that a driver may have completed since it wrote its last tally. More, and the tally is
not used: perhaps the store refuses it."""
RATE_WINDOW_S = 600.0
"""The rate of a run is that of its last ten minutes."""


@dataclass
class LedgerState:
    """The state that a ledger's events lead to."""

    jobs: dict[str, Job] = field(default_factory=dict)
    first_lease: float = 0.0
    """Time of the first lease; 0 before it."""
    num_replayed: int = 0
    """Events after the last state file."""
    segments: tuple[str, ...] = ()
    """The names of all segments read or covered."""

    def apply(self, event: Event) -> tuple[Job | None, Job]:
        """Apply one event; returns the job before and after it."""
        before = self.jobs.get(event.job)
        after = advance(before, event)
        if after is not before:
            self.jobs[event.job] = after
            if event.kind == "leased" and not self.first_lease:
                self.first_lease = event.at
        return before, after


def read_state(
    store: Store,
    run_id: str,
    seen: Callable[[Event, Job | None, Job], None] = lambda *_: None,
) -> LedgerState:
    """The state of a run's ledger, from the newest complete state file and the segments after it.

    Args:
        seen: called with each event after the state file, and its job before and after.

    Raises:
        StoreError: if a segment is damaged.
    """
    names = segment_names(store, run_id)
    with gc_paused():
        file = newest_file(store, run_id, names)
        state = LedgerState()
        if file is not None:
            for chunk in file.chunks:
                state.jobs.update((job.key, job) for job in chunk.jobs())
            state.first_lease = file.first_lease
        state.segments = tuple(names)
        covered = file.num_segments if file is not None else 0
        for event in read_segments(store, run_id, names[covered:]):
            seen(event, *state.apply(event))
            state.num_replayed += 1
    return state


def newest_file(store: Store, run_id: str, names: Sequence[str]) -> StateFile | None:
    """The newest complete state file of a ledger with these segments; None if there is none."""
    for path in reversed(_state_paths(store, run_id)):
        last = path.rsplit("/", 1)[-1].removesuffix(SUFFIX)
        try:
            file = StateFile.decode(store.read(path))
        except (FarmError, OSError):
            continue
        if file is not None and file.num_segments == sum(name <= last for name in names):
            return file
    return None


def _state_paths(store: Store, run_id: str) -> list[str]:
    folder = ledger_folder(run_id)
    return [f"{folder}/{name}" for name in store.list(folder) if name.endswith(SUFFIX)]


# -- writing --------------------------------------------------------------------------------------


class JobsCopy:
    """All jobs as they were at one moment, copied in parts while they change.

    Copying a million jobs at once would delay the lanes' exchanges by 50 ms.
    """

    def __init__(
        self, jobs: Mapping[str, Job], segment: str, *, num_segments: int, first_lease: float
    ) -> None:
        """Begin with the state after a segment, the ``num_segments``th of the ledger."""
        self.segment, self.num_segments, self.first_lease = segment, num_segments, first_lease
        self._source = iter(jobs.values())
        self._copied: list[Job] = []
        self._before: dict[str, Job] = {}

    def note(self, before: Job) -> None:
        """Note what a job was before it changed; call it with every change."""
        self._before.setdefault(before.key, before)

    def advance(self) -> bool:
        """Copy the next part; returns whether all jobs are copied.

        Raises:
            RuntimeError: if jobs were added meanwhile.
        """
        part = list(islice(self._source, COPIED_AT_ONCE))
        self._copied += part
        return len(part) < COPIED_AT_ONCE

    def chunks(self) -> Iterator[list[Job]]:
        """The jobs as they were, ``CHUNK`` at a time."""
        before = self._before
        for start in range(0, len(self._copied), CHUNK):
            part = self._copied[start : start + CHUNK]
            yield [before.get(job.key, job) for job in part] if before else part


class Compactor:
    """Writes state files in a separate thread, so that no lane waits for one."""

    def __init__(self, store: Store, run_id: str) -> None:
        self._store, self._run_id = store, run_id
        self._thread: threading.Thread | None = None

    @property
    def is_busy(self) -> bool:
        """Whether a file is being written."""
        return self._thread is not None and self._thread.is_alive()

    def start(self, copy: JobsCopy) -> None:
        """Write a complete copy."""

        def work() -> None:
            try:
                file = StateFile.of(
                    copy.chunks(), num_segments=copy.num_segments, first_lease=copy.first_lease
                )
                path = f"{ledger_folder(self._run_id)}/{copy.segment}{SUFFIX}"
                self._store.write(path, file.encode())
                for old in _state_paths(self._store, self._run_id)[:-KEPT_FILES]:
                    self._store.delete(old)
            except (FarmError, OSError):
                return  # the next file suffices; until then the segments are replayed

        self._thread = threading.Thread(target=work, name="ledger-compactor", daemon=True)
        self._thread.start()

    def join(self) -> None:
        """Wait for the file that is being written."""
        if self._thread is not None:
            self._thread.join()


# -- the tally ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Tally:
    """Sums over all jobs of a run."""

    counts: Mapping[str, int]
    """Jobs by status."""
    num_recent: int
    """Jobs that the run's last start committed in the last ``RATE_WINDOW_S`` before ``last``."""
    last: float
    """Time of the last event."""
    first_lease: float
    """0 before the first lease."""
    failures: Sequence[Mapping[str, str]]
    """The fields of ``JobFailure``, in the manifest's order."""

    def commits_per_s(self, since: float) -> float:
        """Over the last ten minutes of work, or since a later moment, such as the run's start."""
        if not self.num_recent:
            return 0.0
        begin = max(self.last - RATE_WINDOW_S, since)
        return self.num_recent / max(self.last - begin, 1.0)


def write_tally(store: Store, run_id: str, tally: Tally | None, position: Position) -> None:
    """Write the sums after the event at ``position``, or remove earlier ones; a store that refuses
    is ignored."""
    path = f"{ledger_folder(run_id)}/{TALLY}"
    with suppress(FarmError, OSError):
        if tally is None:
            store.delete(path)
            return
        body = asdict(tally) | {"segment": position.segment, "events": position.num_events}
        store.write(path, json.dumps(body).encode())


def read_tally(store: Store, run_id: str, *, may_lag: bool) -> Tally | None:
    """The last tally of a run; None if there is none, or it is too old.

    Args:
        may_lag: accept a tally that is a few seconds older than the ledger's last event.
    """
    try:
        body = json.loads(store.read(f"{ledger_folder(run_id)}/{TALLY}"))
        position = Position(body.pop("segment"), body.pop("events"))
        tally = Tally(**body)
    except (OSError, ValueError, TypeError, KeyError):
        return None
    names = segment_names(store, run_id)
    later = len(names) - 1 - bisect_left(names, position.segment)
    if may_lag:
        return tally if later <= TALLY_LAG else None
    if later == 0 and num_events(store, run_id, position.segment) == position.num_events:
        return tally
    return None
