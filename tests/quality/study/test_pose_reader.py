"""Poses are read from images with measured accuracy."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from farm.base.embedded.world import POSES_OF, render_scene, sample_scene
from farm.quality.study.pose_reader import PoseReader


class Outline:
    """A scorer that sees coarse shapes: enough to distinguish poses of a dog."""

    name = "outline"

    def embed_images(self, pictures: Tensor | Sequence[Image.Image]) -> Tensor:
        images = [
            Image.fromarray(one.numpy()) if isinstance(one, Tensor) else one for one in pictures
        ]
        small = [np.asarray(one.convert("L").resize((16, 16))).ravel() for one in images]
        vectors = torch.from_numpy(np.stack(small)).float()
        return torch.nn.functional.normalize(vectors - vectors.mean(1, keepdim=True), dim=1)


@pytest.fixture(scope="module")
def reader() -> PoseReader:
    return PoseReader(Outline(), ["dog"], num_a_pose=30, num_held=10)


def test_the_probe_does_better_than_chance_on_pictures_it_never_saw(reader: PoseReader) -> None:
    assert reader.num_held_out == 40
    assert reader.accuracy > 0.35


def test_pictures_of_one_pose_have_few_poses(reader: PoseReader) -> None:
    from dataclasses import replace

    def rendered(poses: Sequence[str]) -> Tensor:
        scenes = [
            replace(sample_scene(77, n), class_noun="dog", pose=poses[n % len(poses)])
            for n in range(24)
        ]
        return torch.stack([torch.from_numpy(np.array(render_scene(scene))) for scene in scenes])

    one = reader.read("dog", rendered(["sleeping"]))
    many = reader.read("dog", rendered(POSES_OF["dog"]))
    assert one.num == many.num == 24
    assert one.effective < many.effective
