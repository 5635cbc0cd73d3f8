"""A store that fails while a run writes to it: a real file system, a real S3 server, real runs."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest
from support.manifests import QUICK, request, write_manifest
from support.s3 import BUCKET, CREDENTIALS, flaky_proxy, free_port

from farm.adapters.files.folder import load_adapter
from farm.adapters.registry import Registry
from farm.base.loading import load_base
from farm.errors import StoreUnusable
from farm.storage import Store
from farm.training.dispatch.messages import Notice, Snapshot
from farm.training.execute import run_manifest

RECIPE = QUICK | {"steps": 20, "checkpoint_every": 5, "prior_rows": 0}
PATIENCE_S = 1.5
LOOK_S = 0.05
"""Training takes half a second: the store fails before a job is committed."""


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A file system of 8 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("this user may not mount file systems")
    monkeypatch.setattr("farm.training.run.patience.UNUSABLE_S", PATIENCE_S)
    monkeypatch.setattr("farm.training.run.in_process.LOOK_S", LOOK_S)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


class Saboteur:
    """Changes the disk once training has begun, and records the lines for the user."""

    def __init__(self, act: Callable[[], None], repair: Callable[[], None] | None = None) -> None:
        self._act: Callable[[], None] | None = act
        self._repair = repair
        self.acted_at = 0.0
        self.lines: list[str] = []

    def show(self, snapshot: Snapshot, news: Sequence[Notice]) -> None:
        self.lines += [notice.text for notice in news]
        if self._act is not None and snapshot.done_share > 0.1:
            self._act()
            self._act, self.acted_at = None, time.monotonic()
        shown = ("the run stops in", "does not answer, retrying for")
        if self._repair is not None and any(
            words in line for line in self.lines for words in shown
        ):
            self._repair()
            self._repair = None


def fill(disk: Path) -> None:
    with open(disk / "ballast", "wb", buffering=0) as file:
        try:
            while True:
                file.write(os.urandom(1 << 16))
        except OSError:
            while True:  # down to the last page
                try:
                    file.write(b"x")
                except OSError:
                    return


def assert_whole(store: Store, num: int, folder: Path) -> None:
    registry, base = Registry(store), load_base("tiny")
    names = list(registry.names())
    assert len(names) == num
    for named in names:
        registry.fetch(named.job_key, folder / named.name)
        assert load_adapter(folder / named.name, base).is_finite
    assert not [path for path in Path(store.url).rglob(".*") if path.is_file()]


def test_a_full_disk_ends_the_run_with_its_reason_and_nothing_half_written(
    disk: Path, tmp_path: Path
) -> None:
    manifest, store = write_manifest(tmp_path / "m", 2, recipe=RECIPE), Store(disk / "store")
    view, stop = Saboteur(lambda: fill(disk)), threading.Event()
    with pytest.raises(StoreUnusable, match="the store is full") as caught:
        run_manifest(request(manifest, store.url), view=view, stop=stop)
    assert time.monotonic() - view.acted_at < 30
    assert caught.value.exit_code == 7
    assert "free space" in caught.value.remedy
    assert any("the store is full" in line and "stops in" in line for line in view.lines)
    (disk / "ballast").unlink()
    # a full disk may also refuse the release of the lock, whose holder, this process, is alive
    assert run_manifest(request(manifest, store.url, take_over=True)).committed == 2
    assert_whole(store, 2, tmp_path / "adapters")


def test_space_that_is_freed_in_time_saves_the_run(
    disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("farm.training.run.patience.UNUSABLE_S", 60.0)
    manifest, store = write_manifest(tmp_path / "m", 2, recipe=RECIPE), Store(disk / "store")
    view = Saboteur(lambda: fill(disk), repair=(disk / "ballast").unlink)
    summary = run_manifest(request(manifest, store.url), view=view)
    assert (summary.committed, summary.failed) == (2, 0)
    assert "the store answers again" in view.lines
    assert_whole(store, 2, tmp_path / "adapters")


def test_a_disk_that_becomes_read_only_ends_the_run(disk: Path, tmp_path: Path) -> None:
    def remount(mode: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{mode}", str(disk)], check=True)

    manifest, store = write_manifest(tmp_path / "m", 2, recipe=RECIPE), Store(disk / "store")
    view = Saboteur(lambda: remount("ro"))
    with pytest.raises(StoreUnusable, match="the store is read-only"):
        run_manifest(request(manifest, store.url), view=view)
    remount("rw")
    # its claim could not be released; its holder is this process, which is alive
    assert run_manifest(request(manifest, store.url, take_over=True)).committed == 2
    assert_whole(store, 2, tmp_path / "adapters")


def test_an_object_store_that_refuses_connections_is_shown_and_survived(
    s3_endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("farm.retries.CALL_BUDGET_S", 0.5)
    monkeypatch.setattr("farm.training.run.in_process.LOOK_S", LOOK_S)
    monkeypatch.setattr("farm.training.run.patience.QUIET_S", 0.5)
    monkeypatch.setattr("farm.training.run.patience.REPEAT_S", 1.0)
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    port, never = free_port(), 10**9
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
    manifest, store = write_manifest(tmp_path / "m", 2, recipe=RECIPE), f"s3://{BUCKET}/outage"
    with ExitStack() as first, ExitStack() as second:
        first.enter_context(flaky_proxy(s3_endpoint, never, port=port))

        def answer_again() -> None:
            second.enter_context(flaky_proxy(s3_endpoint, never, port=port))

        view = Saboteur(first.close, repair=answer_again)
        summary = run_manifest(request(manifest, store), view=view)
        assert (summary.committed, summary.failed) == (2, 0)
        assert "the store answers again" in view.lines
