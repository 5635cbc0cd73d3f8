"""Slots on a CPU, measured side by side with the plain loop in one run.

    python benchmarks/training/slots_cpu.py

The embedded base, one photo and one class row per step, the same rows for all. Cases alternate in
short bursts over several rounds, and each keeps its fastest step, which other work on the machine
disturbed least. Also measured: the memory of each further slot, from the peaks of processes with
few and with many. Results: ``slots-<n>cpu-<date>.{md,json,png}``.

Legend: S slots.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import torch
from plain_loop import PlainLoop, synthetic_job, timed_steps

from farm.base.interface import Base
from farm.base.loading import load_base
from farm.training.plan.shape import common_shape
from farm.training.slots.trainer import SlotTrainer

ROWS = 2
CPU = torch.device("cpu")


def open_trainer(base: Base, slots: int) -> SlotTrainer:
    """A trainer with all slots in use."""
    jobs = [synthetic_job(base, number) for number in range(slots)]
    shape = common_shape([job.recipe for job in jobs], base.resolution_px)
    trainer = SlotTrainer(base, shape, num_slots=slots)
    for job in jobs:
        trainer.admit(job)
    return trainer


def measure(name: str, slots: list[int], rounds: int, rows_per_burst: int) -> dict[str, Any]:
    """Rows per second, by wall and by CPU time, of the plain loop and of each S."""
    base, plain_base = load_base(name), load_base(name)
    plain = PlainLoop(plain_base, synthetic_job(plain_base, 0))
    best: dict[str, dict[str, float]] = {}

    def burst(label: str, step: Any, rows_a_step: int) -> None:
        timed_steps(step, 1, CPU)  # caches and first-call work
        found = best.setdefault(label, {"rows_per_s": 0.0, "rows_per_cpu_s": 0.0})
        for _ in range(max(2, round(rows_per_burst / rows_a_step))):
            wall_s, cpu_s = timed_steps(step, 1, CPU)
            found["rows_per_s"] = max(found["rows_per_s"], rows_a_step / wall_s)
            found["rows_per_cpu_s"] = max(found["rows_per_cpu_s"], rows_a_step / cpu_s)

    for round_number in range(rounds):
        burst("plain", plain.step, ROWS)
        for count in slots:
            trainer = open_trainer(base, count)
            burst(str(count), trainer.step, ROWS * count)
            trainer.close()
        burst("plain", plain.step, ROWS)
        print(f"round {round_number + 1} of {rounds}: {best}", file=sys.stderr, flush=True)
    return best


def peak_mib(name: str, slots: int) -> float:
    """Peak resident memory of a fresh process that trains S slots for two steps."""
    command = [sys.executable, __file__, "--memory-of", str(slots), "--base", name]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def own_peak_mib() -> float:
    """Peak resident memory of this program alone (``getrusage`` would count its parent's too)."""
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if "VmHWM" in line).split()[1]) / 1024


def report(results: dict[str, Any], memory: dict[int, float], facts: dict[str, Any]) -> str:
    """The dated page."""
    plain = results["plain"]
    lines = [
        f"# Slots against the plain loop: `{facts['base']}` base on {facts['hardware']}, {today()}",
        "",
        f"{facts['threads']} torch threads, float32, rank 4 on the attention projections, one "
        f"photo and one class row per step. Fastest step of {facts['rounds']} interleaved rounds "
        f"of {facts['burst']} rows per case. Load average {facts['load']} at the end: if it is "
        "above the number of cores, other work was running, and CPU time is the better measure. "
        f"torch {torch.__version__}. Command: "
        f"`python benchmarks/training/slots_cpu.py {facts['argv']}`",
        "",
        "`plain` is diffusers and peft, one subject after another, from the same cached latents "
        "and prompts. CPU time is that of the process, unaffected by other processes.",
        "",
        "| S | rows/s | × plain | rows per CPU-second | × plain |",
        "|---|---|---|---|---|",
    ]
    for label, found in results.items():
        lines.append(
            f"| {label} | {found['rows_per_s']:.1f} | "
            f"{found['rows_per_s'] / plain['rows_per_s']:.2f} | {found['rows_per_cpu_s']:.1f} | "
            f"{found['rows_per_cpu_s'] / plain['rows_per_cpu_s']:.2f} |"
        )
    few, many = min(memory), max(memory)
    if many > few:
        each = (memory[many] - memory[few]) / (many - few)
        lines += [
            "",
            f"Memory: {memory[few]:.0f} MiB peak with {few} slots, {memory[many]:.0f} MiB with "
            f"{many}: **{each:.1f} MiB for each further slot**, activations of its two rows "
            f"included. Of that, weights, gradient and Adam's moments are {facts['state_mib']:.2f} "
            "MiB.",
        ]
    if "24" in results:
        ratio = results["24"]["rows_per_s"] / plain["rows_per_s"]
        used = results["24"]["rows_per_cpu_s"] / plain["rows_per_cpu_s"]
        verdict = "reached" if ratio >= 3.5 else "missed"
        lines += [
            "",
            f"Wanted: 24 slots at 3.5 × the plain loop's rows per second. {verdict.capitalize()}: "
            f"{ratio:.2f} × by the clock, {used:.2f} × by CPU time.",
        ]
    return "\n".join(lines) + "\n"


