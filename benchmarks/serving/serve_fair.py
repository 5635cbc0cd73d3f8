"""Latency of one caller's small images while another caller fills the engine.

    python benchmarks/serving/serve_fair.py [OLD_TREE] --out PAGE

A caller asks for images of two steps, one at a time: alone, then while another keeps 16 guided
images of 25 steps open. With ``OLD_TREE``, a checkout of an earlier version, both versions run in
processes of their own, in turns, so that other programs disturb both alike.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

NUM_OPEN, NUM_IMAGES, PAUSE_S = 16, 20, 0.15
TREE = Path(__file__).parents[2]


def work() -> dict[str, Any]:
    """What one version measures."""
    import torch

    from farm.base.loading import load_base
    from farm.serving.config import EngineConfig
    from farm.serving.engine.engine import Engine
    from farm.serving.request import GenerationRequest, Ticket

    torch.set_num_threads(1)
    with Engine(load_base("tiny"), None, EngineConfig(batch_rows=8)) as engine:
        flood: list[Ticket] = []

        def ask(number: int, tenant: str, steps: int, guidance: float) -> Ticket:
            prompt = f"a photo of a cat, {number}"
            return engine.submit(
                GenerationRequest(
                    id=f"{tenant}-{number}", prompt=prompt, seed=number, steps=steps,
                    guidance=guidance, tenant=tenant,
                )
            )  # fmt: skip

        def fill() -> None:
            while sum(not ticket.ended for ticket in flood) < NUM_OPEN:
                flood.append(ask(len(flood), "flood", 25, 5.0))

        def latencies(is_busy: bool) -> list[float]:
            taken = []
            for number in range(NUM_IMAGES):
                if is_busy:
                    fill()
                    time.sleep(PAUSE_S)
                    fill()
                started_s = time.monotonic()
                ask(number, "caller", 2, 1.0).result(120)
                taken.append(time.monotonic() - started_s)
            return taken

        latencies(False)
        alone = latencies(False)
        before, began_s = engine.stats(), time.monotonic()
        busy = latencies(True)
        after, took_s = engine.stats(), time.monotonic() - began_s
        for ticket in flood:
            ticket.cancel()
    rows = after.rows - before.rows
    return {"alone": alone, "busy": busy, "rows_per_s": rows / took_s}


def measure(tree: Path) -> dict[str, Any]:
    """Run one version in a process of its own."""
    command = [sys.executable, __file__, "--work"]
    environment = {**os.environ, "PYTHONPATH": str(tree)}
    done = subprocess.run(
        command, env=environment, cwd=tree, stdout=subprocess.PIPE, text=True, check=True
    )
    return dict(json.loads(done.stdout.splitlines()[-1]))


def row_of(name: str, runs: list[dict[str, Any]]) -> str:
    """A line of the table, of all runs of a version."""
    alone = sorted(value for run in runs for value in run["alone"])
    busy = sorted(value for run in runs for value in run["busy"])
    rows = median(run["rows_per_s"] for run in runs)
    cells = [
        name,
        *(f"{1e3 * value:.0f} ms" for value in (median(alone), alone[-1])),
        f"{1e3 * median(busy):.0f} ms: {median(busy) / median(alone):.1f} times",
        f"{1e3 * busy[-1]:.0f} ms: {busy[-1] / alone[-1]:.1f} times",
        f"{rows:.0f}",
    ]
    return f"| {' | '.join(cells)} |"


def page_of(found: dict[str, list[dict[str, Any]]], load: float) -> str:
    lines = "\n".join(row_of(name, runs) for name, runs in found.items())
    return f"""# A caller below its share beside one that fills the engine

{os.cpu_count()} CPU cores ({platform.machine()}), Python {platform.python_version()}, \
{datetime.now(UTC):%Y-%m-%d}; load {load:.1f} before, from other work. Written by \
`benchmarks/serving/serve_fair.py`: the tiny base, passes of 8 rows, one thread for tensors. One \
caller generates images of two steps, one at a time; the other keeps {NUM_OPEN} guided images of \
25 steps open. The versions ran in turns.

| | median alone | slowest alone | median beside the other | slowest beside the other | \
row-steps per second, both |
|---|---|---|---|---|---|
{lines}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("old", type=Path, nargs="?")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work:
        print(json.dumps(work()))
        return
    trees = {"before": arguments.old.resolve()} if arguments.old else {}
    trees["this version"] = TREE
    load = os.getloadavg()[0]
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in trees}
    for _ in range(arguments.rounds):
        for name, tree in trees.items():
            found[name].append(measure(tree))
    page = page_of(found, load)
    if arguments.out:
        arguments.out.write_text(page)
    print(page)


if __name__ == "__main__":
    main()
