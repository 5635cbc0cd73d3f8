"""Serve a Zipf trace over many adapters in six ways on one machine, and compare them.

    python benchmarks/serving/serve_engine.py                           # the embedded base, CPU
    python benchmarks/serving/serve_engine.py --base sd15 --device cuda --only engine --steps 25 \\
        --requests 512 --slots 129                                      # a GPU

Without an installed farm, set ``PYTHONPATH=.``; tenacity is required, Ray and matplotlib are not.

Writes ``serving-<hardware>-<date>.{md,csv,png}``. Methods alternate in rounds, each on the same
slice of the trace; the table gives the median over the rounds. Both wall time and CPU seconds (all
threads) are measured, because other programs on a busy machine hardly change the latter. Each
method loads its own base, and every image is decoded.
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import statistics
import tempfile
import time
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from serve_methods import (
    Generated,
    GroupingDiffusers,
    OneAdapterBatches,
    Ours,
    PeftMixed,
    PlainDiffusers,
)
from serve_report import Speed, write_report
from serve_swaps import measure_swaps
from serve_trace import Workload, make_workload

from farm.base.loading import load_base
from farm.serving.config import EngineConfig
from farm.serving.request import RequestLimits

LOADS = (0.25, 0.5, 0.75, 0.9)
"""Of the engine's own saturated throughput."""


def main() -> None:
    options = _options()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        report = run(options, Path(folder))
    write_report(report, Path(options.out), f"serving-{options.hardware}-{options.date}")


