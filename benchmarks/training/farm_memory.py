"""A long run: does the memory of driver and lanes stay flat?

    python benchmarks/training/farm_memory.py --subjects 1000 --steps 50

Renders subjects, trains all of them as `farm run` does on Ray, and samples the resident memory of
the driver and of every lane as adapters are committed. Memory is flat if it does not grow after the
first hundred jobs. Writes ``farm-memory-<n>cpu-<date>.{md,png,json}`` into ``benchmarks/``.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).parents[1]
MIB = 2**20


class Sampler:
    """A view that records memory by the number of committed adapters."""

    def __init__(self) -> None:
        self.points: list[dict[str, float]] = []
        self._began = time.perf_counter()

    def show(self, snapshot: Any, news: Sequence[Any]) -> None:
        with open("/proc/self/statm") as file:
            own = int(file.read().split()[1]) * 4096
        lanes = [lane.rss_bytes for lane in snapshot.lanes if lane.rss_bytes]
        if not lanes:
            return
        point = {
            "seconds": round(time.perf_counter() - self._began, 1),
            "committed": snapshot.counts["committed"],
            "driver_mib": own / MIB,
            "lane_mib": max(lanes) / MIB,
        }
        if not self.points or point["seconds"] - self.points[-1]["seconds"] >= 2:
            self.points.append(point)
            print(json.dumps(point), flush=True)


def growth(points: list[dict[str, float]], name: str, after: int) -> float:
    """Growth in MiB from the ``after``-th adapter to the end, from means of ten samples each."""
    rest = [point[name] for point in points if point["committed"] >= after]
    part = max(1, min(10, len(rest) // 3))
    return sum(rest[-part:]) / part - sum(rest[:part]) / part


def plot(points: list[dict[str, float]], after: int, path: Path) -> None:
    """Plot memory by the number of committed adapters."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 4))
    committed = [point["committed"] for point in points]
    for name in ("driver_mib", "lane_mib"):
        axes.plot(committed, [point[name] for point in points], label=name[:-4])
    axes.axvline(after, color="0.7", linewidth=1)
    axes.set(xlabel="adapters committed", ylabel="resident MiB", ylim=(0, None))
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--subjects", type=int, default=1000)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--base", default="embedded")
    parser.add_argument("--in-process", action="store_true")
    arguments = parser.parse_args()

    from farm.cli.commands.demo import write_demo_manifest
    from farm.training.execute import execute_run, prepare_run
    from farm.training.lane.settings import SampleSettings
    from farm.training.run.request import RunRequest

    sampler = Sampler()
    with tempfile.TemporaryDirectory() as folder:
        manifest = write_demo_manifest(Path(folder), arguments.subjects, arguments.steps)
        request = RunRequest(
            str(manifest),
            str(Path(folder) / "store"),
            base=arguments.base,
            executor="local" if arguments.in_process else "ray",
            samples=SampleSettings(per_prompt=0),
            recipe={
                "num_prior_images": 16,
                "checkpoint_every": 100_000,
                "rank": 4,
                "target_modules": ["to_q", "to_k", "to_v", "to_out.0"],
            },
        )
        summary = execute_run(prepare_run(request), view=sampler)
    after = min(100, arguments.subjects // 4)
    grown = {name: growth(sampler.points, name, after) for name in ("driver_mib", "lane_mib")}
    today = datetime.date.today().isoformat()
    stem = HERE / f"farm-memory-{os.cpu_count()}cpu-{today}"
    facts = summary.to_json() | {"growth": grown, "after": after, "points": sampler.points}
    stem.with_suffix(".json").write_text(json.dumps(facts) + "\n")
    plot(sampler.points, after, stem.with_suffix(".png"))
    stem.with_suffix(".md").write_text(
        f"# {summary.jobs} subjects in one manifest, {arguments.steps} steps each, {today}\n\n"
        f"`{arguments.base}` base on {os.cpu_count()} cores, load average "
        f"{os.getloadavg()[0]:.1f}: {summary.committed} committed, {summary.failed} failed, in "
        f"{summary.seconds / 60:.1f} minutes. From adapter number {after} to the end, the "
        f"driver's memory changed by {grown['driver_mib']:+.1f} MiB and the lane's by "
        f"{grown['lane_mib']:+.1f} MiB.\n\n![memory]({stem.name}.png)\n\n"
        "Command: `python benchmarks/training/farm_memory.py`\n"
    )
    print(stem.with_suffix(".md").read_text())


if __name__ == "__main__":
    main()
