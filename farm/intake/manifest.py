"""The manifest: every subject that a user submits, resolved, with all that is wrong told at once.

Owns what concerns several subjects (ids and names given twice, the order of work) and the resolved
form that a run keeps as Parquet.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from typing import NamedTuple

from farm.errors import Fault, ManifestError
from farm.intake.resolve import Resolver
from farm.intake.rows import Row, shown_field
from farm.intake.sources import open_rows
from farm.intake.subject import Subject

__all__ = ["Manifest", "Place", "invalid", "read_manifest"]

CHUNK_ROWS = 256
"""Rows resolved between two looks at the results; bounds what is in flight."""
REMOTE_THREADS = 16
"""That list folders of a store at once; each waits for the network most of the time."""


class Place(NamedTuple):
    """Where a subject was written."""

    file: str
    line: int | None
    field: str
    """Of its photos, such as ``subjects[3].photos``."""
    base: str
    """Folder or URL that its relative paths start from."""


@dataclass(frozen=True)
class Manifest:
    """Resolved subjects in the order of the file."""

    source: str
    """As the user named it."""
    subjects: tuple[Subject, ...]
    """Those without errors."""
    faults: tuple[Fault, ...] = ()
    """Warnings; and errors too where it was read with ``strict=False``."""
    places: Mapping[str, Place] = field(default_factory=dict, compare=False, repr=False)
    """Where each subject was written, by id; also of those with errors."""

    def __len__(self) -> int:
        return len(self.subjects)

    @property
    def errors(self) -> tuple[Fault, ...]:
        """The faults that keep a subject from being trained."""
        return tuple(fault for fault in self.faults if fault.severity == "error")

    def to_parquet(self) -> bytes:
        """The resolved subjects as a Parquet file; ``read_manifest`` reads it back, equal."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        rows = [_as_row(subject) for subject in self.subjects]
        photo = pa.struct([("uri", pa.string()), ("caption", pa.string())])
        lists = {"sample_prompts": pa.string(), "class_images": pa.string(), "photos": photo}
        schema = pa.schema(
            [
                (
                    field,
                    pa.list_(lists[field])
                    if field in lists
                    else (pa.int64() if field == "priority" else pa.string()),
                )
                for field in Subject.model_fields
            ]
        )
        buffer = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(rows, schema=schema), buffer, compression="zstd")
        return buffer.getvalue()


def _as_row(subject: Subject) -> dict[str, object]:
    row = subject.model_dump(mode="json", exclude={"recipe", "prior"})
    return row | {
        "recipe": subject.recipe.model_dump_json(),
        "prior": subject.prior.model_dump_json(),
    }


def read_manifest(url: str, *, strict: bool = True) -> Manifest:
    """Read a manifest and resolve every subject.

    Args:
        url: a manifest (YAML, JSON, JSONL, CSV, Parquet, kohya TOML, Hugging Face metadata), or a
            folder of folders; a local path or any fsspec URL.
        strict: raise where anything is wrong; otherwise the faults are in the manifest.

    Raises:
        ManifestError: with every fault, if there is an error and ``strict``; if the file cannot be
            read at all, always.
    """
    rows = open_rows(url)
    resolver = Resolver(rows.head)
    register = _Register()
    for row, subject, faults in _resolved(rows.subjects, resolver):
        register.add(row, subject, faults)
    told = dict.fromkeys((*rows.faults, *resolver.faults, *register.faults))
    if not register.subjects and not told:
        told[Fault(url, "it holds no subjects", "add subjects")] = None
    manifest = Manifest(url, tuple(register.subjects), tuple(told), register.places)
    if strict and manifest.errors:
        raise invalid(url, manifest.faults)
    return manifest


def invalid(source: str, faults: Sequence[Fault]) -> ManifestError:
    """The error that says everything that is wrong with a manifest."""
    count = sum(fault.severity == "error" for fault in faults)
    message = f"{source} has {count} fault{'s' if count > 1 else ''}"
    return ManifestError(message, "mend them all and try again", faults)


def _resolved(
    rows: Iterable[Row], resolver: Resolver
) -> Iterator[tuple[Row, Subject | None, list[Fault]]]:
    """Every row with what it resolves to, in order."""
    rows = iter(rows)
    with ThreadPoolExecutor(REMOTE_THREADS) as pool:
        while chunk := list(islice(rows, CHUNK_ROWS)):
            is_remote = any("://" in str(row.value.get("photos", row.base)) for row in chunk)
            results = (pool.map if is_remote else map)(resolver.resolve, chunk)
            for row, (subject, faults) in zip(chunk, results, strict=True):
                yield row, subject, faults


class _Register:
    """Collects subjects and tells ids and names that are given twice."""

    def __init__(self) -> None:
        self.subjects: list[Subject] = []
        self.faults: list[Fault] = []
        self.places: dict[str, Place] = {}
        self._ids: dict[str, str] = {}
        self._names: dict[tuple[str, str], str] = {}

    def add(self, row: Row, subject: Subject | None, faults: list[Fault]) -> None:
        """Take one resolved row; the first of two equal ids stays."""
        self.faults += faults
        place = f"{row.file}:{row.line}" if row.line else row.file
        name = str(row.value.get("id", ""))
        if name:
            first = self._ids.setdefault(name.casefold(), place)
            if first is not place:
                message = f"the id `{name}` is given twice; first in {first}"
                self.faults.append(
                    row.fault(("id",), message, "give each subject an id of its own")
                )
                return
        if subject is None:
            return
        field = shown_field((*row.prefix, "photos"))
        self.places[subject.id] = Place(row.file, row.line_of(("photos",)), field, row.base)
        served = (subject.namespace.casefold(), subject.name.casefold())
        first = self._names.setdefault(served, place)
        if first is not place:
            message = f"`{subject.namespace}/{subject.name}` names two subjects; first in {first}"
            self.faults.append(row.fault(("name",), message, "give it another `name`"))
        elif not any(fault.severity == "error" for fault in faults):
            self.subjects.append(subject)