def run(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """All measurements, as plain values."""
    base = _base(options)
    workload = make_workload(
        base,
        folder,
        adapters=options.adapters,
        requests=options.requests * options.rounds,
        rank=options.rank,
        steps=options.steps,
        guidance=options.guidance,
        zipf=options.zipf,
    )
    ours = _ours("engine, mixed adapters", base, workload, options, folder, rows=options.rows)
    ours.engine.wait_until_measured()
    rows = ours.engine.capacity.rows
    pictures = max(1, rows // 2)
    waiting = 2 * pictures
    ours._waiting = waiting
    knee = ours.engine.capacity.seconds_by_rows
    bare = _ours(
        "engine, bare base", _base(options), workload, options, folder, rows=rows, bare=True
    )
    bare._waiting = waiting
    methods: list[Any] = [ours, bare]
    if options.only != "engine":
        methods += [
            PlainDiffusers(_base(options), workload),
            GroupingDiffusers(_base(options), workload, pictures, waiting),
            PeftMixed(_base(options), workload, pictures, options.rank),
            OneAdapterBatches(_base(options), workload, pictures, options.rank, waiting),
        ]
    speeds, pictures_of = _race(methods, workload, options)
    speed = statistics.median(one.wall for one in speeds[ours.name])
    latencies = {load: _latencies(ours, workload, speed * load, options) for load in LOADS}
    stats = ours.engine.stats()
    ours.close()
    bare.close()
    swaps = measure_swaps(_base(options), workload, options, folder / "swaps", rows)
    return {
        "options": vars(options),
        "hardware": _hardware(options),
        "load": os.getloadavg()[1],
        "versions": _versions(),
        "rows": rows,
        "knee": knee,
        "waiting": waiting,
        "num_asked": len({r.adapters[0][0].key for r in workload.requests}),
        "speeds": speeds,
        "baseline": bare.name,
        "ours": ours.name,
        "latencies": latencies,
        "swaps": swaps,
        "differences": _differences(pictures_of, ours.name),
        "stats": stats,
    }


def _base(options: argparse.Namespace) -> Any:
    return load_base(options.base, device=options.device)


def _ours(
    name: str, base: Any, workload: Workload, options: argparse.Namespace, folder: Path,
    *, rows: int | None, bare: bool = False,
) -> Ours:  # fmt: skip
    config = EngineConfig(
        num_slots=options.slots,
        max_rank=options.rank,
        batch_rows=rows,
        max_waiting=10_000,
        max_wait_s=1e6,
        decode_batch=options.decode_batch,
        limits=RequestLimits(max_adapters=1),
    )
    return Ours(name, base, workload, config, folder / "cache", 1, bare=bare)


def _race(
    methods: list[Any], workload: Workload, options: argparse.Namespace
) -> tuple[dict[str, list[Speed]], dict[str, Generated]]:
    """Images per second of each method in each round, and the images of the last round."""
    speeds: dict[str, list[Speed]] = {method.name: [] for method in methods}
    generated: dict[str, Generated] = {}
    for method in methods:  # warm up, not timed
        method.generate(workload.requests[:2])
    for number in range(options.rounds):
        part = workload.requests[number * options.requests : (number + 1) * options.requests]
        for method in methods:
            mine = part[: options.slow] if method.is_slow else part
            started_s, started_cpu_s = time.perf_counter(), time.process_time()
            generated[method.name] = method.generate(mine)
            wall = len(mine) / (time.perf_counter() - started_s)
            cpu = len(mine) / (time.process_time() - started_cpu_s)
            speeds[method.name].append(Speed(wall, cpu))
            print(
                f"round {number + 1}: {method.name}: {wall:.2f} pictures/s, "
                f"{cpu:.2f} per CPU second",
                flush=True,
            )
    return speeds, generated


def _latencies(
    ours: Ours, workload: Workload, rate: float, options: argparse.Namespace
) -> dict[str, float]:
    requests = [
        replace(request, id=f"{request.id}-{rate}") for request in workload.requests[: options.open]
    ]
    seconds = ours.generate_at(requests, rate, seed=1)
    p50, p95, p99 = np.percentile(seconds, [50, 95, 99])
    print(f"{rate:.2f} pictures/s: p50 {p50:.2f} s, p95 {p95:.2f} s, p99 {p99:.2f} s")
    return {"rate": rate, "p50": p50, "p95": p95, "p99": p99}


def _differences(generated: dict[str, Generated], ours: str) -> dict[str, int]:
    """The largest difference in any value of any image between ours and each other method."""
    found = {}
    for name, pictures in generated.items():
        if name != ours and "bare" not in name:
            pairs = [
                (generated[ours][key].astype(int), picture) for key, picture in pictures.items()
            ]
            found[name] = int(max(np.abs(mine - other).max() for mine, other in pairs))
    return found


def _hardware(options: argparse.Namespace) -> str:
    if options.device != "cpu":
        return torch.cuda.get_device_name()
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = cpuinfo.read_text().splitlines()
        name = next((x.split(":")[1].strip() for x in lines if x.startswith("model name")), name)
    threads = f"{options.threads} thread{'s' if options.threads > 1 else ''}"
    return f"{name}, {os.cpu_count()} cores, {threads}"


def _versions() -> str:
    names = ("torch", "diffusers", "peft", "transformers", "numpy")
    found = ", ".join(f"{name} {metadata.version(name)}" for name in names)
    return f"Python {platform.python_version()}, {found}"


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base", default="embedded")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--only", choices=["all", "engine"], default="all")
    parser.add_argument("--adapters", type=int, default=200)
    parser.add_argument("--zipf", type=float, default=1.0, help="exponent of the popularity")
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--guidance", type=float, default=5.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--requests", type=int, default=64, help="per round")
    parser.add_argument("--slow", type=int, default=12, help="per round, one picture at a time")
    parser.add_argument("--open", type=int, default=100, help="requests at each load")
    parser.add_argument("--slots", type=int, default=65)
    parser.add_argument("--rows", type=int, help="rows of a full pass; measured if not given")
    parser.add_argument("--decode-batch", type=int, default=4)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--out", default=str(Path(__file__).parents[1]))
    parser.add_argument("--hardware", help="name for the file; default: the device's")
    parser.add_argument("--date", default=datetime.date.today().isoformat())
    options = parser.parse_args()
    if options.hardware is None:
        options.hardware = f"cpu{os.cpu_count()}"
        if options.device != "cpu":
            options.hardware = torch.cuda.get_device_name().lower().replace(" ", "-")
    return options


if __name__ == "__main__":
    main()
