"""Plots of the studies, from results as plain values."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["ARM_COLOURS", "plot_by_step"]

ARM_COLOURS = {"without": "#c2541b", "with": "#0e6f68"}
ARM_NAMES = {"without": "without prior preservation", "with": "with prior preservation"}
INK, DIM = "#1c1b19", "#6b6760"


def plot_by_step(result: Mapping[str, Any], metrics: Mapping[str, str], path: Path) -> None:
    """Plot every score of both arms by training step, with intervals."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    style: Any = {
        "font.family": "sans-serif", "axes.edgecolor": DIM, "axes.labelcolor": DIM,
        "xtick.color": DIM, "ytick.color": DIM, "axes.spines.top": False,
        "axes.spines.right": False, "axes.titlesize": 11, "axes.titlelocation": "left",
        "axes.titleweight": "bold", "font.size": 9.5,
    }  # fmt: skip
    with plt.rc_context(style):
        figure, axes = plt.subplots(2, 3, figsize=(12, 6.6), layout="constrained")
        for axis, (metric, title) in zip(axes.flat, metrics.items(), strict=True):
            _plot_metric(axis, result, metric, title)
        handles, labels = axes.flat[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper left", ncols=3, frameon=False)
        figure.savefig(path, dpi=120)
        plt.close(figure)


def _plot_metric(axis: Any, result: Mapping[str, Any], metric: str, title: str) -> None:
    steps = result["steps"]
    for arm, colour in ARM_COLOURS.items():
        points = result["curves"][arm][metric]
        means = [point["mean"] for point in points]
        low = [point.get("low", point["mean"]) for point in points]
        high = [point.get("high", point["mean"]) for point in points]
        axis.fill_between(steps, low, high, color=colour, alpha=0.16, linewidth=0)
        axis.plot(steps, means, color=colour, marker="o", markersize=4, label=ARM_NAMES[arm])
    axis.axhline(points[0]["mean"], color=DIM, linewidth=0.8, linestyle=":", label="untouched base")
    axis.set_title(title, color=INK)
    axis.set_xlabel("training steps")
    axis.set_xlim(left=0)
