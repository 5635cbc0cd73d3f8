"""The synthetic world: an endless stream of captioned images, and subjects with photos."""

from farm.base.embedded.world.captions import SceneCaption, write_caption, write_short_caption
from farm.base.embedded.world.render import PICTURE_PX, render_scene
from farm.base.embedded.world.scene import Framing, Look, Scene, sample_scene
from farm.base.embedded.world.subjects import (
    Individual,
    RenderedPhoto,
    render_class,
    render_subject,
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
    "SceneCaption",
    "Individual",
    "Look",
    "RenderedPhoto",
    "Scene",
    "Framing",
    "render_class",
    "render_scene",
    "render_subject",
    "sample_individual",
    "sample_scene",
    "write_caption",
    "write_short_caption",
]
