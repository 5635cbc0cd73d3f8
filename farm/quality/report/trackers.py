"""Logs a run's curves and scores to TensorBoard, or with accelerate to Weights & Biases or MLflow.

Owns what is logged and under which names. The store stays authoritative: trackers receive a copy of
the records, so logging can be done or repeated at any time after a run.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from farm.errors import UserError
from farm.quality.report.event_files import EventFiles
from farm.quality.report.view import RunView, SubjectView

__all__ = ["TRACKERS", "track_run"]

TRACKERS = ("tensorboard", "wandb", "mlflow")
MAX_POINTS = 400
"""Maximum number of points per curve: trackers plot a few hundred pixels."""


def track_run(run: RunView, names: Sequence[str], *, folder: Path) -> list[str]:
    """Log every trained subject's curves, scores and images; return the trackers used.

    Args:
        folder: folder for TensorBoard's files, with one folder per subject.

    Raises:
        UserError: for a tracker that is unknown, or whose package is not installed.
    """
    for name in names:
        _check(name)
        for subject in run.subjects:
            if isinstance(subject, SubjectView) and subject.status == "committed":
                with _tracker(name, run, subject, folder) as tracker:
                    _log_subject(tracker, subject)
    return list(names)


def _check(name: str) -> None:
    from importlib.util import find_spec

    if name not in TRACKERS:
        raise UserError(f"there is no tracker {name}", f"use one of {', '.join(TRACKERS)}")
    if find_spec(name) is None:
        raise UserError(
            f"the tracker {name} is not installed", f"pip install 'dreambooth-farm[{name}]'"
        )


@contextmanager
def _tracker(name: str, run: RunView, subject: SubjectView, folder: Path) -> Iterator[Any]:
    """The tracker of one subject, opened and finished."""
    label = f"{subject.namespace}/{subject.name}"
    tracker: Any
    if name == "tensorboard":
        tracker = EventFiles(folder / label)
    else:
        tracker = _started(name, run, subject, label)
    try:
        yield tracker
    finally:
        tracker.finish()


def _started(name: str, run: RunView, subject: SubjectView, label: str) -> Any:
    """accelerate's tracker."""
    from accelerate import PartialState, tracking

    PartialState()  # accelerate's trackers need it to find the main process
    tracker: Any
    if name == "wandb":
        tracker = tracking.WandBTracker(
            "dreambooth-farm", group=run.run_id, name=label, config=dict(subject.recipe)
        )
    else:
        tracker = tracking.MLflowTracker(experiment_name=run.run_id, run_name=label)
    tracker.start()
    return tracker


def _log_subject(tracker: Any, subject: SubjectView) -> None:
    stride = max(1, -(-len(subject.loss_curve) // MAX_POINTS))
    for index in range(0, len(subject.loss_curve), stride):
        tracker.log({"loss/train": subject.loss_curve[index]}, step=index + 1)
    for step, loss in subject.evaluation_curve:
        tracker.log({"loss/evaluation": loss}, step=step)
    last = subject.steps_trained
    scores = {
        f"score/{name}": value["mean"]
        for name, value in (subject.card or {}).get("scores", {}).items()
        if "mean" in value
    }
    if scores:
        tracker.log(scores, step=last)
    if hasattr(tracker, "log_images"):  # the MLflow tracker has no log_images
        for picture in subject.progress:
            pixels = _pixels(picture.uri)
            tracker.log_images({"progress": pixels}, step=picture.step)
        if subject.gallery:
            pictures = [_pixels(picture.uri) for picture in subject.gallery]
            side = min(picture.shape[1] for picture in pictures)
            stacked = np.concatenate([picture[:, :side, :side] for picture in pictures])
            tracker.log_images({"gallery": stacked}, step=last)


def _pixels(uri: str) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """A thumbnail's pixels, uint8 [1, P, P, 3]."""
    data = base64.b64decode(uri.partition(",")[2])
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))[None]
