"""Slots on a GPU: the real Stable Diffusion v1-5 shape with random weights, 512 px, rank 4.

    python benchmarks/training/sd15_gpu.py                    # on the GPU machine: everything
    python benchmarks/training/sd15_gpu.py --build tiny --device cpu --slots 1 2 --steps 2

For S slots, with and without gradient checkpointing and torch.compile, against the plain diffusers
and peft loop: rows per second, GPU seconds per subject of 800 steps, model FLOP utilisation, peak
memory. Each case runs in its own process, so memory is not shared between cases, and a case that
does not fit fails alone. Results are written into ``benchmarks/`` as
``sd15-<hardware>-<date>.{md,json,png}``; with ``--profile`` each case writes a table of kernels.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import datetime
import json
import multiprocessing
import re
import sys
import traceback
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[2])]

ROW_TFLOP = 1.714
"""LoRA forward and backward of one 512 px sample of Stable Diffusion v1-5, recomputation not
counted (torch's FlopCounterMode on the model's shape)."""
SUBJECT_STEPS, SUBJECT_ROWS = 800, 2
PEAK_TFLOPS = {"H200": 989, "H100": 989, "GH200": 989, "A100": 312, "L40S": 362, "L4": 121}
"""Dense bf16 peaks from the vendors' data sheets."""
LIBRARIES = ["plain_loop", "farm.base.loading", "farm.training.slots.trainer"]
"""Modules that each case needs."""
KINDS = ("plain", "plain+vae", "slots")


@dataclass(frozen=True)
class Case:
    """One configuration to measure."""

    kind: str
    """One of ``KINDS``: ``plain+vae`` encodes photos at every step, as the script does."""
    slots: int = 1
    checkpointing: bool = False
    compile: str = ""
    """torch.compile's mode; empty means eager."""

    @property
    def label(self) -> str:
        options = ["checkpointing"] * self.checkpointing + [f"compile:{self.compile}"] * bool(
            self.compile
        )
        return " ".join([self.kind, *options])


@dataclass(frozen=True)
class Setting:
    """Settings of all cases."""

    build: str
    device: str
    dtype: str
    steps: int
    rank: int
    profile: str


def measure(case: Case, setting: Setting) -> dict[str, Any]:
    """Run one case in this process."""
    import torch

    from farm.base.loading import load_base

    torch.backends.cuda.matmul.allow_tf32 = True
    # first, so that a base that does not exist fails before seconds of imports
    base = load_base(setting.build, device=setting.device, dtype=getattr(torch, setting.dtype))
    from plain_loop import PlainLoop, synthetic_job, timed_steps

    from farm.training.plan.shape import common_shape
    from farm.training.slots.speed import Speed
    from farm.training.slots.trainer import SlotTrainer

    on_gpu = base.device.type == "cuda"
    jobs = [synthetic_job(base, number, rank=setting.rank) for number in range(case.slots)]
    if case.kind == "slots":
        trainer = SlotTrainer(
            base,
            common_shape([job.recipe for job in jobs], base.resolution_px),
            num_slots=case.slots,
            checkpointing=case.checkpointing,
            speed=Speed(compile=case.compile or False, capture=False),
        )
        for job in jobs:
            trainer.admit(job)
        step: Any = trainer.step
    else:
        step = PlainLoop(base, jobs[0], encode_every_step=case.kind == "plain+vae").step
    warm_up_s, _ = timed_steps(step, 3, base.device)  # compiles here
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    wall_s, _ = timed_steps(step, setting.steps, base.device)
    if setting.profile:
        _profile(step, Path(setting.profile) / f"{case.label} S={case.slots}.txt", on_gpu)
    rows = case.slots * SUBJECT_ROWS
    return {
        "step_s": wall_s / setting.steps,
        "rows_per_s": rows * setting.steps / wall_s,
        "warm_up_s": warm_up_s,
        "peak_gib": torch.cuda.max_memory_allocated() / 2**30 if on_gpu else None,
        "reserved_gib": torch.cuda.max_memory_reserved() / 2**30 if on_gpu else None,
        "hardware": torch.cuda.get_device_name() if on_gpu else "CPU",
        "torch": torch.__version__,
    }


