"""A real ``ray start --head`` of the tests' own: private folder, own ports, a token."""

from __future__ import annotations

import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

BIN = Path(sys.executable).parent


@dataclass(frozen=True)
class Head:
    """A running head."""

    dashboard: str
    gcs: str
    token: str
    temp_dir: str
    process: subprocess.Popen[bytes]

    def environment(self, **more: str) -> dict[str, str]:
        """Of a client that holds the token."""
        return clean_environment() | {"RAY_AUTH_TOKEN": self.token} | more


def clean_environment() -> dict[str, str]:
    """This process's environment without what it says of Ray."""
    return {name: value for name, value in os.environ.items() if not name.startswith("RAY_")} | {
        "OMP_NUM_THREADS": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
    }


def free_ports(count: int) -> list[int]:
    """Ports that nothing listens on, below those that Ray gives to workers."""
    ports: list[int] = []
    candidate = 20000 + os.getpid() % 9000
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
def ray_head(*, num_cpus: int = 2, env: Mapping[str, str] | None = None) -> Iterator[Head]:
    """Start a head, wait for its dashboard, stop it and nothing else at the end."""
    token = secrets.token_hex(16)
    # the paths of Ray's sockets may hold 107 bytes
    with tempfile.TemporaryDirectory(prefix="fr-", ignore_cleanup_errors=True) as folder:
        gcs, dashboard, client = free_ports(3)
        environment = clean_environment() | {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": token,
            "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
            **(env or {}),
        }
        log = Path(folder) / "head.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [
                    *(str(BIN / "ray"), "start", "--head", "--block", f"--port={gcs}"),
                    *(f"--num-cpus={num_cpus}", f"--temp-dir={folder}"),
                    *("--node-ip-address=127.0.0.1", "--dashboard-host=127.0.0.1"),
                    *(f"--dashboard-port={dashboard}", f"--ray-client-server-port={client}"),
                    *("--min-worker-port=0", "--max-worker-port=0"),
                ],
                env=environment,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        head = Head(f"http://127.0.0.1:{dashboard}", f"127.0.0.1:{gcs}", token, folder, process)
        try:
            _await_dashboard(head, log)
            yield head
        finally:
            process.send_signal(signal.SIGTERM)  # `ray start --block` ends what it started
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)


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
