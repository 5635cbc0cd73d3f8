"""What every test shares: no network, private caches, one thread per torch process."""

from __future__ import annotations

import functools
import gc
import os
import sys
from pathlib import Path

import httpcore2
import pytest
from hypothesis import settings
from xdist.scheduler import LoadFileScheduling

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
if "PYTEST_XDIST_WORKER" in os.environ:  # the suite runs more processes than there are cores
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# reading the authorities' certificates takes longer than most requests, and the tests make
# hundreds of HTTP clients
httpcore2.default_ssl_context = functools.cache(httpcore2.default_ssl_context)

# how long an example takes says nothing on a busy machine
settings.register_profile("farm", deadline=None)
settings.load_profile("farm")

DOCS = "tests/docs"
LONGEST_FILES = (
    "test_run_on_ray",
    "test_app",
    "test_blocks",
    "test_chaos",
    "test_cluster_runs",
    "test_submit",
    "test_journey",
    "test_terminal",
)
"""Files that take minutes. They start first, so that no process ends long after the other. The
first two start Ray in the test process itself, which must not yet have used another cluster's
token: Ray keeps the first one for as long as the process lives."""


def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> LoadFileScheduling:
    """A process per file, but one process for all of ``tests/docs``, which share README's work."""
    return _Scheduling(config, log)


class _Scheduling(LoadFileScheduling):  # type: ignore[misc]  # xdist has no types
    def _split_scope(self, nodeid: str) -> str:
        scope: str = super()._split_scope(nodeid)
        return DOCS if DOCS in scope else scope


gc.disable()  # while every module of tests is imported


def pytest_collection_finish() -> None:
    """No later collection looks at the imported modules again."""
    gc.enable()
    gc.freeze()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    rank = {name: place for place, name in enumerate(LONGEST_FILES)}
    items.sort(key=lambda item: rank.get(item.path.stem, len(rank)))


@pytest.fixture(autouse=True)
def _private_cache(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Digests and fetched bases go to a folder of this test session."""
    folder = Path(tmp_path_factory.getbasetemp()) / "cache"
    monkeypatch.setenv("FARM_CACHE", str(folder))


@pytest.fixture(autouse=True)
def _own_width(monkeypatch: pytest.MonkeyPatch) -> None:
    """The width of the terminal, which pytest-xdist exports, does not change what is printed."""
    monkeypatch.delenv("COLUMNS", raising=False)


@pytest.fixture(autouse=True)
def _own_store_clients() -> None:
    """No S3 client of an earlier test, which may know another endpoint, is used again."""
    s3fs = sys.modules.get("s3fs")
    if s3fs is not None:
        s3fs.S3FileSystem.clear_instance_cache()
