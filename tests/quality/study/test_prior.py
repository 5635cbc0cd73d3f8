"""The complete prior study runs on a tiny base with random weights, and reports its results."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from farm.quality.protocol import ScoringBudget
from farm.quality.scorer import ClipScorer
from farm.quality.study.prior import ARMS, METRICS, PriorStudy, run_prior_study
from farm.quality.study.rendered_subjects import render_photos, sample_subjects

STUDY = PriorStudy(
    num_subjects=2,
    num_seeds=2,
    steps=4,
    num_checks=2,
    num_photos=2,
    num_prior_images=3,
    rank=2,
    budget=ScoringBudget(4, 4, 4, steps=2, guidance=1.0),
)


@pytest.fixture(scope="module")
def study(
    tmp_path_factory: pytest.TempPathFactory, clip_folder: Path
) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("study")
    scorer = ClipScorer(clip_folder)
    return out, run_prior_study("tiny", STUDY, out, scorer=scorer, say=lambda text: None)


def test_every_figure_has_its_interval(study: tuple[Path, dict[str, Any]]) -> None:
    _, result = study
    assert result["steps"] == [0, 2, 4]
    for arm in ARMS:
        for metric in METRICS:
            points = result["curves"][arm][metric]
            assert len(points) == 3
            for point in points:
                assert point["low"] <= point["mean"] <= point["high"]
                assert point["num"] == STUDY.num_subjects  # the unit is the individual


def test_both_arms_begin_at_the_same_base(study: tuple[Path, dict[str, Any]]) -> None:
    _, result = study
    for metric in METRICS:
        first = [result["curves"][arm][metric][0] for arm in ARMS]
        assert first[0] == first[1]


def test_the_arms_differ_only_by_the_prior(study: tuple[Path, dict[str, Any]]) -> None:
    without, with_ = (STUDY.recipe(arm, 3).model_dump() for arm in ARMS)
    changed = {key for key in without if without[key] != with_[key]}
    assert changed == {"prior_rows", "num_prior_images"}
    _, result = study
    assert result["contrasts"]["drift"]["difference"]["mean"] != 0


def test_the_page_shows_tables_plots_and_grids(study: tuple[Path, dict[str, Any]]) -> None:
    out, result = study
    page = (out / "README.md").read_text()
    assert json.loads((out / "results.json").read_text()) == json.loads(json.dumps(result))
    for name in ("arms.png", "steps.png", "by-step.png"):
        assert f"({name})" in page
        with Image.open(out / name) as picture:
            assert min(picture.size) > 100
    for title in METRICS.values():
        assert title in page
    assert "```sh\nfarm study prior --base" in page


def test_photos_are_taken_in_one_pose_and_many_places() -> None:
    person = sample_subjects(1, ["dog"])[0]
    photos = render_photos(person, 4, poses=["sitting"])
    assert photos == render_photos(person, 4, poses=["sitting"])
    corners = {photo.getpixel((2, 2)) for photo in photos}
    assert len(corners) > 1


def test_individuals_have_names_of_their_own() -> None:
    names = [person.name for person in sample_subjects(32, ["dog", "cat", "robot", "bird"])]
    assert len(set(names)) == 32