def plot(results: dict[str, Any], path: Path, facts: dict[str, Any]) -> None:
    """Rows per second over S, relative to the plain loop."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.2))
    slots = sorted(int(label) for label in results if label.isdigit())
    for key, label in (("rows_per_s", "by the clock"), ("rows_per_cpu_s", "by CPU time")):
        plain = results["plain"][key]
        axes.plot(slots, [results[str(s)][key] / plain for s in slots], marker="o", label=label)
    axes.axhline(1, color="grey", linestyle="--", label="plain diffusers + peft, one by one")
    axes.axhline(3.5, color="green", linestyle=":", label="wanted at 24 slots")
    axes.set(
        xlabel="slots",
        ylabel="rows a second, × the plain loop",
        title=f"{facts['base']} base, {facts['hardware']}",
    )
    axes.set_xscale("log", base=2)
    axes.set_xticks(slots, [str(s) for s in slots])
    axes.set_ylim(bottom=0)
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


def hardware() -> str:
    """The processor's name, as the system reports it."""
    try:
        text = Path("/proc/cpuinfo").read_text()
        name = next(line for line in text.splitlines() if line.startswith("model name"))
        return f"{os.cpu_count()} cores of {name.split(':', 1)[1].strip()}"
    except (OSError, StopIteration):
        return f"{os.cpu_count()} cores ({platform.machine()})"


def today() -> str:
    return datetime.datetime.now(datetime.UTC).date().isoformat()


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--base", default="embedded")
    parser.add_argument("--slots", type=int, nargs="+", default=[1, 2, 4, 8, 16, 24, 32])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rows-per-burst", type=int, default=64)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--memory-slots", type=int, nargs="*", default=[4, 32])
    parser.add_argument("--out", default=str(Path(__file__).parents[1]))
    parser.add_argument("--memory-of", type=int, help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    arguments = parse(argv)
    torch.set_num_threads(arguments.threads)
    if arguments.memory_of:
        trainer = open_trainer(load_base(arguments.base), arguments.memory_of)
        timed_steps(trainer.step, 2, CPU)
        print(own_peak_mib())
        return
    results = measure(arguments.base, arguments.slots, arguments.rounds, arguments.rows_per_burst)
    memory = {count: peak_mib(arguments.base, count) for count in arguments.memory_slots}
    trainer = open_trainer(load_base(arguments.base), 1)
    state = 4 * trainer.bank.num_parameters * 4  # weights, gradient, two moments in float32
    trainer.close()
    facts = {
        "base": arguments.base,
        "hardware": hardware(),
        "threads": arguments.threads,
        "rounds": arguments.rounds,
        "burst": arguments.rows_per_burst,
        "load": f"{os.getloadavg()[0]:.1f}",
        "argv": " ".join(argv if argv is not None else sys.argv[1:]),
        "state_mib": state / 2**20,
    }
    stem = Path(arguments.out) / f"slots-{os.cpu_count()}cpu-{today()}"
    stem.with_suffix(".md").write_text(report(results, memory or {0: 0.0}, facts))
    numbers = {"results": results, "peak_mib": memory, **facts}
    stem.with_suffix(".json").write_text(json.dumps(numbers, indent=2) + "\n")
    plot(results, stem.with_suffix(".png"), facts)
    print(stem.with_suffix(".md"))


if __name__ == "__main__":
    main()
