"""Classifies poses with a linear probe on the scorer's embedding, and measures its accuracy.

Cards use text prompts instead (``scores.pose_labels``), which need no fitting. A small CLIP
recognises poses less reliably than classes, and a study that counts poses needs a known accuracy.

Legend: G images, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from PIL import Image
from torch import Tensor

from farm.base.embedded.world import POSES_OF, render_scene, sample_scene
from farm.quality.scorer import ImageScorer
from farm.quality.scores import Poses, poses
from farm.quality.study.linear_probe import LinearProbe, fit_probe

__all__ = ["PoseReader"]

HELD_OUT = 2_000_003
"""A stream of scenes that no training uses."""


class PoseReader:
    """Classifies the poses of some nouns of the synthetic world."""

    def __init__(
        self, scorer: ImageScorer, nouns: Sequence[str], *, num_a_pose: int = 60, num_held: int = 15
    ) -> None:
        """Fit a probe for each noun to rendered images, and measure it on held-out ones.

        Args:
            num_a_pose: images per pose for fitting.
            num_held: images per pose for the accuracy.
        """
        self._scorer = scorer
        self._probes: dict[str, LinearProbe] = {}
        right = total = 0
        for noun in dict.fromkeys(nouns):
            fitted, held = [], []
            for index, pose in enumerate(POSES_OF[noun]):
                pictures = _pictures(noun, pose, index, num_a_pose + num_held)
                vectors_GD = scorer.embed_images(pictures)
                fitted.append(vectors_GD[:num_a_pose])
                held.append(vectors_GD[num_a_pose:])
            probe = self._probes[noun] = fit_probe(fitted)
            for index, vectors_GD in enumerate(held):
                right += probe(vectors_GD).count(index)
                total += len(vectors_GD)
        self.accuracy = round(right / max(total, 1), 4)
        """Accuracy on held-out images."""
        self.num_held_out = total

    def read(self, noun: str, pictures_GPP3: Tensor) -> Poses:
        """The distribution of poses in images of one noun, uint8 [G, P, P, 3]."""
        labels = self._probes[noun](self._scorer.embed_images(pictures_GPP3))
        return poses(labels, POSES_OF[noun])


def _pictures(noun: str, pose: str, index: int, num: int) -> list[Image.Image]:
    first = 10_000 * index
    scenes = (sample_scene(HELD_OUT, first + n) for n in range(num))
    return [render_scene(replace(scene, class_noun=noun, pose=pose)) for scene in scenes]
