"""A real ``ray start --head`` for tests: private folder, own ports, a token."""

from __future__ import annotations

import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

BIN = Path(sys.executable).parent
HEAD_ID = "f" * 51 + "00000"
FAKE_NODES = {
    "RAY_FAKE_CLUSTER": "1",
    "RAY_enable_autoscaler_v2": "1",
    "AUTOSCALER_UPDATE_INTERVAL_S": "1",
    "RAY_CLOUD_INSTANCE_ID": HEAD_ID,
    "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD_ID,
}
NO_COMMANDS = (
    "setup_commands",
    "head_setup_commands",
    "worker_setup_commands",
    "cluster_synced_files",
)
"""Without them, Ray's autoscaler ends at once under a provider of type ``external``."""
LEAN = ("--include-log-monitor=false",)
LEAN_HEAD = (*LEAN, "--include-dashboard=false", "--no-monitor")
"""Options that save some ten seconds of CPU time."""
HOOKS = Path(__file__).parent / "chaos" / "hooks"
FEW_STATISTICS = {
    "REPORTER_UPDATE_INTERVAL_MS": "60000",
    "METRICS_RECORD_INTERVAL_S": "60",
    "SCAN_EVENT_DIR_INTERVAL_SECONDS": "60",
    "RAY_metrics_report_interval_ms": "60000",
    "RAY_prestart_worker_first_driver": "0",
    "LOG_NAME_UPDATE_INTERVAL_S": "5",
}
"""Of several nodes on one machine, Ray's statistics and its looks at folders take a large share of
a core."""
RAY_WITHOUT_CLIENT = (
    "from ray.scripts import scripts; "
    "scripts.get_ray_client_dependency_error = lambda: ImportError(); scripts.main()"
)
"""The command ``ray``, which starts no server for Ray's client: 1.5 CPU seconds."""
PORTS_APART = 61
END_S = 15.0
"""How long a head may take to end on request; one whose server was killed does not end."""


