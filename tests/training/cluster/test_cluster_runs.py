"""Runs on a cluster whose nodes join and leave: real raylets on one machine, one shared cluster."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from support.manifests import write_manifest
from support.ray_head import BIN, Head, ray_head, slow_lanes
from support.training.metadata_server import metadata_server

from farm.storage import Store
from farm.training.dispatch.ledger import Event, read_events
from farm.training.run.files import list_runs

pytestmark = pytest.mark.slow

RECIPE = {"steps": 50_000, "crops_per_photo": 1, "prior_rows": 0, "checkpoint_every": 50_000}
"""No job ends, and none writes a checkpoint unless its lane is asked to return."""
PACE_S = 0.1
MISSING = ("--gpu", "A100", "--node-timeout", "2")
"""Nodes that this cluster does not have."""


class Run:
    """A driver in its own process, on the head."""

    def __init__(self, head: Head, folder: Path, *options: str, subjects: int = 2) -> None:
        manifest = write_manifest(folder / "m", subjects, recipe=RECIPE)
        self.store, self.log, self.out = Store(folder / "store"), folder / "log", folder / "out"
        with self.log.open("wb") as output:
            self.process = subprocess.Popen(
                [
                    *(str(BIN / "farm"), "run", str(manifest), "--base", "tiny", "--slots", "2"),
                    *("--store", self.store.url, "--address", head.gcs, "--no-cards"),
                    *("--no-report", "--samples", "0", "--yes", "--plain", "--json", *options),
                ],
                env=head.environment(RAY_AUTH_MODE="token"),
                stdout=self.out.open("wb"),
                stderr=output,
            )

    def events(self) -> list[Event]:
        return [one for run in list_runs(self.store) for one in read_events(self.store, run)]

    def steps(self) -> dict[str, int]:
        """Steps that each lane has trained, by place and process, in the order of their start."""
        found: dict[str, int] = {}
        for event in self.events():
            if event.kind == "progress":
                found[event.lane] = max(event.step, found.get(event.lane, 0))
        return found

    def training_lane(self) -> str:
        """The lane that is training; waits until it has trained some steps."""
        self.await_true(lambda: list(self.steps().values())[-1:] > [0])
        return list(self.steps())[-1]

    def await_next_lane(self, lane: str) -> str:
        """The lane that trains the jobs of this one."""
        self.await_true(lambda: list(self.steps())[-1] != lane)
        return list(self.steps())[-1]

    def assert_no_step_lost(self, lane: str, successor: str) -> None:
        """The successor resumed where the lane released its jobs."""
        events = self.events()
        assert not [event for event in events if event.kind == "lost" and event.lane == lane]
        released = {e.job: e.step for e in events if e.kind == "released" and e.lane == lane}
        assert len(released) == 2
        assert min(released.values()) > 0
        resumed: dict[str, int] = {}
        for event in events:
            if event.kind == "progress" and event.lane == successor:
                resumed.setdefault(event.job, event.step)
        assert all(resumed[job] >= released[job] for job in resumed)

    def await_true(self, condition: Callable[[], object], seconds: float = 200) -> None:
        until = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < until, self.log.read_text()
            assert self.process.poll() is None, self.log.read_text()
            time.sleep(0.2)

    def kill(self) -> None:
        """End the process if it is still running."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    def stop(self, *, twice: bool = False) -> float:
        """Send Ctrl-C; returns how long the process took to end."""
        began = time.monotonic()
        self.process.send_signal(signal.SIGINT)
        if twice:
            self.await_true(lambda: "stopping:" in self.log.read_text())
            self.process.send_signal(signal.SIGINT)
        code = self.process.wait(120)
        # a process that ends by the second signal itself: shells report 130 for it too
        assert code == 130 or (twice and code == -signal.SIGINT), self.log.read_text()
        return time.monotonic() - began


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    pace = slow_lanes(tmp_path_factory.mktemp("pace"), PACE_S)
    with ray_head(num_cpus=0, env=pace) as running:
        running.start_worker("worker0")
        yield running


