"""A run's jobs in the store: their full specifications in blocks, and an index over all of them.

    runs/<run_id>/jobs.jsonl.gz      one line of JSON per job, compressed in blocks
    runs/<run_id>/jobs.index.json.gz  keys, subjects and other fields needed for all jobs at once

Owns both files. The index only saves time and memory: if it is missing, as in runs of older
versions, or does not match, it is rebuilt from the jobs.
"""

from __future__ import annotations

import gzip
import io
import json
import zlib
from array import array
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import fields
from typing import Any

from farm.errors import UserError
from farm.intake.job import PriorSpec
from farm.keys import bytes_digest
from farm.model_imports.gc_pause import gc_paused
from farm.recipe import Recipe
from farm.storage import Store
from farm.training.dispatch.job_blocks import JobBlocks, batches, decode
from farm.training.dispatch.messages import Assignment
from farm.training.dispatch.run_jobs import JobColumns, RunJobs

__all__ = [
    "count_jobs",
    "read_assignments",
    "read_keys",
    "read_run_jobs",
    "read_subjects",
    "write_assignments",
]

VERSION = 1
COLUMNS = ("sha256", "blocks", *(column.name for column in fields(JobColumns)))


def _jobs_path(run_id: str) -> str:
    return f"runs/{run_id}/jobs.jsonl.gz"


def _index_path(run_id: str) -> str:
    return f"runs/{run_id}/jobs.index.json.gz"


# -- writing --------------------------------------------------------------------------------------


def write_assignments(
    store: Store, run_id: str, assignments: RunJobs | Iterable[Assignment]
) -> None:
    """Store the run's jobs. Keys and names never change; sample prompts, priorities and photo
    locations are those of the last start."""
    run = assignments if isinstance(assignments, RunJobs) else RunJobs.pack(assignments)
    data = run.blocks.join()
    store.write(_jobs_path(run_id), data)
    index = _index_file(run.columns, run.blocks.sizes, bytes_digest(data))
    store.write(_index_path(run_id), index)


def _index_file(columns: JobColumns, sizes: Sequence[int], sha256: str) -> bytes:
    """One line per column, so that a reader decodes only the columns it needs."""
    body = {
        "version": VERSION,
        "jobs": len(columns.keys),
        "sha256": sha256,
        "blocks": list(sizes),
        "keys": columns.keys,
        "subjects": columns.subjects,
        "recipes": [recipe.model_dump(mode="json") for recipe in columns.recipes],
        "recipe_of": columns.recipe_of.tolist(),
        "priors": columns.priors,
        "prior_of": columns.prior_of.tolist(),
        "priorities": columns.priorities.tolist(),
    }
    lines = (f"{name}={json.dumps(values, separators=(',', ':'))}" for name, values in body.items())
    return gzip.compress("\n".join(lines).encode(), compresslevel=1, mtime=0)


# -- reading --------------------------------------------------------------------------------------


def read_assignments(store: Store, run_id: str) -> list[Assignment]:
    """The run's jobs in the manifest's order, all in memory.

    Raises:
        UserError: if there is no such run.
    """
    return [decode(line) for line in _lines(_read_jobs(store, run_id))]


def read_run_jobs(store: Store, run_id: str) -> RunJobs:
    """The run's jobs in the manifest's order, using less than a kilobyte of memory each.

    Raises:
        UserError: if there is no such run.
    """
    with gc_paused():
        data = _read_jobs(store, run_id)
        index = _read_index(store, run_id)
        if index is not None and index["sha256"] == bytes_digest(data):
            return RunJobs(_columns(index), JobBlocks.cut(data, index["blocks"]))
        columns, blocks = JobColumns(), JobBlocks()
        numbers = _Numbers(columns)
        for lines in batches(_lines(data)):
            blocks.add(lines)
            for line in lines:
                numbers.add(json.loads(line)["spec"])
        return RunJobs(columns, blocks)