@dataclass(frozen=True)
class Head:
    """A running head."""

    dashboard: str
    gcs: str
    token: str
    temp_dir: str
    process: subprocess.Popen[bytes]
    workers: list[subprocess.Popen[bytes]] = field(default_factory=list)
    env: Mapping[str, str] = field(default_factory=dict)
    """Variables of every node, beside Ray's own."""
    is_lean: bool = False
    """Whether only what runs need is started."""

    def environment(self, **more: str) -> dict[str, str]:
        """Environment of a client with the token."""
        return clean_environment() | {"RAY_AUTH_TOKEN": self.token} | more

    def start_worker(self, name: str, num_cpus: int = 1, **env: str) -> subprocess.Popen[bytes]:
        """Start another node on this machine, with a resource of its name; killed with the head."""
        ports = free_ports(3, beyond=2000 + 10 * len(self.workers))
        log = Path(self.temp_dir) / f"{name}.log"
        worker = subprocess.Popen(
            [
                *(str(BIN / "ray"), "start", "--block", f"--address={self.gcs}"),
                *(f"--num-cpus={num_cpus}", f'--resources={{"{name}": 1}}'),
                *("--node-ip-address=127.0.0.1", "--min-worker-port=0", "--max-worker-port=0"),
                *(f"--dashboard-agent-listen-port={ports[0]}",),
                *(f"--dashboard-agent-grpc-port={ports[1]}", f"--metrics-export-port={ports[2]}"),
                *(LEAN if self.is_lean else ()),
            ],
            env=self.environment(RAY_AUTH_MODE="token", **{**self.env, **env}),
            stdout=log.open("wb"),
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self.workers.append(worker)
        return worker

    def node_ids(self) -> dict[str, str]:
        """Id of each live worker by its name, from the dashboard: a process that connects to the
        cluster takes more than a second of CPU time."""
        request = urllib.request.Request(
            f"{self.dashboard}/api/v0/nodes", headers={"Authorization": f"Bearer {self.token}"}
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            nodes = json.load(answer)["data"]["result"]["result"]
        return {
            name: node["node_id"]
            for node in nodes
            if node["state"] == "ALIVE"
            for name in node["resources_total"]
            if name.startswith("worker")
        }

    def kill_gcs(self) -> None:
        """Kill the head's own server with -9."""
        for process in psutil.Process(self.process.pid).children(recursive=True):
            if "gcs_server" in process.name():
                process.kill()

    def kill_worker(self, worker: subprocess.Popen[bytes]) -> None:
        """Kill all processes of a node with -9 at once, as when a machine is lost."""
        family = psutil.Process(worker.pid).children(recursive=True)
        for process in family:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        worker.kill()
        worker.wait()


def clean_environment() -> dict[str, str]:
    """This process's environment without Ray's variables."""
    return {name: value for name, value in os.environ.items() if not name.startswith("RAY_")} | {
        "OMP_NUM_THREADS": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
    }


def slow_lanes(folder: Path, seconds: float) -> dict[str, str]:
    """Variables for a head and its nodes: lanes wait this long after each step, as if a device
    computed it, and training costs no CPU time while a test waits for something else."""
    state = folder / "pace.json"
    state.write_text(json.dumps({"pace_s": seconds}))
    path = os.pathsep.join([str(HOOKS), os.environ.get("PYTHONPATH", "")])
    return {"PYTHONPATH": path, "FARM_CHAOS_STATE": str(state)}


def free_ports(count: int, *, beyond: int = 0) -> list[int]:
    """Unused ports, below those that Ray assigns to workers.

    Processes that look at the same time look far apart, although their ids are neighbours: a port
    is unused until the head listens, seconds later.
    """
    ports: list[int] = []
    candidate = 20000 + beyond + os.getpid() * PORTS_APART % 7000
    while len(ports) < count:
        candidate += 1
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", candidate))
            except OSError:
                continue
        ports.append(candidate)
    return ports


@contextmanager
def ray_head(
    *,
    num_cpus: int = 2,
    env: Mapping[str, str] | None = None,
    autoscaling: Mapping[str, Any] | None = None,
    is_lean: bool = False,
) -> Iterator[Head]:
    """Start a head, wait until it answers, and stop only this head at the end.

    Args:
        autoscaling: a cluster file without a provider, whose nodes are started on this machine.
            Ray calls the head's node type ``ray.head.default``.
        is_lean: without a dashboard, and so without Ray's jobs; without an autoscaler.
    """
    token = (env or {}).get("RAY_AUTH_TOKEN") or secrets.token_hex(16)
    # the paths of Ray's sockets may hold 107 bytes
    with tempfile.TemporaryDirectory(prefix="fr-", ignore_cleanup_errors=True) as folder:
        gcs, dashboard, *others = free_ports(5)
        env = FEW_STATISTICS | dict(env or {})
        environment = clean_environment() | {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": token,
            "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
            **env,
        }
        scaling: list[str] = []
        if autoscaling is not None:
            environment |= FAKE_NODES
            config = Path(folder) / "cluster.json"  # JSON is YAML
            config.write_text(json.dumps(_on_this_machine(autoscaling, gcs)))
            scaling = [f"--autoscaling-config={config}"]
        log = Path(folder) / "head.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                _command(folder, (gcs, dashboard, *others), num_cpus, scaling, is_lean=is_lean),
                env=environment,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        head = Head(
            f"http://127.0.0.1:{dashboard}",
            f"127.0.0.1:{gcs}",
            token,
            folder,
            process,
            env=env,
            is_lean=is_lean,
        )
        try:
            _await_port(head, log) if is_lean else _await_dashboard(head, log)
            yield head
        finally:
            for worker in head.workers:
                if worker.poll() is None:
                    head.kill_worker(worker)
            family = [] if process.poll() is not None else _family(process.pid)
            # `ray start --block` ends the processes that it started
            process.send_signal(signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                process.wait(END_S)
            for left in (process, *family):
                with suppress(psutil.NoSuchProcess):
                    left.kill()
            process.wait()


def _command(
    folder: str, ports: Sequence[int], num_cpus: int, scaling: Sequence[str], *, is_lean: bool
) -> list[str]:
    """``ray start`` of a head."""
    gcs, dashboard, *agents = ports
    return [
        *(sys.executable, "-c", RAY_WITHOUT_CLIENT, "start"),
        *("--head", "--block", f"--port={gcs}"),
        *(f"--num-cpus={num_cpus}", f"--temp-dir={folder}"),
        *("--node-ip-address=127.0.0.1", "--dashboard-host=127.0.0.1"),
        *(f"--dashboard-port={dashboard}",),
        # another Ray on this machine uses the defaults
        *(f"--dashboard-agent-listen-port={agents[0]}",),
        *(f"--dashboard-agent-grpc-port={agents[1]}",),
        *(f"--metrics-export-port={agents[2]}",),
        *("--min-worker-port=0", "--max-worker-port=0", *scaling),
        *(LEAN_HEAD if is_lean else ()),
    ]


def _on_this_machine(cluster: Mapping[str, Any], gcs_port: int) -> dict[str, Any]:
    """A cluster file whose nodes are raylets on this machine, and whose head has the node type that
    ``ray start`` reports."""
    types, head_type = dict(cluster["available_node_types"]), "ray.head.default"
    types[head_type] = types.pop(cluster["head_node_type"])
    changed = {"available_node_types": types, "head_node_type": head_type}
    return {**cluster, **changed, **dict.fromkeys(NO_COMMANDS, []), "provider": _provider(gcs_port)}


def _family(pid: int) -> list[psutil.Process]:
    return psutil.Process(pid).children(recursive=True)


def _provider(gcs_port: int) -> dict[str, Any]:
    """Starts nodes on this machine; ``type: fake_multinode`` needs a file that the wheel lacks."""
    package = "ray.autoscaler._private.fake_multi_node.node_provider"
    return {
        "type": "external",
        "module": f"{package}.FakeMultiNodeProvider",
        "gcs_address": f"127.0.0.1:{gcs_port}",
        "head_node_id": HEAD_ID,
        "launch_multiple": True,
    }


def _await_port(head: Head, log: Path) -> None:
    """Wait until the head's own server listens."""
    host, _, port = head.gcs.rpartition(":")
    until = time.monotonic() + 180
    while time.monotonic() < until:
        assert head.process.poll() is None, log.read_text()
        with suppress(OSError):
            socket.create_connection((host, int(port)), timeout=5).close()
            return
        time.sleep(0.2)
    raise AssertionError(f"no head: {log.read_text()}")


def _await_dashboard(head: Head, log: Path) -> None:
    until = time.monotonic() + 180
    while time.monotonic() < until:
        assert head.process.poll() is None, log.read_text()
        try:
            url = f"{head.dashboard}/api/authentication_mode"
            with urllib.request.urlopen(url, timeout=5) as answer:
                assert b"token" in answer.read()
                return
        except OSError:
            time.sleep(0.5)
    raise AssertionError(f"no dashboard: {log.read_text()}")
