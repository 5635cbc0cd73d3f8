"""The form of a state file: all jobs of a ledger after one of its segments, in columns.

Owns the encoding. ``compaction`` decides when a file is written and which one is read.

A file is a JSON header line, then zlib-compressed chunks of several thousand jobs: a line for
each column that differs from the default somewhere, then an empty line. A reader decodes only the
columns it needs. The header contains the number of segments covered and the digest of the remaining
bytes, so that a torn file and a ledger with added or missing segments are detected.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from farm.keys import bytes_digest
from farm.training.dispatch.job_state import Job, Status

__all__ = ["CHUNK", "Chunk", "StateFile"]

VERSION = 2
CHUNK = 5_000
"""Jobs per chunk: encoding a column holds the interpreter, and so delays the lanes' exchanges, for
at most a few milliseconds."""
DEFAULTS = Job("")


@dataclass(frozen=True)
class Chunk:
    """Some thousand jobs; columns are decoded when they are asked for."""

    lines: Mapping[str, bytes]
    """JSON by column."""

    def keys(self) -> list[str]:
        """The jobs' keys."""
        keys: list[str] = json.loads(self.lines["key"])
        return keys

    def column(self, name: str, length: int) -> list[Any]:
        """A column other than the keys, of ``length`` jobs."""
        line = self.lines.get(name)
        if line is None:
            return [getattr(DEFAULTS, name)] * length
        values = json.loads(line)
        if not isinstance(values, dict):
            return list(values)
        texts = [Status(text) if name == "status" else text for text in values["texts"]]
        return [texts[row] for row in values["rows"]]

    def jobs(self) -> Iterable[Job]:
        """All jobs, in order."""
        keys = self.keys()
        columns = (self.column(name, len(keys)) for name in Job._fields[1:])
        return map(Job._make, zip(keys, *columns, strict=True))

    def some(self, keys: Sequence[str], rows: Sequence[int]) -> Iterable[Job]:
        """The jobs of some rows, given the decoded keys."""
        columns = [keys, *(self.column(name, len(keys)) for name in Job._fields[1:])]
        chosen = ([column[row] for row in rows] for column in columns)
        return map(Job._make, zip(*chosen, strict=True))

    @classmethod
    def of(cls, jobs: Sequence[Job]) -> Chunk:
        """Encode jobs. Texts other than keys recur, so each is written once and referred to by its
        index."""
        lines = {}
        for name, values in zip(Job._fields, zip(*jobs, strict=True), strict=True):
            column: Any = values
            default = getattr(DEFAULTS, name)
            if name != "key" and isinstance(default, str):
                numbers: dict[str, int] = {}
                rows = [numbers.setdefault(value, len(numbers)) for value in values]
                column = {"texts": list(numbers), "rows": rows}
                is_default = list(numbers) == [default]
            else:
                is_default = name != "key" and all(value == default for value in values)
            if not is_default:
                lines[name] = json.dumps(column, separators=(",", ":")).encode()
        return cls(lines)


@dataclass(frozen=True)
class StateFile:
    """The content of a state file."""

    chunks: Sequence[Chunk]
    num_jobs: int
    num_segments: int
    """Segments covered."""
    first_lease: float
    """Time of the first lease; 0 before it."""

    @classmethod
    def of(
        cls, parts: Iterable[Sequence[Job]], *, num_segments: int, first_lease: float
    ) -> StateFile:
        """Encode the jobs of a ledger, given in parts of ``CHUNK``."""
        chunks, num_jobs = [], 0
        for part in parts:
            chunks.append(Chunk.of(part))
            num_jobs += len(part)
        return cls(chunks, num_jobs, num_segments, first_lease)

    def encode(self) -> bytes:
        """The file's bytes."""
        packer = zlib.compressobj(1)
        packed = []
        for chunk in self.chunks:
            text = b"".join(
                b"%s=%s\n" % (name.encode(), line) for name, line in chunk.lines.items()
            )
            packed.append(packer.compress(text + b"\n"))
        body = b"".join([*packed, packer.flush()])
        header = {
            "version": VERSION,
            "segments": self.num_segments,
            "jobs": self.num_jobs,
            "first_lease": self.first_lease,
            "sha256": bytes_digest(body),
        }
        return json.dumps(header).encode() + b"\n" + body

    @classmethod
    def decode(cls, data: bytes) -> StateFile | None:
        """Read a file; None if it is torn, or of another version."""
        try:
            head, _, body = data.partition(b"\n")
            header = json.loads(head)
            if (header["version"], header["sha256"]) != (VERSION, bytes_digest(body)):
                return None
            texts = zlib.decompress(body).split(b"\n\n")[:-1]
            chunks = [_chunk(text) for text in texts]
            counts = int(header["jobs"]), int(header["segments"])
            return cls(chunks, *counts, float(header["first_lease"]))
        except (ValueError, TypeError, KeyError, zlib.error):
            return None


def _chunk(text: bytes) -> Chunk:
    pairs = (line.partition(b"=") for line in text.split(b"\n"))
    return Chunk({name.decode(): values for name, _, values in pairs})
