"""Fixtures shared by the training tests: a tiny base and jobs, one Ray, a private S3 server."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    from support.s3 import s3_server

    with s3_server() as endpoint:
        yield endpoint


@pytest.fixture(scope="module")
def ray_here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A local Ray with two logical CPUs, in a private folder."""
    os.environ.setdefault("RAY_worker_niceness", "0")
    import ray

    from farm.training.cluster.start import start_ray

    start_ray(
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        _temp_dir=str(tmp_path_factory.mktemp("ray", numbered=True)),
    )
    yield ray
    ray.shutdown()


@pytest.fixture
def base() -> Any:
    """A tiny real base, fresh for each test."""
    from farm.base.loading import load_base

    return load_base("tiny")


@pytest.fixture
def make_job() -> Any:
    """Builds a tiny training job from a base and a number."""
    from support.jobs import build_job

    return build_job
