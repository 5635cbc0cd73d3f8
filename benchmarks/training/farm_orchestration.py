"""The farm's own cost per job: everything except decoding, training and generation.

    python benchmarks/training/farm_orchestration.py --jobs 1000

Runs many one-step jobs in one process (dispatcher, lane, publisher and ledger, as under Ray) and
measures CPU seconds. The cost of the work itself is subtracted: reading, decoding and encoding
photos, admitting and stepping, and writing adapter files in three formats. The rest is
orchestration: leases, ledger, commits, names, threads. Total wall seconds are also reported.
With ``--ray`` the same jobs, and a fifth of them, also run through `farm run` on Ray; the marginal
CPU cost of a job over all processes, minus the work itself, is orchestration including Ray.

Writes ``farm-orchestration-<n>cpu-<date>.md`` into ``benchmarks/``.
"""

from __future__ import annotations

import argparse
import datetime
import os
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).parents[1]
sys.path.insert(0, str(HERE.parent / "tests"))


class Meter:
    """CPU seconds of threads inside chosen functions."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._lock = threading.Lock()

    def wrap(self, owner: Any, name: str, label: str) -> None:
        inner: Callable[..., Any] = getattr(owner, name)

        def timed(*args: Any, **kwargs: Any) -> Any:
            began = time.thread_time()
            try:
                return inner(*args, **kwargs)
            finally:
                with self._lock:
                    self.seconds[label] += time.thread_time() - began

        setattr(owner, name, timed)


def through_ray(jobs: int, base: str, recipe: dict[str, Any]) -> float:
    """CPU seconds of all processes of `farm run` with this many jobs."""
    from farm_vs_plain import run_farm
    from support.manifests import write_manifest

    with tempfile.TemporaryDirectory() as folder:
        manifest = write_manifest(Path(folder) / "m", jobs, recipe=recipe, photos=1)
        return run_farm(manifest, Path(folder) / "store", base)["cpu_s"]


def read_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--ray", action="store_true", help="also through Ray, twice")
    parser.add_argument("--jobs", type=int, default=1000)
    parser.add_argument("--base", default="tiny")
    return parser.parse_args()


def main() -> None:
    arguments = read_arguments()
    import torch
    from support.manifests import request, write_manifest

    from farm.training.execute import execute_run, prepare_run
    from farm.training.lane import prefetch as preparer
    from farm.training.lane import publisher
    from farm.training.lane.encode import TrainingPrompts
    from farm.training.lane.settings import SampleSettings
    from farm.training.slots.trainer import SlotTrainer

    torch.set_num_threads(1)  # so that all work is counted on the calling thread
    meter = Meter()
    meter.wrap(preparer, "prepare_photos", "decode and encode")
    meter.wrap(SlotTrainer, "step", "train")
    meter.wrap(SlotTrainer, "admit", "train")
    meter.wrap(SlotTrainer, "weights", "train")
    meter.wrap(SlotTrainer, "release", "train")
    meter.wrap(TrainingPrompts, "__call__", "decode and encode")
    meter.wrap(publisher, "save_adapter", "adapter files")
    recipe = {"steps": 1, "prior_rows": 0, "num_prior_images": 0, "crops_per_photo": 1}
    with tempfile.TemporaryDirectory() as folder:
        manifest = write_manifest(Path(folder) / "m", arguments.jobs, recipe=recipe, photos=1)
        prepared = prepare_run(
            request(
                manifest,
                Path(folder) / "store",
                base=arguments.base,
                slots=24,
                samples=SampleSettings(per_prompt=0),
                beat_s=1.0,
            )
        )
        cpu, wall = time.process_time(), time.perf_counter()
        summary = execute_run(prepared)
        cpu_s, wall_s = time.process_time() - cpu, time.perf_counter() - wall
    assert summary.committed == arguments.jobs, summary
    lines = in_process_lines(arguments, meter, cpu_s, wall_s)
    if arguments.ray:
        lines += ray_lines(arguments, meter, recipe)
    lines.append("")
    today = datetime.date.today().isoformat()
    page = HERE / f"farm-orchestration-{os.cpu_count()}cpu-{today}.md"
    page.write_text("\n".join(lines))
    print(page.read_text())


def in_process_lines(
    arguments: argparse.Namespace, meter: Meter, cpu_s: float, wall_s: float
) -> list[str]:
    """The page's table for the run in one process."""
    left = cpu_s - sum(meter.seconds.values())
    each_ms = 1000 * left / arguments.jobs
    return [
        f"# Orchestration of {arguments.jobs} one-step jobs, {datetime.date.today().isoformat()}",
        "",
        f"`{arguments.base}` base in one process, {os.cpu_count()} cores, load average "
        f"{os.getloadavg()[0]:.1f}. Command: `python benchmarks/training/farm_orchestration.py`; "
        "its docstring describes the measurement.",
        "",
        "| part | CPU s | ms per job |",
        "|---|---|---|",
        *(
            f"| {name} | {seconds:.1f} | {1000 * seconds / arguments.jobs:.1f} |"
            for name, seconds in sorted(meter.seconds.items())
        ),
        f"| **orchestration** (the rest) | {left:.1f} | **{each_ms:.1f}** |",
        f"| total, CPU | {cpu_s:.1f} | {1000 * cpu_s / arguments.jobs:.1f} |",
        f"| total, wall clock | {wall_s:.1f} | {1000 * wall_s / arguments.jobs:.1f} |",
    ]


def ray_lines(arguments: argparse.Namespace, meter: Meter, recipe: dict[str, Any]) -> list[str]:
    """The page's paragraph on the marginal cost of a job through Ray."""
    few = arguments.jobs // 5
    both = [through_ray(count, arguments.base, recipe) for count in (few, arguments.jobs)]
    more_ms = 1000 * (both[1] - both[0]) / (arguments.jobs - few)
    work_ms = 1000 * sum(meter.seconds.values()) / arguments.jobs
    return [
        "",
        f"Through Ray, {few} jobs took {both[0]:.0f} CPU seconds over all processes and "
        f"{arguments.jobs} took {both[1]:.0f}: each further job costs {more_ms:.1f} ms, of which "
        f"{work_ms:.1f} ms are the work itself and **{more_ms - work_ms:.1f} ms** "
        "orchestration, including Ray.",
    ]


if __name__ == "__main__":
    main()