def _profile(step: Any, path: Path, on_gpu: bool) -> None:
    from torch.profiler import ProfilerActivity, profile

    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * on_gpu
    with profile(activities=activities) as profiler:
        for _ in range(3):
            step()
    order = "self_cuda_time_total" if on_gpu else "self_cpu_time_total"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(profiler.key_averages().table(sort_by=order, row_limit=40))


def run_case(case: Case, setting: Setting) -> dict[str, Any]:
    """Run one case in a new process; a failure is also a result.

    The processes are forked from one that has imported the libraries and has no device yet.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(LIBRARIES)
    results, sender = context.Pipe(duplex=False)
    process = context.Process(target=_send_result, args=(sender, case, setting))
    process.start()
    sender.close()
    with results:
        try:
            found: dict[str, Any] = results.recv()
        except EOFError:  # it was killed
            found = {}
    process.join()
    return {**dataclasses.asdict(case), **(found or {"failed": f"exit status {process.exitcode}"})}


def _send_result(sender: Connection, case: Case, setting: Setting) -> None:
    """What the process of a case does."""
    import torch

    try:
        found = measure(case, setting)
    except torch.OutOfMemoryError:
        found = {"failed": "out of memory"}
    except Exception as error:
        found = {"failed": traceback.format_exception_only(error)[0].splitlines()[0][:200]}
    sender.send(found)


def with_derived(result: dict[str, Any], setting: Setting) -> dict[str, Any]:
    """Add GPU seconds per subject and utilisation, derived from the measured step."""
    if "failed" in result:
        return result
    subject_s = result["step_s"] * SUBJECT_STEPS / result["slots"]
    peak = next((v for k, v in PEAK_TFLOPS.items() if k in result["hardware"]), None)
    utilisation = None
    if peak is not None and setting.build == "sd15":
        utilisation = result["rows_per_s"] * ROW_TFLOP / peak
    return {**result, "subject_s": subject_s, "utilisation": utilisation}


def report(results: list[dict[str, Any]], setting: Setting, command: str) -> str:
    """The dated page."""
    good = [r for r in results if "failed" not in r]
    plain = next((r["rows_per_s"] for r in good if r["kind"] == "plain"), None)
    hardware = good[0]["hardware"] if good else "nothing ran"
    lines = [
        f"# Slots against the plain loop: `{setting.build}` on {hardware}, {today()}",
        "",
        f"Random weights of the `{setting.build}` shape, rank {setting.rank}, {setting.dtype} "
        "base, float32 adapters, one photo and one class row per step, "
        f"{setting.steps} steps per case after 3 steps of warm-up, each case in its own process. "
        f"torch {good[0]['torch'] if good else '?'}. Command: `{command}`",
        "",
        "A subject is 800 steps. Utilisation is 1.714 TFLOP per row (without recomputation) "
        "relative to the card's dense bf16 peak. `plain` is diffusers and peft, one subject at a "
        "time, with cached latents; `plain+vae` encodes two photos at every step, like the "
        "usual script.",
        "",
        "| case | S | step ms | rows/s | × plain | GPU s per subject | utilisation | peak GiB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for result in results:
        head = f"| {Case(result['kind'], 1, result['checkpointing'], result['compile']).label} "
        head += f"| {result['slots']} "
        if "failed" in result:
            lines.append(f"{head}| {result['failed']} ||||||")
            continue
        ratio = f"{result['rows_per_s'] / plain:.2f}" if plain else ""
        used = result["utilisation"]
        memory = result["peak_gib"]
        lines.append(
            f"{head}| {result['step_s'] * 1e3:.1f} | {result['rows_per_s']:.1f} | {ratio} "
            f"| {result['subject_s']:.2f} | {f'{used:.0%}' if used else ''} "
            f"| {f'{memory:.2f}' if memory else ''} |"
        )
    return "\n".join([*lines, "", _verdict(good, plain)]) + "\n"


def _verdict(good: list[dict[str, Any]], plain: float | None) -> str:
    """The targets, and whether they were met."""
    slots = [r for r in good if r["kind"] == "slots"]
    if not slots or plain is None:
        return ""
    best = min(slots, key=lambda r: r["subject_s"])
    lines = [
        "## Targets",
        "",
        f"- At most 10 s per subject: {best['subject_s']:.2f} s ({_where(best)}).",
        f"- At least 5 × the plain loop: {best['rows_per_s'] / plain:.2f} × ({_where(best)}).",
    ]
    one = [r for r in slots if r["slots"] == 1 and r["peak_gib"]]
    if one:
        small = min(one, key=lambda r: r["peak_gib"])
        lines.append(
            f"- One subject inside 10 GB: {small['peak_gib']:.2f} GiB peak ({_where(small)})."
        )
    return "\n".join(lines)


def _where(result: dict[str, Any]) -> str:
    case = Case(result["kind"], result["slots"], result["checkpointing"], result["compile"])
    return f"S={case.slots}, {case.label}"


def plot(results: list[dict[str, Any]], path: Path, title: str) -> None:
    """Plot rows per second and memory over S, one line per configuration."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, (speed, memory) = pyplot.subplots(1, 2, figsize=(11, 4.2))
    good = [r for r in results if "failed" not in r]
    labels = dict.fromkeys(Case(r["kind"], 1, r["checkpointing"], r["compile"]).label for r in good)
    for label in labels:
        rows = [
            r for r in good if Case(r["kind"], 1, r["checkpointing"], r["compile"]).label == label
        ]
        slots = [r["slots"] for r in rows]
        speed.plot(slots, [r["rows_per_s"] for r in rows], marker="o", label=label)
        if all(r["peak_gib"] for r in rows):
            memory.plot(slots, [r["peak_gib"] for r in rows], marker="o", label=label)
    speed.set(xlabel="slots", ylabel="rows per second", title=title)
    memory.set(xlabel="slots", ylabel="peak memory, GiB")
    speed.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


