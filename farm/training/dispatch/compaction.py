"""Compacted ledgers: the state of all jobs after a segment, so that restarts replay only the rest.

Owns ``runs/<run_id>/ledger/<segment>.state``. A state file only saves time: the segments are kept,
and a reader that finds no complete state file replays them from the start.

A file is a JSON header line, then zlib-compressed JSON lines, each with the columns of several
thousand jobs. The header contains the last segment covered, the number of segments up to it and the
digest of the remaining lines, so that a torn file and a ledger with added or missing segments are
detected.
"""

from __future__ import annotations

import json
import threading
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice, repeat
from typing import Any

from farm.errors import FarmError
from farm.gc_pause import gc_paused
from farm.keys import bytes_digest
from farm.storage import Store
from farm.training.dispatch.job_state import Event, Job, Status, advance
from farm.training.dispatch.segments import ledger_folder, read_segments, segment_names

__all__ = ["Compactor", "LedgerState", "read_state"]

SUFFIX = ".state"
VERSION = 1
CHUNK = 5_000
"""Jobs per line: encoding a line holds the interpreter, and so delays the lanes' exchanges, for a
few milliseconds."""
KEPT_FILES = 2
DEFAULTS = Job("")


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


def read_state(store: Store, run_id: str) -> LedgerState:
    """The state of a run's ledger, from the newest complete state file and the segments after it.

    Raises:
        StoreError: if a segment is damaged.
    """
    names = segment_names(store, run_id)
    with gc_paused():
        state, covered = _newest(store, run_id, names)
        state.segments = tuple(names)
        for event in read_segments(store, run_id, names[covered:]):
            state.apply(event)
            state.num_replayed += 1
    return state


def _newest(store: Store, run_id: str, names: Sequence[str]) -> tuple[LedgerState, int]:
    """The newest complete state, and how many segments it covers."""
    for path in reversed(_state_paths(store, run_id)):
        last = path.rsplit("/", 1)[-1].removesuffix(SUFFIX)
        covered = sum(name <= last for name in names)
        state = _load(store, path, covered)
        if state is not None:
            return state, covered
    return LedgerState(), 0


def _state_paths(store: Store, run_id: str) -> list[str]:
    folder = ledger_folder(run_id)
    return [f"{folder}/{name}" for name in store.list(folder) if name.endswith(SUFFIX)]


# -- the file -------------------------------------------------------------------------------------


def _load(store: Store, path: str, num_segments: int) -> LedgerState | None:
    """A state file; None if it is torn, unreadable, or of another set of segments."""
    try:
        head, _, body = store.read(path).partition(b"\n")
        header = json.loads(head)
        expected = (VERSION, num_segments, bytes_digest(body))
        if (header["version"], header["segments"], header["sha256"]) != expected:
            return None
        jobs: dict[str, Job] = {}
        for line in zlib.decompress(body).splitlines():
            columns = json.loads(line)
            jobs.update(zip(columns["key"], _decode(columns), strict=True))
        if len(jobs) != header["jobs"]:
            return None
        return LedgerState(jobs, float(header["first_lease"]))
    except (FarmError, OSError, ValueError, TypeError, KeyError, AttributeError, zlib.error):
        return None


def _encode_file(jobs: Sequence[Job], *, num_segments: int, first_lease: float) -> bytes:
    packer = zlib.compressobj(1)
    parts = []
    for chunk in _chunks(jobs):
        line = json.dumps(_columns(chunk), separators=(",", ":")).encode()
        parts.append(packer.compress(line + b"\n"))
    body = b"".join([*parts, packer.flush()])
    header = {
        "version": VERSION,
        "segments": num_segments,
        "jobs": len(jobs),
        "first_lease": first_lease,
        "sha256": bytes_digest(body),
    }
    return json.dumps(header).encode() + b"\n" + body


def _chunks(jobs: Sequence[Job]) -> Iterator[list[Job]]:
    source = iter(jobs)
    while chunk := list(islice(source, CHUNK)):
        yield chunk


def _columns(jobs: Sequence[Job]) -> dict[str, Any]:
    """The fields of jobs by name, without those that have their default value in all jobs.

    Texts other than keys recur, so each is written once and referred to by its index.
    """
    columns: dict[str, Any] = {}
    for name, values in zip(Job._fields, zip(*jobs, strict=True), strict=True):
        default = getattr(DEFAULTS, name)
        if name == "key":
            columns[name] = values
        elif isinstance(default, str):
            numbers: dict[str, int] = {}
            rows = [numbers.setdefault(value, len(numbers)) for value in values]
            if list(numbers) != [default]:
                columns[name] = {"texts": list(numbers), "rows": rows}
        elif any(value != default for value in values):
            columns[name] = values
    return columns


def _decode(columns: dict[str, Any]) -> Iterable[Job]:
    fields: list[Iterable[Any]] = []
    for name in Job._fields:
        column = columns.get(name)
        if column is None:
            fields.append(repeat(getattr(DEFAULTS, name), len(columns["key"])))
        elif isinstance(column, dict):
            texts = [Status(text) if name == "status" else text for text in column["texts"]]
            fields.append([texts[row] for row in column["rows"]])
        else:
            fields.append(column)
    return map(Job._make, zip(*fields, strict=True))


# -- writing --------------------------------------------------------------------------------------


class Compactor:
    """Writes state files in a separate thread, so that no lane waits for one."""

    def __init__(self, store: Store, run_id: str) -> None:
        self._store, self._run_id = store, run_id
        self._thread: threading.Thread | None = None

    @property
    def is_busy(self) -> bool:
        """Whether a file is being written."""
        return self._thread is not None and self._thread.is_alive()

    def start(
        self, jobs: Sequence[Job], segment: str, *, num_segments: int, first_lease: float
    ) -> None:
        """Write the state after a segment; ``jobs`` must not be changed afterwards."""

        def work() -> None:
            data = _encode_file(jobs, num_segments=num_segments, first_lease=first_lease)
            try:
                self._store.write(f"{ledger_folder(self._run_id)}/{segment}{SUFFIX}", data)
                for path in _state_paths(self._store, self._run_id)[:-KEPT_FILES]:
                    self._store.delete(path)
            except (FarmError, OSError):
                return  # the next file suffices; until then the segments are replayed

        self._thread = threading.Thread(target=work, name="ledger-compactor", daemon=True)
        self._thread.start()

    def join(self) -> None:
        """Wait for the file that is being written."""
        if self._thread is not None:
            self._thread.join()