@pytest.fixture(scope="module")
def run(head: Head, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """A run that trains on one node while tests remove parts of the cluster."""
    await_node(head, "worker0")
    started = Run(head, tmp_path_factory.mktemp("run"), "--nodes", "1", "--cpus", "1")
    yield started
    started.kill()


@pytest.fixture
def launch(head: Head, tmp_path: Path) -> Iterator[Callable[..., Run]]:
    """Starts runs in folders with their names; all of them end with the test."""
    runs: list[Run] = []

    def start(name: str, *options: str) -> Run:
        runs.append(Run(head, tmp_path / name, *options))
        return runs[-1]

    yield start
    for one in runs:
        one.kill()


def await_node(head: Head, name: str) -> str:
    """A node's id, once it has joined. Nodes that were killed or drained may still be listed."""
    until = time.monotonic() + 120
    while (node_id := head.node_ids().get(name)) is None:
        assert time.monotonic() < until
        time.sleep(0.2)
    return node_id


def processes_of(head: Head, title: str) -> list[psutil.Process]:
    """Ray's workers of this title on the cluster's nodes."""
    found = []
    for root in (head.process, *(node for node in head.workers if node.poll() is None)):
        for process in psutil.Process(root.pid).children(recursive=True):
            if title in " ".join(process.cmdline() or [process.name()]):
                found.append(process)
    return found


def test_a_killed_train_controller_gets_its_lanes_back(head: Head, run: Run) -> None:
    lane = run.training_lane()
    (controller,) = processes_of(head, "TrainController")
    # it only manages lanes: with a model library's seconds of imports, they would start later
    assert not [one.path for one in controller.memory_maps() if "libtorch" in one.path]
    controller.kill()
    assert run.await_next_lane(lane) != lane


def test_a_lane_that_receives_sigterm_saves_its_jobs_and_returns(head: Head, run: Run) -> None:
    lane = run.training_lane()
    (worker,) = processes_of(head, "RayTrainWorker")
    worker.terminate()
    run.assert_no_step_lost(lane, run.await_next_lane(lane))


def test_a_preemption_notice_moves_jobs_to_another_node_without_a_lost_step(
    head: Head, run: Run
) -> None:
    lane = run.training_lane()
    node_id = await_node(head, "worker0")
    head.start_worker("worker1")
    await_node(head, "worker1")
    with metadata_server() as server:
        watcher = subprocess.Popen(
            [
                *(str(BIN / "farm"), "drain", "--cloud", "gcp"),
                *("--endpoint", server.endpoint, "--address", head.gcs, "--node-id", node_id),
            ],
            env=head.environment(RAY_AUTH_MODE="token"),
        )
        server.answers["/computeMetadata/v1/instance/preempted"] = "TRUE"
        assert watcher.wait(60) == 0
    run.assert_no_step_lost(lane, run.await_next_lane(lane))


def test_the_jobs_of_a_lost_node_are_freed_when_ray_knows(head: Head, run: Run) -> None:
    lane = run.training_lane()
    head.start_worker("worker2")
    await_node(head, "worker2")
    (worker,) = processes_of(head, "RayTrainWorker")
    (node,) = [
        one
        for one in head.workers
        if one.poll() is None and worker in psutil.Process(one.pid).children(recursive=True)
    ]
    head.kill_worker(node)
    run.await_next_lane(lane)
    lost = [event for event in run.events() if event.kind == "lost" and event.lane == lane]
    assert len(lost) == 2
    assert all("died" in event.reason for event in lost)  # not: was silent for 60 s


def test_a_pod_that_is_drained_before_its_end_loses_no_step(head: Head, run: Run) -> None:
    """``farm drain --now``, the ``preStop`` hook of Kubernetes."""
    lane = run.training_lane()
    node_id = await_node(head, "worker2")
    head.start_worker("worker3")
    await_node(head, "worker3")
    done = subprocess.run(
        [
            *(str(BIN / "farm"), "drain", "--now", "--seconds", "20"),
            *("--address", head.gcs, "--node-id", node_id),
        ],
        env=head.environment(RAY_AUTH_MODE="token"),
        capture_output=True,
        text=True,
        check=True,
    )
    assert "drains" in done.stderr
    run.assert_no_step_lost(lane, run.await_next_lane(lane))


def test_a_stop_saves_running_jobs_and_ends_with_130(run: Run) -> None:
    lane = run.training_lane()
    run.stop()
    events = run.events()
    assert len([e for e in events if e.kind == "released" and e.lane == lane]) == 2


def test_no_line_of_ray_reached_the_terminal_while_its_parts_were_killed(run: Run) -> None:
    """The tests above killed a controller, a lane and a node."""
    text = run.out.read_text() + run.log.read_text()
    assert "was lost" in text or "died" in text  # the farm's own words
    for words in ("raylet", "Ray", "worker died", "traceback", "autoscaler"):
        assert words not in text, text


def test_a_stop_ends_within_ten_seconds_where_no_node_has_come(
    launch: Callable[..., Run],
) -> None:
    run = launch("run", "--nodes", "2", *MISSING)
    run.await_true(lambda: "have not come" in run.log.read_text())
    text = " ".join(run.log.read_text().split())
    assert "2 of 2 nodes have not come" in text
    assert re.search(r"each must hold \d+ lane\(s\) of [\d.]+ CPU and [\d.]+ GPU", text)
    assert "the cluster has " in text
    assert run.stop() < 15  # ten, plus a margin for a busy machine


def test_a_second_ctrl_c_ends_at_once(launch: Callable[..., Run]) -> None:
    run = launch("run", "--nodes", "1", *MISSING)
    run.await_true(lambda: "have not come" in run.log.read_text())
    assert (
        run.stop(twice=True) < 15
    )  # a second or two, plus the start of processes on a busy machine


def test_a_lost_head_ends_the_driver_with_its_own_exit_code(
    head: Head, launch: Callable[..., Run]
) -> None:
    """The last test of this cluster."""
    waiting = launch("waiting", "--nodes", "1", *MISSING)
    starting = launch("starting", "--nodes", "1", *MISSING)
    waiting.await_true(lambda: "have not come" in waiting.log.read_text())
    starting.await_true(lambda: list_runs(starting.store))  # its driver connects to Ray now
    head.kill_gcs()
    assert waiting.process.wait(120) == 6, waiting.log.read_text()
    text = " ".join(waiting.log.read_text().split())
    assert "has not answered for" in text
    assert "the same command resumes" in text
    assert starting.process.wait(120) in (2, 6), starting.log.read_text()
    text = " ".join(starting.log.read_text().split())
    assert "error: " in text
    assert "Traceback" not in text
    for run in (waiting, starting):
        (name,) = list_runs(run.store)
        (claim,) = run.store.list(f"runs/{name}/drivers")
        assert json.loads(run.store.read(f"runs/{name}/drivers/{claim}"))["released"]
