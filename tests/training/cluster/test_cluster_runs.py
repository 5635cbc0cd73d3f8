"""Runs on a cluster of several nodes whose parts come and go: real raylets, one machine."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.manifests import write_manifest
from support.ray_head import BIN, Head, ray_head

from farm.storage import Store
from farm.training.dispatch.ledger import Event, read_events
from farm.training.run.files import list_runs

pytestmark = pytest.mark.slow

RECIPE = {"steps": 20_000, "crops_per_photo": 1, "prior_rows": 0, "checkpoint_every": 10_000}


class Run:
    """A driver in a process of its own, on the head."""

    def __init__(self, head: Head, folder: Path, *options: str, subjects: int = 2) -> None:
        manifest = write_manifest(folder / "m", subjects, recipe=RECIPE)
        self.store, self.log = Store(folder / "store"), folder / "log"
        with self.log.open("wb") as output:
            self.process = subprocess.Popen(
                [
                    *(str(BIN / "farm"), "run", str(manifest), "--base", "tiny", "--slots", "2"),
                    *("--store", self.store.url, "--address", head.gcs, "--no-cards"),
                    *("--no-report", "--samples", "0", "--yes", "--plain", "--json", *options),
                ],
                env=head.environment(RAY_AUTH_MODE="token"),
                stdout=subprocess.DEVNULL,
                stderr=output,
            )

    def events(self) -> list[Event]:
        return [one for run in list_runs(self.store) for one in read_events(self.store, run)]

    def lanes(self) -> set[str]:
        """Lanes that have trained, by place and process."""
        return {event.lane for event in self.events() if event.kind == "progress"}

    def await_true(self, condition: Callable[[], object], seconds: float = 200) -> None:
        until = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < until, self.log.read_text()
            assert self.process.poll() is None, self.log.read_text()
            time.sleep(0.2)

    def stop(self) -> float:
        """Ctrl-C; returns how long the end took."""
        began = time.monotonic()
        self.process.send_signal(signal.SIGINT)
        assert self.process.wait(120) == 130, self.log.read_text()
        return time.monotonic() - began


@pytest.fixture
def head() -> Iterator[Head]:
    with ray_head(num_cpus=0) as running:
        yield running


def start_nodes(head: Head, count: int) -> dict[str, str]:
    for number in range(count):
        head.start_worker(f"worker{number}")
    until = time.monotonic() + 120
    while len(ids := head.node_ids()) < count:
        assert time.monotonic() < until
        time.sleep(0.5)
    return ids


def test_lanes_of_a_draining_node_save_their_jobs_and_others_train_them(
    head: Head, tmp_path: Path
) -> None:
    ids = start_nodes(head, 1)
    run = Run(head, tmp_path, "--nodes", "1")
    run.await_true(lambda: any(e.kind == "progress" and e.step > 0 for e in run.events()))
    start_nodes(head, 1)  # a second `worker0`, to which the jobs can go
    deadline = ("--deadline-remaining-seconds", "300")
    subprocess.run(
        [
            *(str(BIN / "ray"), "drain-node", "--address", head.gcs, "--node-id", ids["worker0"]),
            *("--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "notice", *deadline),
        ],
        env=head.environment(RAY_AUTH_MODE="token"),
        check=True,
        capture_output=True,
    )
    (first,) = run.lanes()
    run.await_true(lambda: run.lanes() - {first})
    events = run.events()
    assert not [event for event in events if event.kind == "lost"]
    released = [event for event in events if event.kind == "released"]
    assert {event.lane for event in released} == {first}
    # no step is lost: the checkpoint is the last step that was trained
    trained = max(event.step for event in events if event.lane == first)
    resumed = min(e.step for e in events if e.kind == "progress" and e.lane != first)
    assert resumed >= trained
    run.stop()


def test_a_stop_ends_within_ten_seconds_where_no_node_has_come(head: Head, tmp_path: Path) -> None:
    run = Run(head, tmp_path, "--nodes", "2", "--cpus", "4", "--node-timeout", "2")
    run.await_true(lambda: "have not come" in run.log.read_text())
    assert "each must hold 1 lane(s) of 3 CPU" in run.log.read_text()
    assert run.stop() < 15  # ten, and what a busy machine adds


def test_a_lost_head_ends_the_driver_with_its_own_exit_code(head: Head, tmp_path: Path) -> None:
    run = Run(head, tmp_path, "--nodes", "1", "--cpus", "4", "--node-timeout", "2")
    run.await_true(lambda: "have not come" in run.log.read_text())
    head.kill_gcs()
    assert run.process.wait(120) == 6, run.log.read_text()
    text = " ".join(run.log.read_text().split())
    assert "has not answered for" in text
    assert "the same command resumes" in text
    (name,) = list_runs(run.store)
    (claim,) = run.store.list(f"runs/{name}/drivers")
    assert json.loads(run.store.read(f"runs/{name}/drivers/{claim}"))["released"]
