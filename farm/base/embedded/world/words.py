"""The vocabulary of the synthetic world.

Owns the lists of class nouns, colours, poses, places, accessories, marks and styles, in the order
that defines their indices in a fact vector. Owns no rendering and no wording.
"""

from __future__ import annotations

from typing import Final

from farm.base.names import EMBEDDED_NOUNS

RGB = tuple[int, int, int]

COLOURS: Final[dict[str, RGB]] = {
    "red": (216, 40, 38),
    "orange": (246, 132, 26),
    "yellow": (250, 214, 48),
    "green": (58, 172, 66),
    "blue": (44, 98, 222),
    "purple": (138, 64, 188),
    "pink": (250, 146, 190),
    "brown": (132, 82, 46),
    "black": (46, 44, 52),
    "white": (250, 248, 242),
    "grey": (148, 150, 158),
}
"""sRGB value of each colour word, before the small jitter of each individual."""

CLASS_NOUNS: Final = EMBEDDED_NOUNS

_ANIMAL_POSES: Final = ("sitting", "standing", "jumping", "sleeping")
_THING_POSES: Final = ("standing", "tilted", "upside down", "jumping")

POSES_OF: Final[dict[str, tuple[str, ...]]] = {
    "cat": _ANIMAL_POSES,
    "dog": _ANIMAL_POSES,
    "bird": ("sitting", "standing", "flying", "sleeping"),
    "fish": ("swimming", "jumping", "diving", "sleeping"),
    "mushroom": _THING_POSES,
    "robot": _ANIMAL_POSES,
    "car": _THING_POSES,
    "teapot": ("standing", "tilted", "pouring", "jumping"),
}
"""The four poses of every class noun."""

POSES: Final = tuple(dict.fromkeys(pose for poses in POSES_OF.values() for pose in poses))

SCENERY: Final = (
    "in the snow",
    "on the beach",
    "in space",
    "in the forest",
    "in the city",
    "under water",
    "at night",
    "in the desert",
    "in a meadow",
    "in the mountains",
    "in the kitchen",
    "at sunset",
)
"""The places other than plain backgrounds."""

PLAIN_COLOURS: Final = ("red", "yellow", "green", "blue", "purple", "pink", "white", "grey")
PLACES: Final = SCENERY + tuple(f"on a {colour} background" for colour in PLAIN_COLOURS)

ACCESSORIES: Final = ("hat", "glasses", "scarf", "crown")
MARKS: Final = ("star", "stripes", "dot")
STYLES: Final = ("flat", "pencil")

RARE_TOKENS: Final = (
    "sks", "zwx", "ohwx", "qvk", "xjy", "vqz", "bnha", "phqo", "ktn", "olis", "uvw", "wzx",
    "jqk", "hta",
)  # fmt: skip
"""Identifiers: single tokens of the tokenizer that no training caption uses."""
