"""Reads the ledger's segments from the store.

Owns the segments' names and the reading of events. ``ledger`` is their only writer.

Segments are named ``<epoch>-<number>.jsonl``, so that writers of different epochs (successive
drivers) never write the same segment, and the order of names is the order of events.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from farm.errors import StoreError
from farm.storage import Store
from farm.training.dispatch.job_state import Event

__all__ = [
    "SUFFIX",
    "Position",
    "epoch_of",
    "ledger_folder",
    "num_events",
    "read_events",
    "read_segments",
    "segment_name",
    "segment_names",
]

SUFFIX = ".jsonl"
PARALLEL_READS = 16
"""Segments fetched concurrently: an object store takes tens of milliseconds for each."""
BATCH = 64
"""Segments in memory at once."""


class Position(NamedTuple):
    """A place between two events of a ledger."""

    segment: str
    num_events: int
    """Events before it in the segment."""


def ledger_folder(run_id: str) -> str:
    """Where a run's ledger is stored."""
    return f"runs/{run_id}/ledger"


def segment_name(epoch: int, number: int) -> str:
    """The name of a segment, without its suffix."""
    return f"{epoch:06d}-{number:06d}"


def epoch_of(segment: str) -> int:
    """The epoch of a segment: the number of the start that wrote it."""
    number = segment.partition("-")[0]
    return int(number) if number.isdecimal() else 0


def segment_names(store: Store, run_id: str) -> list[str]:
    """The names of all segments of a run, without suffix, in the order of their events."""
    names = store.list(ledger_folder(run_id))
    return [name.removesuffix(SUFFIX) for name in names if name.endswith(SUFFIX)]


def num_events(store: Store, run_id: str, name: str) -> int:
    """The number of events in a segment; 0 if there is none of this name."""
    try:
        return store.read(f"{ledger_folder(run_id)}/{name}{SUFFIX}").count(b"\n")
    except FileNotFoundError:
        return 0


def read_events(store: Store, run_id: str) -> Iterator[Event]:
    """All events of a run in the order in which they were written.

    Raises:
        StoreError: if a segment is not what a ledger writes.
    """
    return read_segments(store, run_id, segment_names(store, run_id))


def read_segments(store: Store, run_id: str, names: Sequence[str]) -> Iterator[Event]:
    """The events of some segments, in the order of ``names``.

    Raises:
        StoreError: if a segment is not what a ledger writes.
    """
    paths = [f"{ledger_folder(run_id)}/{name}{SUFFIX}" for name in names]
    for path, data in _contents(store, paths):
        yield from _decode(path, data)


def _contents(store: Store, paths: Sequence[str]) -> Iterator[tuple[str, bytes]]:
    if len(paths) <= 2:
        for path in paths:
            yield path, store.read(path)
        return
    with ThreadPoolExecutor(PARALLEL_READS) as pool:
        for start in range(0, len(paths), BATCH):
            batch = paths[start : start + BATCH]
            yield from zip(batch, pool.map(store.read, batch), strict=True)


def _decode(path: str, data: bytes) -> Iterable[Event]:
    lines = data.decode(errors="replace").splitlines()
    try:  # decoding the whole segment in one call is several times faster than line by line
        bodies = json.loads(f"[{','.join(lines)}]")
        if len(bodies) == len(lines):
            return [Event.of(body) for body in bodies]
    except (ValueError, TypeError):
        pass
    return _decode_lines(path, lines)


def _decode_lines(path: str, lines: Sequence[str]) -> Iterator[Event]:
    for number, line in enumerate(lines, 1):
        try:
            yield Event.decode(line)
        except (ValueError, TypeError) as error:
            raise StoreError(f"{path}:{number} is not a ledger line: {error}") from error
