"""Curves, scores and images reach TensorBoard; an unknown tracker is refused with a remedy."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from farm.errors import UserError
from farm.quality.report.thumbs import data_uri
from farm.quality.report.trackers import track_run
from farm.quality.report.view import ReportImage, RunView, SubjectView

SUBJECT = SubjectView(
    "cat",
    "cat",
    "default",
    "cat",
    "committed",
    loss_curve=[0.5, 0.4, 0.3],
    evaluation_curve=[(2, 0.35)],
    steps_trained=3,
    card={"scores": {"clip_i": {"mean": 0.8}, "div": {"missing": "few"}}},
    gallery=[ReportImage(data_uri(Image.new("RGB", (32, 32), "red"), 32), "a sks cat")],
)


def test_tensorboard_gets_curves_scores_and_pictures(tmp_path: Path) -> None:
    failed = replace(SUBJECT, name="dog", status="quarantined")
    run = RunView("r", "embedded", "", 1.0, [SUBJECT, failed])
    assert track_run(run, ["tensorboard"], folder=tmp_path) == ["tensorboard"]
    events = EventAccumulator(str(tmp_path / "default" / "cat"))
    events.Reload()
    losses = events.Scalars("loss/train")
    assert [(event.step, round(event.value, 3)) for event in losses] == [
        (1, 0.5),
        (2, 0.4),
        (3, 0.3),
    ]
    assert events.Scalars("loss/evaluation")[0].step == 2
    assert events.Scalars("score/clip_i")[0].value == pytest.approx(0.8)
    assert "score/div" not in events.Tags()["scalars"]
    picture = Image.open(io.BytesIO(events.Images("gallery")[0].encoded_image_string))
    assert picture.size == (32, 32)
    assert not (tmp_path / "default" / "dog").exists()


def test_an_unknown_tracker_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no tracker neptune"):
        track_run(RunView("r", "b", "", 1.0, []), ["neptune"], folder=tmp_path)


def test_a_tracker_that_is_not_installed_names_its_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError) as caught:
        track_run(RunView("r", "b", "", 1.0, []), ["wandb"], folder=tmp_path)
    assert "dreambooth-farm[wandb]" in caught.value.remedy
