"""Starting a large run: time and memory from checked subjects to a dispatcher that is ready.

    python benchmarks/cluster/scale_start.py --jobs 100000
    python benchmarks/cluster/scale_start.py --jobs 100000 --against ../earlier-checkout

Subjects are made as a manifest gives them (five photos each, one of three recipes), with invented
digests: no photo is read. The rest is real: jobs are named, committed adapters are looked up in a
store where half of them exist, the plan is made, the run's files are written, and the dispatcher
fills its queues. Each measurement runs in its own process; memory is compared with that before the
first step, when the subjects are in memory. ``--against`` measures another checkout in the same
run.

Writes ``scale-start-<jobs>-<n>cpu-<date>.md`` into ``benchmarks/``.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).parents[1]
STEPS = {
    "name_s": "jobs named by their content",
    "look_up_s": "committed adapters found, plan made",
    "files_s": "the run's files written",
    "dispatcher_s": "dispatcher started",
    "total_s": "total",
    "end_bytes_per_job": "memory at the end, B a job",
    "peak_bytes_per_job": "memory at the peak, B a job",
}


class Checked:
    """What the check reports of subjects, without photos."""

    def __init__(self, jobs: int) -> None:
        from scale_lanes import make_subject

        self.good_subjects = [make_subject(number) for number in range(jobs)]

    def photo_digests(self, subject: Any) -> tuple[str, ...]:
        from farm.keys import bytes_digest

        return tuple(bytes_digest(photo.uri.encode()) for photo in subject.photos)

    def class_image_digests(self, subject: Any) -> tuple[str, ...]:
        return ()


def probe(jobs: int, store_url: str) -> dict[str, float]:
    """Start a run with the farm of this process; calls what its version has."""
    from farm.base.memory import MemoryFacts
    from farm.locks import StoreLock
    from farm.model_imports.gc_pause import gc_paused
    from farm.storage import Store
    from farm.training.dispatch.dispatcher import Dispatcher
    from farm.training.dispatch.ledger import Ledger
    from farm.training.plan.hardware import Hardware
    from farm.training.run import prepare
    from farm.training.run.driver import write_run_files
    from farm.training.run.request import RunBase, RunRequest

    store = Store(store_url)
    with gc_paused():
        check: Any = Checked(jobs)
    memory = MemoryFacts(10**9, 860 * 10**6, 4 * 10**9, 4, 8, 77)  # Stable Diffusion v1-5
    base = RunBase("tiny", "f" * 64, 64, memory)
    hardware = Hardware("A100", 80 * 2**30, 8, 96, 4, 3.0)
    request = RunRequest("m.yaml", store_url, hardware=hardware)
    facts: dict[str, float] = {}
    begun, before = time.process_time(), rss()

    def timed(name: str, call: Callable[[], Any]) -> Any:
        began = time.process_time()
        result = call()
        facts[name] = time.process_time() - began
        return result

    module: Any = prepare
    named = getattr(module, "jobs_of", None) or module.assignments_of
    found = [timed("name_s", lambda: named(check, base))]
    commit_half(store, found[0] if isinstance(found[0], tuple) else found[0].run)
    prepared = timed("look_up_s", lambda: module._prepared(request, store, base, found.pop()))
    lock = StoreLock.take(store, f"runs/{prepared.run_id}/drivers", ttl_s=60)
    assert lock is not None
    timed("files_s", lambda: write_run_files(prepared, lock))
    items = getattr(prepared, "jobs", None) or prepared.assignments
    ledger = Ledger(store, prepared.run_id, epoch=1)
    ready = timed(
        "dispatcher_s",
        lambda: Dispatcher(items, ledger, resolution_px=64, committed=prepared.committed),
    )
    facts["total_s"] = sum(facts.values())
    assert len(ready.jobs()) == jobs
    assert len(prepared.committed) == jobs // 2
    facts["end_bytes_per_job"] = (rss() - before) / jobs
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    facts["peak_bytes_per_job"] = (peak - before) / jobs
    facts["wall_s"] = time.process_time() - begun
    return facts


def commit_half(store: Any, jobs: Any) -> None:
    """Markers of half of the jobs' adapters."""
    keys = [job if isinstance(job, str) else job.spec.key for job in jobs]
    for key in keys[: len(keys) // 2]:
        folder = Path(store.full_path(f"adapters/{key}"))
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "adapter.json").touch()


def rss() -> int:
    """Resident bytes of this process."""
    import psutil

    return int(psutil.Process().memory_info().rss)


def probe_in(checkout: Path, jobs: int) -> dict[str, float]:
    """Measure in a process of its own, with the farm of a checkout."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, "--probe", folder, "--jobs", str(jobs)]
        env = os.environ | {"PYTHONPATH": str(checkout)}
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    facts: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return facts


def page(jobs: int, after: dict[str, float], before: dict[str, float] | None) -> str:
    """The page, in Markdown."""
    command = f"benchmarks/cluster/scale_start.py --jobs {jobs}"
    if before is not None:
        command += " --against EARLIER-CHECKOUT"
    lines = [
        f"# Starting a run of {jobs:,} jobs",
        "",
        f"{datetime.date.today()}, {os.cpu_count()} CPU cores shared with other work (load average"
        f" {os.getloadavg()[0]:.1f}), local folder as the store, Python {sys.version.split()[0]}."
        f" CPU seconds; half of the jobs are already committed. `python {command}`; the head of the"
        " script describes the method. Memory is on top of the subjects themselves.",
        "",
    ]
    if before is None:
        lines += ["| step | measured |", "|---|---|"]
        lines += [f"| {text} | {after[name]:,.1f} |" for name, text in STEPS.items()]
    else:
        lines += ["| step | before | after | ratio |", "|---|---|---|---|"]
        lines += [
            f"| {text} | {before[name]:,.1f} | {after[name]:,.1f}"
            f" | {before[name] / max(after[name], 1e-9):.1f} |"
            for name, text in STEPS.items()
        ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=10_000)
    parser.add_argument("--against", type=Path, help="a checkout to compare with")
    parser.add_argument("--out", type=Path, default=HERE)
    parser.add_argument("--probe", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.probe:
        print(json.dumps(probe(arguments.jobs, arguments.probe)))
        return
    before = None
    if arguments.against is not None:
        before = probe_in(arguments.against.resolve(), arguments.jobs)
    text = page(arguments.jobs, probe_in(HERE.parent, arguments.jobs), before)
    name = f"scale-start-{arguments.jobs}-{os.cpu_count()}cpu-{datetime.date.today()}.md"
    (arguments.out / name).write_text(text)
    print(text)


if __name__ == "__main__":
    main()
