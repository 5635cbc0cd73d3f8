"""Plots of a training's log: one panel per stage."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path

import matplotlib

_SHOWN = {
    "scorer": "loss",
    "scorer-refined": "loss",
    "vae": "psnr_db",
    "decoder": "psnr_db",
    "denoiser": "loss",
}
"""The value plotted for each stage."""


def read_progress(path: Path) -> dict[str, list[tuple[int, float]]]:
    """Read `progress.jsonl`: the (step, value) pairs of each plotted stage."""
    points: dict[str, list[tuple[int, float]]] = defaultdict(list)
    for line in path.read_text().splitlines():
        entry = json.loads(line)
        number = _SHOWN.get(entry["stage"])
        if number is not None:
            points[entry["stage"]].append((entry["step"], entry[number]))
    return dict(points)


def plot_curves(progress: Path, picture: Path) -> None:
    """Plot a training's log as a PNG."""
    matplotlib.use("Agg")
    from matplotlib import pyplot

    points = read_progress(progress)
    figure, panels = pyplot.subplots(
        1, len(points), figsize=(3.6 * len(points), 2.8), squeeze=False, layout="constrained"
    )
    for panel, (stage, pairs) in zip(panels[0], points.items(), strict=True):
        steps, values = zip(*pairs, strict=True)
        panel.plot(steps, values, linewidth=1)
        panel.set_title(stage, fontsize=10)
        panel.set_xlabel("step", fontsize=8)
        panel.set_ylabel(_SHOWN[stage].replace("psnr_db", "PSNR (dB)"), fontsize=8)
        panel.tick_params(labelsize=7)
    picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture, dpi=110)
    pyplot.close(figure)
