"""The report of the soak test: its problems, its page, and memory over time."""

from __future__ import annotations

import argparse
import collections
import os
import platform
import statistics
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import matplotlib as mpl
import torch
from soak_load import MAX_MEAN_DIFFERENCE

mpl.use("Agg")
import matplotlib.pyplot as plt

HONEST_503_S = 90.0
"""Time after a kill during which a 503 is expected, because an engine restarts."""
GOOD = {"right", "refused", "busy", "restarting", "left"}
LONG_LIFE_S = 180.0
"""Processes older than this must not grow by more than both limits. Younger ones are still warming
up: an engine allocates its memory with the first full batches."""
MAX_GROWTH_MIB = 64.0
MAX_GROWTH = 0.10
COLORS = {"engine": "#1f6f5c", "ingress": "#b4552d", "all": "#1f6f5c"}


def judge(result: dict[str, Any]) -> list[str]:
    """All problems found."""
    faults = []
    for line in result["lines"]:
        verdict = line["verdict"]
        if verdict == "restarting":
            after = [line["at_s"] + line["took_s"] - kill for kill in result["kills"]]
            if not any(0 <= since <= HONEST_503_S for since in after):
                faults.append(f"503 without a kill: {line}")
        elif verdict not in GOOD:
            faults.append(f"{verdict}: {line}")
    return faults + leaks(result["memory"])


def leaks(memory: list[tuple[float, dict[str, float]]]) -> list[str]:
    """Old processes that kept growing."""
    seen: dict[str, list[float]] = collections.defaultdict(list)
    for at_s, sizes in memory:
        for name in sizes:
            seen[name].append(at_s)
    return [
        f"memory of {name} grew from {early:.0f} to {late:.0f} MiB"
        for name, (early, late) in sorted(growth_mib(memory).items())
        if seen[name][-1] - seen[name][0] >= LONG_LIFE_S
        and late - early > max(MAX_GROWTH_MIB, MAX_GROWTH * early)
    ]


def plot_memory(result: dict[str, Any], path: Path) -> None:
    """Plot the resident memory of every serving process over time, with kills as marks."""
    lives: dict[str, list[tuple[float, float]]] = collections.defaultdict(list)
    for at_s, sizes in result["memory"]:
        for name, size in sizes.items():
            lives[name].append((at_s / 60, size))
    figure, axes = plt.subplots(figsize=(9, 3.4), layout="constrained")
    for name, life in sorted(lives.items()):
        part = name.split()[0]
        minutes, sizes_mib = zip(*life, strict=True)
        axes.plot(minutes, sizes_mib, color=COLORS[part], linewidth=1.2, alpha=0.85)
        axes.plot(minutes[-1:], sizes_mib[-1:], "o", color=COLORS[part], markersize=3)
    for part in sorted({name.split()[0] for name in lives}):
        axes.plot([], [], color=COLORS[part], label=part)
    for kill_s in result["kills_at_s"]:
        axes.axvline(kill_s / 60, color="#999999", linewidth=0.7, linestyle=":")
    if result["kills_at_s"]:
        axes.plot([], [], color="#999999", linewidth=0.7, linestyle=":", label="an engine killed")
    axes.set_xlabel("minutes")
    axes.set_ylabel("resident memory, MiB")
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False, loc="lower right")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def growth_mib(memory: list[tuple[float, dict[str, float]]]) -> dict[str, tuple[float, float]]:
    """Each process's mean memory in the second and in the last quarter of its lifetime."""
    lives: dict[str, list[float]] = collections.defaultdict(list)
    for _, sizes in memory:
        for name, size in sizes.items():
            lives[name].append(size)
    return {
        name: (
            statistics.mean(life[len(life) // 4 : len(life) // 2]),
            statistics.mean(life[3 * len(life) // 4 :]),
        )
        for name, life in lives.items()
        if len(life) >= 16
    }


def facts_of(result: dict[str, Any], faults: list[str]) -> list[str]:
    """The soak test's figures, one line each."""
    lines = result["lines"]
    right = [line for line in lines if line["verdict"] == "right" and line["kind"] != "models"]
    took = sorted(line["took_s"] for line in right)
    span_s = max(line["at_s"] + line["took_s"] for line in lines) - lines[0]["at_s"]
    return [
        f"{span_s / 60:.1f} minutes, {len(lines)} requests; {len(right)} images compared with "
        "reference images",
        f"engine processes that generated images: {len({line['engine'] for line in right})}",
        f"wrong images: {sum('wrong' in line['verdict'] for line in lines)}",
        f"hung requests: {sum(line['verdict'] == 'hung' for line in lines)}",
        f"5xx other than 503: {sum(line['status'] in {500, 502, 504} for line in lines)}",
        f"503: {by_status(lines, 503)}, 429: {by_status(lines, 429)}",
        "largest mean difference from the reference image: "
        f"{max(line['difference'] for line in lines):.3f} of 255, limit {MAX_MEAN_DIFFERENCE}; "
        f"most similar images of two adapters: {result['nearest']:.1f}",
        "seconds per response: "
        + ", ".join(f"p{round(q * 100)} {quantile(took, q):.2f}" for q in (0.5, 0.95, 0.99)),
        f"problems: {len(faults)}",
    ]


def note(
    result: dict[str, Any], faults: list[str], options: argparse.Namespace, picture: str
) -> str:
    """The page of a soak test."""
    lines = result["lines"]
    how = "one process of `farm serve`"
    if not options.no_ray:
        how = f"Ray Serve with {options.engines} engines, {len(result['kills'])} of them killed"
    facts = facts_of(result, faults)
    by_kind = collections.Counter((line["kind"], line["verdict"]) for line in lines)
    outcomes = [f"| {kind} | {verdict} | {n} |" for (kind, verdict), n in sorted(by_kind.items())]
    sizes = [
        f"| {name} | {early:.0f} | {late:.0f} | {late - early:+.0f} |"
        for name, (early, late) in sorted(growth_mib(result["memory"]).items())
    ]
    parts = [
        f"# Soak of the endpoint, {datetime.now(UTC):%Y-%m-%d}",
        "",
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, Python "
        f"{platform.python_version()}, torch {torch.__version__}; base `{options.base}`, "
        f"{options.callers} callers in a second process, {how}.",
        "",
        *(f"- {fact}" for fact in facts),
        "",
        "| request | outcome | count |",
        "|---|---|---|",
        *outcomes,
        "",
        f"![]({picture})",
        "",
        "Memory in MiB, mean of the second and of the last quarter of each process's lifetime:",
        "",
        "| process | early | late | growth |",
        "|---|---|---|---|",
        *sizes,
        *(f"\n- {fault}" for fault in faults[:50]),
    ]
    return "\n".join(parts) + "\n"


def by_status(lines: list[dict[str, Any]], status: int) -> int:
    """The number of responses with a status."""
    return sum(line["status"] == status for line in lines)


def quantile(values: list[float], share: float) -> float:
    """A quantile of sorted values."""
    return values[min(len(values) - 1, int(share * len(values)))] if values else float("nan")
