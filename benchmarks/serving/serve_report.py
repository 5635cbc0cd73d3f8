"""The serving benchmark's page, table and plot."""

from __future__ import annotations

import csv
import statistics
from pathlib import Path
from typing import Any, NamedTuple


class Speed(NamedTuple):
    """The speed of one method in one round."""

    wall: float
    """Images per second of wall time."""
    cpu: float
    """Images per CPU second, over all threads."""


INK, OURS, OTHER = "#222222", "#1f6f5c", "#b9c4c9"


def write_report(report: dict[str, Any], folder: Path, name: str) -> None:
    """Write the page, the CSV and the plot."""
    folder.mkdir(parents=True, exist_ok=True)
    _write_csv(report, folder / f"{name}.csv")
    try:
        _plot(report, folder / f"{name}.png")
    except ImportError:
        print("no plot: matplotlib is not installed")
    (folder / f"{name}.md").write_text(_note(report, name))
    print(folder / f"{name}.md")


def _medians(report: dict[str, Any]) -> dict[str, Speed]:
    return {
        name: Speed(
            statistics.median(speed.wall for speed in speeds),
            statistics.median(speed.cpu for speed in speeds),
        )
        for name, speeds in report["speeds"].items()
    }


def _write_csv(report: dict[str, Any], path: Path) -> None:
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["kind", "of", "what", "value"])
        for name, speeds in report["speeds"].items():
            for number, speed in enumerate(speeds, 1):
                writer.writerow(["pictures_per_s", name, f"round {number}", f"{speed.wall:.4f}"])
                writer.writerow(["pictures_per_cpu_s", name, f"round {number}", f"{speed.cpu:.4f}"])
        for load, numbers in report["latencies"].items():
            for what, value in numbers.items():
                writer.writerow(["latency", f"load {load}", what, f"{value:.4f}"])
        for name, numbers in report["swaps"].items():
            for what, value in numbers.items():
                writer.writerow(["swaps", name, what, f"{value:.4f}"])
        for rows, seconds in report["knee"].items():
            writer.writerow(["pass_seconds", "engine", f"{rows} rows", f"{seconds:.6f}"])


def _plot(report: dict[str, Any], path: Path) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    medians = {name: speed.cpu for name, speed in _medians(report).items()}
    names = sorted(medians, key=lambda name: medians[name])
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 3.8), layout="constrained")
    colors = [OURS if name == report["ours"] else OTHER for name in names]
    left.barh(names, [medians[name] for name in names], color=colors)
    for i, name in enumerate(names):
        values = [speed.cpu for speed in report["speeds"][name]]
        left.plot(values, [i] * len(values), "|", color=INK, markersize=9)
        left.text(max(values), i, f"  {medians[name]:.2f}", va="center", ha="left", color=INK)
    left.set_xlim(0, max(s.cpu for speeds in report["speeds"].values() for s in speeds) * 1.18)
    left.set_xlabel("images per CPU second (bar: median, marks: rounds)")
    rates = [numbers["rate"] for numbers in report["latencies"].values()]
    for what, style in (("p50", "-"), ("p95", "--"), ("p99", ":")):
        values = [numbers[what] for numbers in report["latencies"].values()]
        right.plot(rates, values, style, marker="o", color=OURS, markersize=4, label=what)
    right.set_xlabel("requested images per second (Poisson)")
    right.set_ylabel("seconds per image")
    right.set_ylim(bottom=0)
    right.legend(frameon=False)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _note(report: dict[str, Any], name: str) -> str:
    options, medians = report["options"], _medians(report)
    ours = medians[report["ours"]]
    lines = [
        f"# Serving on {report['hardware']}",
        "",
        f"Written by `benchmarks/serving/serve_engine.py` on {options['date']}. "
        f"Base `{options['base']}`, {options['adapters']} adapters of rank {options['rank']} in a "
        f"store, a Zipf trace "
        f"(exponent {options['zipf']}; {report['num_asked']} of them are requested), "
        f"{options['steps']} steps of DPM++ 2M, guidance {options['guidance']}, every prompt "
        f"different, {report['waiting']} clients that each wait for their image. "
        f"{options['rounds']} rounds of {options['requests']} images in which the methods "
        f"alternate on the same slice of the trace ({options['slow']} for one image at a time); "
        f"medians. The load average was {report['load']:.1f} (5-minute mean, at the end): if it is "
        "above the number of cores, other programs were running, and CPU seconds are the better "
        f"measure. {report['versions']}.",
        "",
        f"![]({name}.png)",
        "",
        "| method | images/s | the engine's speed-up | images per CPU second "
        "| the engine's speed-up | largest difference of a value |",
        "|---|---|---|---|---|---|",
    ]
    for method, speed in sorted(medians.items(), key=lambda item: -item[1].cpu):
        is_ours = method == report["ours"]
        ratios = [
            "" if is_ours else f"{mine / other:.2f}×"
            for mine, other in zip(ours, speed, strict=True)
        ]
        difference = report["differences"].get(method)
        shown = "" if difference is None else f"{difference} of 255"
        lines.append(
            f"| {method} | {speed.wall:.2f} | {ratios[0]} | {speed.cpu:.2f} | {ratios[1]} "
            f"| {shown} |"
        )
    lines += [
        "",
        "*diffusers* loads adapters with `load_lora_weights` and unloads them: for each request, "
        "or, like servers that batch by adapter, once for all waiting requests for the oldest "
        "request's adapter, which then share a pipeline call. *The engine's parts, one adapter "
        "per batch* is the same rule with the engine's own bank, passes and decoding: its "
        "difference from the engine is due to the rule alone. *peft* passes `adapter_names` to "
        "every LoRA layer of full batches. The last two have all adapters in memory before timing "
        "starts; the engine loads them from the store.",
        "",
        *_bound_lines(report),
        "",
        *_latency_lines(report),
        "",
        *_swap_lines(report),
        "",
        *_knee_lines(report),
    ]
    return "\n".join(lines) + "\n"


