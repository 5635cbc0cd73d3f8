"""A run's jobs in the store: read back from blocks, the index, or an older version's file."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from support.assignments import PLAIN, assignment

from farm.errors import UserError
from farm.recipe import Recipe
from farm.storage import Store
from farm.training.dispatch.messages import Assignment
from farm.training.dispatch.run_jobs import RunJobs
from farm.training.run.job_files import (
    read_assignments,
    read_keys,
    read_run_jobs,
    read_subjects,
    write_assignments,
)

JOBS, INDEX = "runs/r/jobs.jsonl.gz", "runs/r/jobs.index.json.gz"


@pytest.fixture
def jobs() -> list[Assignment]:
    """More than two blocks, of several recipes, classes and priorities."""
    recipes = [PLAIN, Recipe(steps=20), Recipe(steps=20, rank=8)]
    return [
        assignment(f"s{n}", recipes[n % 3], noun=("cat", "dog")[n % 2], priority=n % 4)
        for n in range(150)
    ]


def assert_same(run: RunJobs, jobs: list[Assignment]) -> None:
    assert list(run) == [item.spec.key for item in jobs]
    for item in reversed(jobs):
        key, subject = item.spec.key, item.spec.subject
        number = run.number[key]
        assert run.assignment(key) == item
        assert run.subject(key) == subject.id
        assert run.prior_key(key) == item.spec.prior_key
        assert run.columns.recipes[run.columns.recipe_of[number]] == subject.recipe
        assert run.columns.priorities[number] == subject.priority


def test_jobs_come_back_whole_in_the_manifests_order(
    tmp_path: Path, jobs: list[Assignment]
) -> None:
    store = Store(tmp_path)
    write_assignments(store, "r", jobs)
    assert read_assignments(store, "r") == jobs
    assert_same(read_run_jobs(store, "r"), jobs)
    assert_same(RunJobs.of(jobs), jobs)
    assert list(read_subjects(store, "r").items()) == [
        (item.spec.key, item.spec.subject.id) for item in jobs
    ]


def test_without_a_matching_index_it_is_made_from_the_jobs(
    tmp_path: Path, jobs: list[Assignment]
) -> None:
    store = Store(tmp_path)
    write_assignments(store, "r", jobs)
    index = store.read(INDEX)
    for torn in (b"", index[: len(index) // 2], gzip.compress(b"[]"), gzip.compress(b"{")):
        store.write(INDEX, torn)
        assert_same(read_run_jobs(store, "r"), jobs)
        assert (
            read_keys(store, "r")
            == list(read_subjects(store, "r"))
            == [job.spec.key for job in jobs]
        )
    write_assignments(store, "r", jobs[:100])
    # killed between the two writes: the index is that of the earlier jobs
    store.write(INDEX, index)
    assert_same(read_run_jobs(store, "r"), jobs[:100])


def test_the_file_of_an_older_farm_is_read(tmp_path: Path, jobs: list[Assignment]) -> None:
    store = Store(tmp_path)
    lines = [
        json.dumps({"spec": item.spec.model_dump(mode="json"), "names": item.names})
        for item in jobs
    ]
    store.write(JOBS, gzip.compress("\n".join(lines).encode(), mtime=0))
    assert_same(read_run_jobs(store, "r"), jobs)
    assert len(read_subjects(store, "r")) == len(jobs)


def test_an_unknown_run_is_reported_with_the_runs_that_there_are(
    tmp_path: Path, jobs: list[Assignment]
) -> None:
    store = Store(tmp_path)
    write_assignments(store, "r", jobs[:1])
    for read in (read_assignments, read_run_jobs, read_keys, read_subjects):
        with pytest.raises(UserError, match="no run x") as caught:
            read(store, "x")
        assert "runs in this store: r" in str(caught.value) + str(caught.value.__dict__)
