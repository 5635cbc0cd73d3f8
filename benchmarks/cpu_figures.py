"""The three figures of a CPU in one run: slots, the farm, and serving, each against its peer.

    GOMP_SPINCOUNT=0 python benchmarks/cpu_figures.py [--old OLD_TREE]

Runs the shortest form of ``slots_cpu.py``, ``farm_vs_plain.py`` and ``serve_engine.py`` that gives
a ratio, and with ``--old`` also ``serve_pair.py``. Writes ``cpu-figures-<n>cpu-<date>.md``. Every
number is of CPU time, which other programs change least. Threads are those of the earlier pages:
two for the slots (one is measured too), one for serving, and PyTorch's own choice for the farm's
peer.
"""

from __future__ import annotations

import argparse
import datetime
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parent / one) for one in ("training", "serving")]

import torch  # noqa: E402

HERE = Path(__file__).parent
SLOTS = 24


def slots_figure(threads: int, before: str) -> str:
    """Rows per CPU second with 24 slots against the plain loop."""
    import slots_cpu

    torch.set_num_threads(threads)
    found = slots_cpu.measure("embedded", [SLOTS], rounds=2, rows_per_burst=48)
    torch.set_num_threads(1)
    plain, ours = found["plain"]["rows_per_cpu_s"], found[str(SLOTS)]["rows_per_cpu_s"]
    what = f"rows, {SLOTS} slots against the plain loop, {threads} thread(s)"
    return _line(what, plain, ours, before)


def farm_figure(subjects: int, steps: int) -> list[str]:
    """Subjects per CPU hour of ``farm run`` against one process per subject."""
    import farm_vs_plain

    os.environ.pop("OMP_NUM_THREADS", None)
    lines = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        manifest = farm_vs_plain.write_subjects(folder, subjects, steps)
        store = folder / "store"
        farm = 3600 * subjects / farm_vs_plain.run_farm(manifest, store, "embedded")["cpu_s"]
        peers = (("as published", False, "10.2×"), ("precomputed", True, "3.8×"))
        for peer, precomputed, before in peers:
            each = farm_vs_plain.run_plain(
                manifest, store, "embedded", 1, is_precomputed=precomputed
            )
            what = f"subjects an hour, farm against plain, {peer}"
            lines.append(_line(what, 3600 / each["cpu_s"], farm, before))
    return lines


def serving_figure(images: int, rounds: int) -> list[str]:
    """Images per CPU second of the engine against diffusers and peft."""
    from serve_methods import Ours, PeftMixed, PlainDiffusers
    from serve_trace import make_workload

    from farm.base.loading import load_base
    from farm.serving.config import EngineConfig
    from farm.serving.request import RequestLimits

    rows = 32
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        base = load_base("embedded")
        work = make_workload(
            base, folder, adapters=100, requests=images * rounds, rank=8, steps=20,
            guidance=5.0, zipf=1.0,
        )  # fmt: skip
        config = EngineConfig(
            num_slots=65, batch_rows=rows, max_waiting=10_000, max_wait_s=1e6,
            limits=RequestLimits(max_adapters=1),
        )  # fmt: skip
        ours = Ours("engine", base, work, config, folder / "cache", rows)
        methods: list[Any] = [
            ours,
            PeftMixed(load_base("embedded"), work, rows // 2, 8),
            PlainDiffusers(load_base("embedded"), work),
        ]
        speed: dict[str, float] = {}
        for method in methods:
            method.generate(work.requests[:2])
        for number in range(rounds):
            for method in methods:
                mine = work.requests[number * images : (number + 1) * images]
                mine = mine[:6] if method.is_slow else mine
                began = time.process_time()
                method.generate(mine)
                found = len(mine) / (time.process_time() - began)
                speed[method.name] = max(speed.get(method.name, 0.0), found)
        ours.close()
    peers = {"diffusers, load per request": "3.9×", "peft, adapter_names": "1.6×"}
    return [
        _line(f"images, engine against {peer}", speed[peer], speed["engine"], before)
        for peer, before in peers.items()
    ]


def pair_figure(old: Path) -> str:
    """A pass over attention adapters, old code and new."""
    import serve_pair

    return (
        "\n## A store of attention adapters alone, this version against that of 2026-11-23\n\n"
        "Two processes took turns pass by pass (`serve_pair.py`): 32 rows, 16 adapters of rank 8, "
        "64 in slots.\n\n" + serve_pair.table(serve_pair.compare(old.resolve(), 24))
    )


def _line(what: str, peer: float, ours: float, before: str) -> str:
    line = f"| {what} | {peer:.4g} | {ours:.4g} | **{ours / peer:.2f}×** | {before} |"
    print(line, flush=True)
    return line


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--old", type=Path)
    parser.add_argument("--subjects", type=int, default=32)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--images", type=int, default=48)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    assert os.environ.get("GOMP_SPINCOUNT") == "0", "set it: waiting threads would count as work"
    load, today = os.getloadavg()[0], datetime.datetime.now(datetime.UTC).date().isoformat()
    lines = [*serving_figure(arguments.images, 2)]
    pair = pair_figure(arguments.old) if arguments.old else ""
    lines += [slots_figure(1, ""), slots_figure(2, "3.6×")]
    lines += farm_figure(arguments.subjects, arguments.steps)
    page = HERE / f"cpu-figures-{os.cpu_count()}cpu-{today}.md"
    page.write_text(
        f"# The figures of a CPU in one run, {today}\n\n"
        f"Written by `benchmarks/cpu_figures.py`: embedded base, torch "
        f"{torch.__version__}, {os.cpu_count()} cores, load average {load:.1f} at the start and "
        f"{os.getloadavg()[0]:.1f} at the end from other programs, so only CPU time is compared. "
        f"The farm: {arguments.subjects} subjects of two classes, {arguments.steps} steps with "
        "prior preservation. *Before* is the ratio of CPU times on the pages of 2026-11-22 and "
        "2026-11-23.\n\n"
        "| per CPU second or hour | peer | ours | ratio | before |\n|---|---|---|---|---|\n"
        + "\n".join(lines) + "\n" + pair
    )  # fmt: skip
    print(page)


if __name__ == "__main__":
    main()