def _bound_lines(report: dict[str, Any]) -> list[str]:
    """The largest possible gain from batching on this machine, from the measured passes."""
    knee, rows = report["knee"], report["rows"]
    if 2 not in knee or rows not in knee:
        return []
    bound = (knee[2] / 2) / (knee[rows] / rows)
    return [
        f"A guided image takes two rows. In the measured passes, a row in a pass of two takes "
        f"{bound:.1f} times as long as a row in a pass of {rows}, so on this machine no batching "
        "rule can be slower than full batches by more than this factor."
    ]


def _latency_lines(report: dict[str, Any]) -> list[str]:
    lines = [
        "## Latency at several loads",
        "",
        "| share of its throughput | requested images/s | p50 | p95 | p99 |",
        "|---|---|---|---|---|",
    ]
    for load, n in report["latencies"].items():
        lines.append(
            f"| {load:.0%} | {n['rate']:.2f} | {n['p50']:.2f} s | {n['p95']:.2f} s "
            f"| {n['p99']:.2f} s |"
        )
    return [*lines, "", f"{report['options']['open']} requests at each load, Poisson arrivals."]


def _swap_lines(report: dict[str, Any]) -> list[str]:
    lines = [
        "## Swapping in from host memory",
        "",
        "The same images with a slot for every adapter, and with so few slots that adapters are "
        "copied in from host memory while the batch runs.",
        "",
        "| | swaps | images/s | images per CPU second | full pass | between passes "
        "| 99th percentile between passes |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, n in report["swaps"].items():
        lines.append(
            f"| {name} | {n['swaps']:.0f} | {n['pictures_per_s']:.2f} "
            f"| {n['pictures_per_cpu_s']:.2f} | {n['step_ms']:.1f} ms | {n['between_ms']:.1f} ms "
            f"| {n['gap_p99_steps']:.2f} steps |"
        )
    return lines


def _knee_lines(report: dict[str, Any]) -> list[str]:
    points = ", ".join(f"{rows}: {1000 * s:.1f} ms" for rows, s in report["knee"].items())
    stats = report["stats"]
    return [
        "## The batch",
        "",
        f"Batch limit {report['rows']} rows ({report['rows'] // 2} guided images), from the "
        f"measured time of a pass by its rows: {points}. Mean fill of the passes "
        f"{stats.batch_fill:.0%}. Adapters found: {stats.slot_hits} in a slot, "
        f"{stats.cache.host_hits} in host memory, {stats.cache.disk_hits} on disk, "
        f"{stats.cache.store_loads} in the store.",
    ]
