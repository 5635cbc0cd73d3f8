"""A Ray cluster whose head and nodes are killed and replaced: a head without CPUs and its nodes."""

from __future__ import annotations

import json
import os
import random
import secrets
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from subprocess import Popen

import psutil

from support.ray_head import HOOKS, Head, ray_head
from support.s3 import CREDENTIALS

MARK = "FARM_CHAOS_ROUND"
ANSWER_S = 2.0
END_S = 20.0
"""How long processes may take to end, such as the guard of a killed driver's lock."""
START_ATTEMPTS = 2
ADD_EVERY_S = 40.0
"""Seconds between two nodes that replace others: Ray gives each 30 s to start."""
HEAD_PATIENCE_S = "30"
"""After this long without a head, Ray ends the cluster's processes; its default is 60."""


class Cluster:
    """Head and nodes of one round."""

    def __init__(self, folder: Path, endpoint: str, *, num_nodes: int, num_cpus: int) -> None:
        self.folder, self.num_nodes, self._num_cpus = folder, num_nodes, num_cpus
        self._state = folder / "state.json"
        self._clock: dict[str, float] = {}
        self._pace_s = 0.0
        self._write_state()
        (folder / "tmp").mkdir()
        self.env = CREDENTIALS | {
            "AWS_ENDPOINT_URL": endpoint,
            "PYTHONPATH": os.pathsep.join([str(HOOKS), os.environ.get("PYTHONPATH", "")]),
            "RAY_worker_niceness": "0",
            "TMPDIR": str(folder / "tmp"),
            "FARM_CACHE": str(folder / "cache"),
            "FARM_CHAOS_STATE": str(self._state),
            "HF_HUB_OFFLINE": "1",
            MARK: str(folder),
            "RAY_gcs_rpc_server_reconnect_timeout_s": HEAD_PATIENCE_S,
            # one for all heads: this process reads it once
            "RAY_AUTH_TOKEN": os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(16)),
        }
        os.environ["RAY_AUTH_MODE"] = "token"
        self._stack = ExitStack()
        self._num_started = 0
        self._added_at = 0.0
        self.head: Head
        self.nodes: dict[str, Popen[bytes]] = {}

    def start(self) -> None:
        """Start a head and all nodes."""
        env = self.env | {"FARM_CHAOS_SCOPE": "head"}
        self.head = self._stack.enter_context(ray_head(num_cpus=0, env=env, is_lean=True))
        for _ in range(START_ATTEMPTS * self.num_nodes):
            if len(self.nodes) == self.num_nodes:
                break
            self._has_joined(self.add_node())  # one after the other: Ray gives each 30 s to start
        assert self.nodes, "no node has joined: the machine is too busy"

    def restart(self) -> None:
        """End what is left of the cluster, and start another."""
        self.close()
        self.start()

    def close(self) -> None:
        """End everything."""
        self.nodes.clear()
        self._stack.close()

    def driver_env(self) -> dict[str, str]:
        """The environment of a driver."""
        return self.head.environment(
            **(self.env | {"RAY_AUTH_MODE": "token", "FARM_CHAOS_SCOPE": "driver"})
        )

    def set_clock(self, offset_s: float, scope: str = "") -> None:
        """Let the clocks of a scope's processes jump; without a scope, correct all clocks."""
        self._clock = {scope: offset_s} if scope else {}
        self._write_state()

    def set_pace(self, seconds: float) -> None:
        """Let lanes wait this long after each step."""
        if seconds != self._pace_s:
            self._pace_s = seconds
            self._write_state()

    def _write_state(self) -> None:
        aside = self._state.with_suffix(".new")
        aside.write_text(json.dumps({"clock": self._clock, "pace_s": self._pace_s}))
        aside.replace(self._state)

    # -- nodes --------------------------------------------------------------------------------

    def add_node(self) -> str:
        """Start a node; returns its name."""
        name = f"worker{self._num_started}"
        self._num_started += 1
        self._added_at = time.monotonic()
        self.nodes[name] = self.head.start_worker(name, self._num_cpus, FARM_CHAOS_SCOPE=name)
        return name

    def tend_nodes(self) -> None:
        """Replace nodes that ended by themselves, such as by Ray's 30 s for a start."""
        for name in [name for name, node in self.nodes.items() if node.poll() is not None]:
            del self.nodes[name]
        is_due = time.monotonic() - self._added_at > ADD_EVERY_S
        if len(self.nodes) < self.num_nodes and is_due:
            self.add_node()

    def _has_joined(self, name: str) -> bool:
        """Wait until a node has joined; False, and it is forgotten, if it ends before."""
        while self.nodes[name].poll() is None:
            if name in self._node_ids():
                return True
            time.sleep(0.5)
        del self.nodes[name]
        return False

    def _node_ids(self) -> dict[str, str]:
        """Ids of living nodes by name; empty while the head does not answer."""
        from ray._raylet import GcsClient
        from ray.exceptions import RpcError

        try:
            infos = GcsClient(address=self.head.gcs).get_all_node_info(timeout=30).values()
        except RpcError:
            return {}
        living = [info for info in infos if info.state == 0]
        return {
            resource: info.node_id.hex()
            for info in living
            for resource in info.resources_total
            if resource.startswith("worker")
        }

    def kill_node(self, name: str) -> None:
        """Kill a node with -9, with all its processes."""
        node = self.nodes.pop(name)
        if node.poll() is None:
            self.head.kill_worker(node)

    def drain_node(self, name: str, seconds: float) -> None:
        """Send the drain notice that ``farm drain`` sends for a cloud."""
        from farm.training.cluster.preemption import drain_node

        drain_node(self.head.gcs, seconds, "chaos", node_id=self._node_ids()[name])

    # -- processes ----------------------------------------------------------------------------

    def processes(self, title: str) -> Iterator[tuple[str, psutil.Process]]:
        """Ray's workers with this title, each with the name of its node."""
        for name, root in {"head": self.head.process, **self.nodes}.items():
            with suppress(psutil.NoSuchProcess):
                for process in psutil.Process(root.pid).children(recursive=True):
                    with suppress(psutil.NoSuchProcess):
                        if title in " ".join(process.cmdline()):
                            yield name, process

    def pick(self, title: str) -> tuple[str, psutil.Process] | None:
        """One of them at random."""
        found = list(self.processes(title))
        return random.choice(found) if found else None

    def lane_name(self, process: psutil.Process) -> str:
        """The name in the ledger of the lane in a process; empty where it has none yet."""
        path = self.folder / f"lane-{process.pid}"
        path.unlink(missing_ok=True)
        with suppress(psutil.NoSuchProcess):
            process.send_signal(signal.SIGUSR2)
        until = time.monotonic() + ANSWER_S
        while not path.exists() and time.monotonic() < until:
            time.sleep(0.02)
        return path.read_text() if path.exists() else ""

    def left_over(self) -> list[str]:
        """Processes of this round that still run after a while."""
        until = time.monotonic() + END_S
        while (found := self._running()) and time.monotonic() < until:
            time.sleep(0.5)
        return found

    def _running(self) -> list[str]:
        found = []
        for process in psutil.process_iter(["cmdline"]):
            with suppress(psutil.Error, OSError):
                if process.pid != os.getpid() and (
                    process.environ().get(MARK) == str(self.folder)
                    and process.status() != psutil.STATUS_ZOMBIE
                ):
                    found.append(" ".join(process.info["cmdline"] or [process.name()])[:120])
        return found
