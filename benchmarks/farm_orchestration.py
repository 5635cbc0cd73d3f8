"""The farm's own cost per job: everything except decoding, training and generating images.

    python benchmarks/farm_orchestration.py --jobs 1000

Runs many one-step jobs in one process (dispatcher, lane, publisher and ledger, as under Ray) and
counts CPU seconds. The work itself is subtracted: reading, decoding and encoding of photos,
admission and training steps, and writing adapter files in three forms. The rest is
orchestration: leases, ledger, commits, names, threads. Wall seconds of the whole are also reported.
With ``--ray``, the same jobs, and a fifth of them, also run through `farm run` on Ray. The cost of
one more job in all processes, less the work itself, is orchestration including Ray's part.

Writes ``farm-orchestration-<n>cpu-<date>.md`` beside this file.
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

HERE = Path(__file__).parent
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


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--ray", action="store_true", help="also through Ray, twice")
    parser.add_argument("--jobs", type=int, default=1000)
    parser.add_argument("--base", default="tiny")
    arguments = parser.parse_args()

    import torch
    from support.manifests import request, write_manifest

    from farm.training.execute import execute_run, prepare_run
    from farm.training.lane import prefetch as preparer
    from farm.training.lane import publisher
    from farm.training.lane.lane import Lane
    from farm.training.lane.settings import SampleSettings
    from farm.training.slots.trainer import SlotTrainer

    torch.set_num_threads(1)  # so that all of its work is counted on the calling thread
    meter = Meter()
    meter.wrap(preparer, "prepare_photos", "decode and encode")
    meter.wrap(SlotTrainer, "step", "train")
    meter.wrap(SlotTrainer, "admit", "train")
    meter.wrap(SlotTrainer, "weights", "train")
    meter.wrap(SlotTrainer, "release", "train")
    meter.wrap(Lane, "_encode_prompts", "decode and encode")
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
    left = cpu_s - sum(meter.seconds.values())
    each_ms = 1000 * left / arguments.jobs
    today = datetime.date.today().isoformat()
    lines = [
        f"# Orchestration of {arguments.jobs} one-step jobs, {today}",
        "",
        f"`{arguments.base}` base in one process, {os.cpu_count()} cores, load average "
        f"{os.getloadavg()[0]:.1f}. Command: `python benchmarks/farm_orchestration.py`; its head "
        "says what is counted.",
        "",
        "| part | CPU s | ms a job |",
        "|---|---|---|",
        *(
            f"| {name} | {seconds:.1f} | {1000 * seconds / arguments.jobs:.1f} |"
            for name, seconds in sorted(meter.seconds.items())
        ),
        f"| **orchestration** (the rest) | {left:.1f} | **{each_ms:.1f}** |",
        f"| whole, CPU | {cpu_s:.1f} | {1000 * cpu_s / arguments.jobs:.1f} |",
        f"| whole, wall clock | {wall_s:.1f} | {1000 * wall_s / arguments.jobs:.1f} |",
    ]
    if arguments.ray:
        few = arguments.jobs // 5
        both = [through_ray(count, arguments.base, recipe) for count in (few, arguments.jobs)]
        more_ms = 1000 * (both[1] - both[0]) / (arguments.jobs - few)
        work_ms = 1000 * sum(meter.seconds.values()) / arguments.jobs
        lines += [
            "",
            f"Through Ray, {few} jobs took {both[0]:.0f} CPU seconds of all processes and "
            f"{arguments.jobs} took {both[1]:.0f}: one more job costs {more_ms:.1f} ms, of which "
            f"{work_ms:.1f} ms are the work itself and **{more_ms - work_ms:.1f} ms** "
            "orchestration, Ray's part included.",
        ]
    lines.append("")
    page = HERE / f"farm-orchestration-{os.cpu_count()}cpu-{today}.md"
    page.write_text("\n".join(lines))
    print(page.read_text())


if __name__ == "__main__":
    main()