def today() -> str:
    return datetime.datetime.now(datetime.UTC).date().isoformat()


def cases_of(arguments: argparse.Namespace) -> list[Case]:
    cases = [Case("plain"), Case("plain+vae")]
    for compile_mode in arguments.compile:
        for checkpointing in arguments.checkpointing:
            cases += [
                Case(
                    "slots",
                    slots,
                    checkpointing == "on",
                    "" if compile_mode == "off" else compile_mode,
                )
                for slots in arguments.slots
            ]
    return [case for case in cases if case.kind in arguments.kinds]


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--build", default="sd15", help="sd15 or tiny; any base that loads")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", default="bfloat16", help="of the frozen base")
    parser.add_argument("--kinds", nargs="+", default=KINDS, choices=KINDS, help="of cases")
    parser.add_argument("--slots", type=int, nargs="+", default=[1, 4, 8, 16, 32])
    parser.add_argument("--checkpointing", nargs="+", default=["off", "on"], choices=["off", "on"])
    parser.add_argument("--compile", nargs="+", default=["off", "default"], help="off or a mode")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rank", type=int, default=4)
    parser.add_argument("--profile", default="", help="folder for tables of kernels")
    parser.add_argument("--out", default=str(Path(__file__).parents[1]))
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    arguments = parse(argv)
    setting = Setting(
        arguments.build,
        arguments.device,
        arguments.dtype,
        arguments.steps,
        arguments.rank,
        arguments.profile,
    )
    command = "python benchmarks/training/sd15_gpu.py " + " ".join(
        argv if argv is not None else sys.argv[1:]
    )
    results: list[dict[str, Any]] = []
    for case in cases_of(arguments):
        results.append(with_derived(run_case(case, setting), setting))
        print(json.dumps(results[-1]), file=sys.stderr, flush=True)
        # after each case, so that an interrupted run keeps its results
        page = write_page(results, setting, command.strip(), Path(arguments.out))
    print(page)


def write_page(results: list[dict[str, Any]], setting: Setting, command: str, folder: Path) -> Path:
    """Write the page, the data and, if matplotlib is installed, the plot."""
    hardware = next((r["hardware"] for r in results if "hardware" in r), "none")
    slug = re.sub(r"[^a-z0-9]+", "-", hardware.lower()).strip("-")
    stem = folder / f"{setting.build}-{slug}-{today()}"
    stem.with_suffix(".md").write_text(report(results, setting, command))
    stem.with_suffix(".json").write_text(json.dumps(results, indent=2) + "\n")
    with contextlib.suppress(ImportError):
        plot(results, stem.with_suffix(".png"), f"{setting.build}, {hardware}")
    return stem.with_suffix(".md")


if __name__ == "__main__":
    main()
