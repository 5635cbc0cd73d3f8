"""How far the scorer's poses can be trusted: its accuracy on pictures whose pose is known.

Owns the check that stands beside every number about poses.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from farm.base.embedded.world.draw import draw_scene
from farm.base.embedded.world.scene import sample_scene
from farm.base.embedded.world.words import POSES_OF
from farm.quality.protocol import drawn_protocol
from farm.quality.scorer import Scorer

__all__ = ["pose_accuracy"]

HELD_OUT = 2_000_003
"""A stream of scenes that nothing was trained on."""


def pose_accuracy(
    scorer: Scorer, nouns: Sequence[str], num_a_pose: int = 15
) -> dict[str, float | int]:
    """Share of drawn pictures whose pose the scorer names rightly, over all nouns and poses."""
    right = total = 0
    for noun in nouns:
        protocol = drawn_protocol(noun)
        texts_KD = scorer.embed_texts(protocol.pose_texts(noun))
        for index, pose in enumerate(POSES_OF[noun]):
            scenes = [
                replace(sample_scene(HELD_OUT, 1000 * index + n), class_noun=noun, pose=pose)
                for n in range(num_a_pose)
            ]
            pictures_GD = scorer.embed_images([draw_scene(scene) for scene in scenes])
            chosen_G = (pictures_GD @ texts_KD.T).argmax(1)
            right += int((chosen_G == index).sum())
            total += len(scenes)
    return {"accuracy": round(right / total, 4), "num": total}
