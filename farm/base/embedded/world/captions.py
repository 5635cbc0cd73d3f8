"""Captions: a random subset of a scene's facts, in varied wording.

Owns the wording and the facts that each caption states. The facts are exact, so it is known whether
a caption is *true* of any image: the scorer's training never treats a true pair as false. Owns no
rendering.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from farm.base.embedded.world.scene import Scene
from farm.base.embedded.world.words import (
    ACCESSORIES,
    CLASS_NOUNS,
    COLOURS,
    MARKS,
    PLACES,
    POSES,
    STYLES,
)

_COLOUR_WORDS = tuple(COLOURS)
FACTS = (
    "class_noun",
    "colour",
    "pose",
    "place",
    "style",
    "accessory",
    "accessory_colour",
    "mark",
    "mark_colour",
)
"""The facts of a scene that captions may state, in the order of a fact vector."""

_OPTIONS: dict[str, tuple[str, ...]] = {
    "class_noun": CLASS_NOUNS,
    "colour": _COLOUR_WORDS,
    "pose": POSES,
    "place": PLACES,
    "style": STYLES,
    "accessory": ACCESSORIES,
    "accessory_colour": _COLOUR_WORDS,
    "mark": MARKS,
    "mark_colour": _COLOUR_WORDS,
}
UNSTATED = -1

_PREFIXES = (
    "",
    "",
    "",
    "",
    "a photo of ",
    "a photo of ",
    "a picture of ",
    "an image of ",
    "a good photo of ",
)
_STYLE_PREFIXES = {
    "flat": ("a flat drawing of ", "a drawing of ", "a painting of "),
    "pencil": ("a pencil drawing of ", "a pencil drawing of ", "a pencil sketch of "),
}


@dataclass(frozen=True)
class SceneCaption:
    """A text, and the names of the facts that it states."""

    text: str
    stated: frozenset[str]


def fact_vector(scene: Scene) -> NDArray[np.int16]:
    """The facts as option indices, (9,); -2 where the scene has no such fact."""
    values = (getattr(scene, fact) for fact in FACTS)
    return np.array(
        [
            -2 if value is None else _OPTIONS[fact].index(value)
            for fact, value in zip(FACTS, values, strict=True)
        ],
        dtype=np.int16,
    )


def stated_vector(scene: Scene, caption: SceneCaption) -> NDArray[np.int16]:
    """The stated facts as option indices, (9,); `UNSTATED` for all others."""
    facts = fact_vector(scene)
    stated = np.array([fact in caption.stated for fact in FACTS])
    return np.where(stated, facts, UNSTATED).astype(np.int16)


def write_caption(scene: Scene, rng: random.Random) -> SceneCaption:
    """Write a caption: a quarter of them state one or two facts, the others any number."""
    lavish = rng.random()
    stated = {"class_noun"}
    share = 0.3 if lavish < 0.35 else 0.65 if lavish < 0.8 else 1.0
    if rng.random() < max(share, 0.5):
        stated.add("colour")
    if rng.random() < max(share, 0.5):
        stated.add("place")
    if rng.random() < share * 0.75:
        stated.add("pose")
    if scene.accessory and rng.random() < share + 0.25:
        stated |= {"accessory", "accessory_colour"} if rng.random() < 0.85 else {"accessory"}
    if scene.mark and rng.random() < share + 0.25:
        stated |= {"mark", "mark_colour"} if rng.random() < 0.85 else {"mark"}
    if rng.random() < (0.92 if scene.style == "pencil" else 0.1):
        stated.add("style")
    return phrase(scene, frozenset(stated), rng)


def write_short_caption(scene: Scene, rng: random.Random) -> SceneCaption:
    """Write a caption of one or two facts: `a cat`, `a red cat`, `a cat in the snow`."""
    extra = rng.choice(("", "", "", "colour", "colour", "place", "place", "pose", "colour+place"))
    stated = {"class_noun", *filter(None, extra.split("+"))}
    if scene.style == "pencil" and rng.random() < 0.5:
        stated.add("style")
    return phrase(scene, frozenset(stated), rng)


def phrase(scene: Scene, stated: frozenset[str], rng: random.Random) -> SceneCaption:
    """Phrase the stated facts of a scene in one of several ways."""
    noun = f"{scene.colour} {scene.class_noun}" if "colour" in stated else scene.class_noun
    article = "an" if noun[0] in "aeiou" else "a"
    if rng.random() < 0.06:
        article = "the"
    prefix = rng.choice(_STYLE_PREFIXES[scene.style] if "style" in stated else _PREFIXES)
    parts = []
    if "pose" in stated:
        lead = "that is " if not prefix and rng.random() < 0.1 else ""
        parts.append(lead + scene.pose)
    details = _details(scene, stated, rng)
    place = [scene.place] if "place" in stated else []
    comma = rng.random() < 0.08
    if place and rng.random() < 0.25:
        parts = [*parts, *place, *details]
    else:
        parts = [*parts, *details, *place]
    text = (", " if comma else " ").join([f"{prefix}{article} {noun}", *parts])
    return SceneCaption(text, stated)


def _details(scene: Scene, stated: frozenset[str], rng: random.Random) -> list[str]:
    details = []
    if "accessory" in stated and scene.accessory:
        article = "" if scene.accessory == "glasses" else "a "
        if "accessory_colour" in stated:
            starts_open = (scene.accessory_colour or "")[0] in "aeiou"
            article = "" if scene.accessory == "glasses" else "an " if starts_open else "a "
            article += f"{scene.accessory_colour} "
        verb = rng.choice(("wearing", "wearing", "with", "in"))
        details.append(f"{verb} {article}{scene.accessory}")
    if "mark" in stated and scene.mark:
        coloured = f"{scene.mark_colour} {scene.mark}" if "mark_colour" in stated else scene.mark
        article = "" if scene.mark == "stripes" else "an " if coloured[0] in "aeiou" else "a "
        details.append(f"with {article}{coloured}")
    rng.shuffle(details)
    return details
