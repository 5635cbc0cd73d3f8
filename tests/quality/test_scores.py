"""The formulas, checked on hand-made vectors."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from farm.quality import scores


def unit(*rows: list[float]) -> Tensor:
    return normalize(torch.tensor(rows, dtype=torch.float32), dim=1)


def random_unit(num: int, seed: int, width: int = 6) -> Tensor:
    return normalize(torch.randn(num, width, generator=torch.Generator().manual_seed(seed)), dim=1)


def test_fidelity_is_the_mean_over_all_pairs() -> None:
    pictures, photos = random_unit(7, 0), random_unit(3, 1)
    expected = sum(float(a @ b) for a in pictures for b in photos) / 21
    found = scores.fidelity(pictures, photos)
    assert found is not None
    assert found.mean == pytest.approx(expected, abs=1e-6)
    assert found.num == 7
    same = scores.preservation(pictures, photos)
    assert same is not None
    assert same.mean == found.mean


def test_prompt_fidelity_pairs_each_picture_with_its_own_prompt() -> None:
    pictures, texts = random_unit(5, 2), random_unit(5, 3)
    found = scores.prompt_fidelity(pictures, texts)
    assert found is not None
    assert found.mean == pytest.approx(float((pictures * texts).sum(1).mean()), abs=1e-6)


def test_diversity_of_equal_pictures_is_zero_and_of_orthogonal_ones_one() -> None:
    same = scores.diversity(unit(*[[1.0, 2.0, 3.0]] * 5))
    assert same is not None
    assert same.mean == pytest.approx(0, abs=1e-6)
    apart = scores.diversity(torch.eye(6))
    assert apart is not None
    assert apart.mean == pytest.approx(1)
    assert apart.low == pytest.approx(1)  # a resample never counts a picture against itself


def test_diversity_needs_enough_pictures() -> None:
    assert scores.diversity(torch.eye(3)) is None


def test_no_drift_where_nothing_changed() -> None:
    pictures = random_unit(4, 5)
    unchanged = scores.drift(pictures, pictures)
    assert unchanged is not None
    assert unchanged.mean == pytest.approx(0, abs=1e-6)
    opposite = scores.drift(pictures, -pictures)
    assert opposite is not None
    assert opposite.mean == pytest.approx(2, abs=1e-6)


def test_copying_is_one_for_a_repeated_photo() -> None:
    photos = random_unit(3, 6)
    found = scores.copying(photos[[0, 1, 2, 0]], photos)
    assert found is not None
    assert found.mean == pytest.approx(1, abs=1e-6)


def test_photos_are_compared_with_other_photos_only() -> None:
    photos = unit([1, 0], [1, 0], [0, 1])
    found = scores.photo_likeness(photos)
    assert found is not None
    assert found.mean == pytest.approx(1 / 3, abs=1e-6)
    assert found.nearest == pytest.approx(2 / 3, abs=1e-6)
    assert scores.photo_likeness(photos[:1]) is None


def test_poses_are_counted_and_their_spread_measured() -> None:
    texts = torch.eye(4)
    names = ("sitting", "standing", "jumping", "sleeping")
    assert scores.pose_labels(torch.eye(4)[[3, 0, 2]], texts) == [3, 0, 2]
    even = scores.poses([0, 1, 2, 3], names)
    assert even.counts == dict.fromkeys(names, 1)
    assert even.entropy_bits == pytest.approx(2)
    assert even.effective == pytest.approx(4)
    stuck = scores.poses([0, 0, 0, 0], names)
    assert stuck.counts["sitting"] == 4
    assert stuck.entropy_bits == 0
    uneven = scores.poses([0, 0, 0, 1], names)
    expected = -(0.75 * math.log2(0.75) + 0.25 * math.log2(0.25))
    assert uneven.entropy_bits == pytest.approx(expected)
