"""The full specifications of a run's jobs, compressed in blocks in memory and in the store.

Owns one job's line of JSON, and the blocks. A specification takes twenty kilobytes as an object and
a few hundred bytes in a block.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections import OrderedDict, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import TypeVar

from farm.errors import StoreError
from farm.intake.job import JobSpec
from farm.training.dispatch.messages import Assignment

__all__ = ["BLOCK", "JobBlocks", "batches", "decode", "encode"]

BLOCK = 64
"""Jobs compressed together: enough for a good compression ratio, and few enough that reading one
job decompresses at most 200 KB."""
OPEN_BLOCKS = 32
"""Decompressed blocks in memory; jobs are mostly leased in the manifest's order."""
Item = TypeVar("Item")


def encode(item: Assignment) -> str:
    """One line of JSON."""
    body = {
        "spec": item.spec.model_dump(mode="json"),
        "names": item.names,
        "prompts": item.prompts,
    }
    return json.dumps(body)


def decode(line: str) -> Assignment:
    """The job of a line."""
    row = json.loads(line)
    return Assignment(
        JobSpec.model_validate(row["spec"]),
        tuple((str(space), str(name)) for space, name in row["names"]),
        tuple(tuple(map(str, prompts)) for prompts in row.get("prompts", ())),
    )


def batches(items: Iterable[Item]) -> Iterator[list[Item]]:
    """The items, as many at a time as a block holds."""
    source = iter(items)
    while batch := list(islice(source, BLOCK)):
        yield batch


@dataclass
class JobBlocks:
    """The jobs' lines, compressed in blocks and decompressed on demand."""

    packed: list[bytes] = field(default_factory=list)
    _open: OrderedDict[int, list[str]] = field(default_factory=OrderedDict)

    @classmethod
    def cut(cls, data: bytes, sizes: Iterable[int]) -> JobBlocks:
        """Blocks from a file and their sizes."""
        blocks, start = cls(), 0
        for size in sizes:
            blocks.packed.append(data[start : start + size])
            start += size
        return blocks

    def add(self, lines: Sequence[str]) -> None:
        """Compress the next block; every block but the last has the same number of lines."""
        self.packed.append(_pack(lines))

    def replace(self, changed: Mapping[int, Assignment]) -> None:
        """Replace some jobs, by their numbers."""
        by_block: defaultdict[int, dict[int, Assignment]] = defaultdict(dict)
        for number, item in changed.items():
            block, row = divmod(number, BLOCK)
            by_block[block][row] = item
        for block, rows in by_block.items():
            lines = list(self._lines(block))
            for row, item in rows.items():
                lines[row] = encode(item)
            self.packed[block] = _pack(lines)
            self._open.pop(block, None)

    @property
    def sizes(self) -> list[int]:
        """Size of each block in bytes."""
        return [len(block) for block in self.packed]

    def join(self) -> bytes:
        """The file: concatenated gzip members, which any gzip reader reads as one."""
        return b"".join(self.packed)

    def job(self, number: int) -> Assignment:
        """A job by its number.

        Raises:
            StoreError: if its block is damaged.
        """
        block, row = divmod(number, BLOCK)
        if block not in self._open:
            self._open[block] = self._lines(block)
            while len(self._open) > OPEN_BLOCKS:
                self._open.popitem(last=False)
        self._open.move_to_end(block)
        return decode(self._open[block][row])

    def __iter__(self) -> Iterator[Assignment]:
        """All jobs in order, a block in memory at a time.

        Raises:
            StoreError: if a block is damaged.
        """
        for block in range(len(self.packed)):
            yield from map(decode, self._lines(block))

    def _lines(self, block: int) -> list[str]:
        try:
            return gzip.decompress(self.packed[block]).decode().splitlines()
        except (OSError, EOFError, zlib.error) as error:
            raise StoreError(f"the run's jobs are damaged: {error}") from error


def _pack(lines: Iterable[str]) -> bytes:
    text = "".join(f"{line}\n" for line in lines)
    return gzip.compress(text.encode(), compresslevel=6, mtime=0)