def count_jobs(store: Store, run_id: str) -> int:
    """The number of the run's jobs.

    Raises:
        UserError: if there is no such run.
    """
    index = _read_index(store, run_id, ("jobs",))
    return int(index["jobs"]) if index is not None else len(read_keys(store, run_id))


def read_keys(store: Store, run_id: str) -> list[str]:
    """The keys of the run's jobs, in the manifest's order.

    Raises:
        UserError: if there is no such run.
    """
    index = _read_index(store, run_id, ("keys",))
    return index["keys"] if index is not None else list(read_run_jobs(store, run_id))


def read_subjects(store: Store, run_id: str) -> dict[str, str]:
    """The subject's id of every job key, in the manifest's order.

    Raises:
        UserError: if there is no such run.
    """
    index = _read_index(store, run_id, ("keys", "subjects"))
    if index is not None:
        return dict(zip(index["keys"], index["subjects"], strict=True))
    run = read_run_jobs(store, run_id)
    return dict(zip(run, run.columns.subjects, strict=True))


def _read_jobs(store: Store, run_id: str) -> bytes:
    try:
        return store.read(_jobs_path(run_id))
    except FileNotFoundError as error:
        known = ", ".join(name for name in store.list("runs") if name) or "none"
        raise UserError(
            f"no run {run_id} in {store.url}", f"runs in this store: {known}"
        ) from error


def _read_index(
    store: Store, run_id: str, names: Collection[str] | None = None
) -> dict[str, Any] | None:
    """Columns of the index (None: all); None if there is no index that this version can read."""
    columns: dict[str, Any] = {}
    try:
        with gzip.open(io.BytesIO(store.read(_index_path(run_id)))) as file:
            for line in file:
                name, _, values = line.partition(b"=")
                if names is None or name.decode() in names or name == b"version":
                    columns[name.decode()] = json.loads(values)
                if names is not None and len(columns) > len(names):
                    break
    except (FileNotFoundError, ValueError, TypeError, EOFError, OSError, zlib.error):
        return None
    is_whole = columns.keys() >= set(names or COLUMNS)
    return columns if is_whole and columns.get("version") == VERSION else None


def _columns(index: dict[str, Any]) -> JobColumns:
    return JobColumns(
        keys=index["keys"],
        subjects=index["subjects"],
        recipes=[Recipe.model_validate(recipe) for recipe in index["recipes"]],
        recipe_of=array("I", index["recipe_of"]),
        priors=index["priors"],
        prior_of=array("i", index["prior_of"]),
        priorities=array("q", index["priorities"]),
    )


def _lines(data: bytes) -> Iterator[str]:
    """The lines of a compressed file, decompressed in pieces."""
    with gzip.open(io.BytesIO(data)) as file:
        for line in file:
            yield line.decode().rstrip("\n")


class _Numbers:
    """Fills columns from JSON specifications without building objects."""

    def __init__(self, columns: JobColumns) -> None:
        self._columns = columns
        self._recipes: dict[str, int] = {}
        self._priors: dict[str, int] = {}

    def add(self, spec: dict[str, Any]) -> None:
        columns, subject = self._columns, spec["subject"]
        columns.keys.append(spec["key"])
        columns.subjects.append(subject["id"])
        columns.priorities.append(subject["priority"])
        columns.recipe_of.append(
            self._number(self._recipes, subject["recipe"], columns.recipes, Recipe.model_validate)
        )
        prior = spec["prior"]
        columns.prior_of.append(
            -1 if prior is None else self._number(self._priors, prior, columns.priors, _prior_key)
        )

    @staticmethod
    def _number(
        known: dict[str, int], body: Any, values: list[Any], make: Callable[[Any], Any]
    ) -> int:
        text = json.dumps(body, sort_keys=True)
        number = known.get(text)
        if number is None:
            value = make(body)
            if value not in values:
                values.append(value)
            number = known[text] = values.index(value)
        return number


def _prior_key(body: Any) -> str:
    return PriorSpec.model_validate(body).key
