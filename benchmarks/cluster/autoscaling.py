"""Nodes come with the first lanes and go after the last: a run on an autoscaling cluster.

    python benchmarks/cluster/autoscaling.py

Starts a real head with Ray's autoscaler, whose nodes are raylets on this machine: the node types of
cluster.yaml, scaled down to one core, without GPUs. Two manifests with class images run one after
the other. A watcher notes once a second which nodes are alive. Wanted: no node before the first
run, spot nodes first, no node 30 s after the idle time, and nodes again for the second manifest.

Writes ``autoscaling-<n>cpu-<date>.md`` into ``benchmarks/``.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).parents[1]
sys.path.insert(0, str(HERE.parent / "tests"))

from support.manifests import write_manifest  # noqa: E402
from support.ray_head import BIN, Head, ray_head  # noqa: E402

IDLE_S = 15
RECIPE = {"steps": 40, "crops_per_photo": 1, "num_prior_images": 4}
WATCH = """
import json, sys, time, ray
ray.init(address=sys.argv[1], logging_level="error", log_to_driver=False)
while True:
    alive = [n["Labels"].get("market", "head") for n in ray.nodes() if n["Alive"]]
    print(json.dumps([time.time(), sorted(alive)]), flush=True)
    time.sleep(1)
"""


def small_cluster() -> dict[str, Any]:
    """cluster.yaml with nodes of one core."""
    cluster: dict[str, Any] = yaml.safe_load((HERE.parent / "cluster.yaml").read_text())
    kept = ("cluster_name", "max_workers", "upscaling_speed", "head_node_type")
    small = {name: cluster[name] for name in kept} | {"idle_timeout_minutes": IDLE_S / 60}
    types = {}
    for name, kind in cluster["available_node_types"].items():
        cores = 0 if name == cluster["head_node_type"] else 1
        own = {key: kind[key] for key in ("labels", "priority") if key in kind}
        limits = {"min_workers": 0, "max_workers": min(2, kind["max_workers"])}
        types[name] = own | limits | {"resources": {"CPU": cores}, "node_config": {}}
        if cores:
            types[name]["idle_timeout_s"] = IDLE_S
    return small | {"available_node_types": types, "max_workers": 2}


class Nodes:
    """The nodes of a cluster by second."""

    def __init__(self, log: Path) -> None:
        self._log = log

    def seconds(self) -> list[tuple[float, list[str]]]:
        """Time and the markets of the living nodes, without the head."""
        rows = [json.loads(line) for line in self._log.read_text().splitlines() if line[:1] == "["]
        return [(at, [market for market in markets if market != "head"]) for at, markets in rows]

    def await_number(self, wanted: int, seconds: float) -> float:
        """Wait until as many nodes are alive; returns when that was."""
        until = time.time() + seconds
        while time.time() < until:
            rows = self.seconds()
            if rows and len(rows[-1][1]) == wanted:
                return rows[-1][0]
            time.sleep(0.5)
        raise AssertionError(f"not {wanted} nodes within {seconds:.0f} s: {rows[-3:]}")


@contextmanager
def watched(head: Head, log: Path) -> Iterator[Nodes]:
    """Watch a cluster's nodes in another process."""
    with log.open("wb") as output:
        watcher = subprocess.Popen(
            [sys.executable, "-c", WATCH, head.gcs],
            env=head.environment(RAY_AUTH_MODE="token"),
            stdout=output,
            stderr=output,
        )
    try:
        yield Nodes(log)
    finally:
        watcher.kill()
        watcher.wait()


def run_manifest(head: Head, folder: Path, nodes: Nodes, subjects: int) -> dict[str, float]:
    """Run a manifest and wait until its nodes are gone."""
    manifest = write_manifest(folder, subjects, recipe=RECIPE)
    began = time.time()
    done = subprocess.run(
        [
            *(str(BIN / "farm"), "run", str(manifest), "--base", "tiny", "--slots", "2"),
            *("--store", str(folder / "store"), "--address", head.gcs, "--cpus", "1"),
            *("--nodes", "2", "--no-cards", "--no-report", "--samples", "0", "--yes", "--plain"),
            "--json",
        ],
        env=head.environment(RAY_AUTH_MODE="token"),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    ended = time.time()
    summary = json.loads(done.stdout)
    gone = nodes.await_number(0, IDLE_S + 90)
    during = [(at, markets) for at, markets in nodes.seconds() if began <= at <= ended]
    first = next(at for at, markets in during if markets)
    return {
        "first_s": first - began,
        "run_s": ended - began,
        "most": max(len(markets) for _, markets in during),
        "on_demand": max(markets.count("on-demand") for _, markets in during),
        "gone_s": gone - ended,
        "committed": summary["committed"],
    }


def page(rows: list[dict[str, float]], load: float) -> str:
    """The page, in Markdown."""
    lines = [
        "# Autoscaling: nodes come with the first lanes and go after the last",
        "",
        f"{datetime.date.today()}, {os.cpu_count()} CPU cores shared with other work (load average"
        f" {load:.1f}), Ray's autoscaler with raylets on one machine, `cluster.yaml`'s node types"
        f" with one core each, idle time {IDLE_S} s. `python benchmarks/cluster/autoscaling.py`;"
        " the head of the script describes the method. Each node holds one lane; the class images"
        " are generated on the same nodes, and neither they nor the finished lanes keep one.",
        "",
        "| | first manifest | second manifest | wanted |",
        "|---|---|---|---|",
    ]
    texts = (
        ("committed", "adapters committed", ".0f", "all"),
        ("first_s", "first node, seconds after the command's start", ".0f", ""),
        ("most", "most nodes at a time", ".0f", "2"),
        ("on_demand", "on-demand nodes among them", ".0f", "0"),
        ("run_s", "run, s", ".0f", ""),
        ("gone_s", "last node gone, seconds after the run's end", ".0f", f"≤ {IDLE_S + 30}"),
    )
    for name, text, form, wanted in texts:
        values = " | ".join(format(row[name], form) for row in rows)
        lines.append(f"| {text} | {values} | {wanted} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--subjects", type=int, default=4)
    parser.add_argument("--out", type=Path, default=HERE)
    arguments = parser.parse_args()
    load = os.getloadavg()[0]
    with (
        tempfile.TemporaryDirectory(prefix="farm-scaling-") as folder,
        ray_head(num_cpus=0, autoscaling=small_cluster()) as head,
        watched(head, Path(folder) / "nodes.log") as nodes,
    ):
        nodes.await_number(0, 120)
        rows = [
            run_manifest(head, Path(folder) / name, nodes, arguments.subjects)
            for name in ("first", "second")
        ]
    text = page(rows, load)
    name = f"autoscaling-{os.cpu_count()}cpu-{datetime.date.today()}.md"
    (arguments.out / name).write_text(text)
    print(text)
    for row in rows:
        assert row["committed"] == arguments.subjects
        assert row["gone_s"] <= IDLE_S + 30
        assert not row["on_demand"]


if __name__ == "__main__":
    main()
