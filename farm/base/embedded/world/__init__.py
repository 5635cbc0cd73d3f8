"""The drawn world: captioned pictures without end, and subjects to photograph."""

from farm.base.embedded.world.captions import Caption, write_caption, write_short_caption
from farm.base.embedded.world.render import PICTURE_PX, draw_scene
from farm.base.embedded.world.scene import Look, Scene, View, sample_scene
from farm.base.embedded.world.subjects import (
    Individual,
    Photo,
    draw_class,
    draw_subject,
    sample_individual,
)
from farm.base.embedded.world.words import (
    CLASS_NOUNS,
    COLOURS,
    PLACES,
    POSES_OF,
    RARE_TOKENS,
    SCENERY,
)

__all__ = [
    "CLASS_NOUNS",
    "COLOURS",
    "PICTURE_PX",
    "PLACES",
    "POSES_OF",
    "RARE_TOKENS",
    "SCENERY",
    "Caption",
    "Individual",
    "Look",
    "Photo",
    "Scene",
    "View",
    "draw_class",
    "draw_scene",
    "draw_subject",
    "sample_individual",
    "sample_scene",
    "write_caption",
    "write_short_caption",
]
