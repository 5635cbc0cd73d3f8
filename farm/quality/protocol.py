"""Which prompts are drawn to judge an adapter, and how many pictures that may cost.

Owns the prompt lists (the DreamBooth paper's for any real base; the drawn world's own words for
the embedded one, which knows no others), and the scoring budget. Draws nothing.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from farm.base.embedded.world.words import CLASS_NOUNS, POSES_OF, SCENERY
from farm.base.names import EMBEDDED
from farm.quality.intervals import MIN_PICTURES
from farm.recipe import Recipe
from farm.schedulers import SchedulerName

__all__ = [
    "LIVE_TEMPLATES",
    "OBJECT_TEMPLATES",
    "PromptPair",
    "Protocol",
    "ScoringBudget",
    "rendered_protocol",
    "protocol_for",
]

SubjectKind = Literal["object", "live"]

_PLACE_TEMPLATES = (
    "a {} in the jungle",
    "a {} in the snow",
    "a {} on the beach",
    "a {} on a cobblestone street",
    "a {} on top of pink fabric",
    "a {} on top of a wooden floor",
    "a {} with a city in the background",
    "a {} with a mountain in the background",
    "a {} with a blue house in the background",
    "a {} on top of a purple rug in a forest",
)
_PROPERTY_TEMPLATES = ("a red {}", "a purple {}", "a shiny {}", "a wet {}", "a cube shaped {}")

OBJECT_TEMPLATES = (
    *_PLACE_TEMPLATES,
    "a {} with a wheat field in the background",
    "a {} with a tree and autumn leaves in the background",
    "a {} with the Eiffel Tower in the background",
    "a {} floating on top of water",
    "a {} floating in an ocean of milk",
    "a {} on top of green grass with sunflowers around it",
    "a {} on top of a mirror",
    "a {} on top of the sidewalk in a crowded street",
    "a {} on top of a dirt road",
    "a {} on top of a white rug",
    *_PROPERTY_TEMPLATES,
)
"""The DreamBooth paper's 25 prompts for things (google/dreambooth, prompts_and_classes.txt)."""

LIVE_TEMPLATES = (
    *_PLACE_TEMPLATES,
    "a {} wearing a red hat",
    "a {} wearing a santa hat",
    "a {} wearing a rainbow scarf",
    "a {} wearing a black top hat and a monocle",
    "a {} in a chef outfit",
    "a {} in a firefighter outfit",
    "a {} in a police outfit",
    "a {} wearing pink glasses",
    "a {} wearing a yellow shirt",
    "a {} in a purple wizard outfit",
    *_PROPERTY_TEMPLATES,
)
"""The same for living subjects."""

DRAWN_TEMPLATES = tuple(f"a {{}} {place}" for place in SCENERY)
"""Places that the drawn world knows; the embedded base has no other words."""

UNRELATED = (
    "a bowl of fruit on a table",
    "a mountain lake at sunset",
    "a city street at night",
    "an old sailing ship",
    "a portrait of a woman reading",
    "a house in the countryside",
    "a plate of pasta",
    "a field of sunflowers",
)
"""Prompts that name no subject's class, for drift."""

LIVE_NOUNS = frozenset(
    re.findall(
        r"\w+",
        "cat dog puppy kitten bird parrot horse pony rabbit hamster fish turtle person man woman "
        "boy girl child baby face animal pet cow pig sheep goat fox bear lion tiger",
    )
)
LIVE_POSES = ("sitting", "standing", "lying down", "running", "jumping", "sleeping")


@dataclass(frozen=True)
class PromptPair:
    """One prompt, as it is drawn and as the scorer reads it."""

    drawn: str
    """With the identifier in place of ``[V]``."""
    text: str
    """Without it: the scorer was taught no identifier."""


@dataclass(frozen=True)
class Protocol:
    """The prompts by which subjects of one kind are judged."""

    name: str
    """Stands in the quality card; scores of different protocols must not be compared."""
    templates: tuple[str, ...]
    """Each with ``{}`` where the noun phrase goes."""
    unrelated: tuple[str, ...]
    poses: tuple[str, ...]
    """What the class can be doing; empty where the notion makes no sense."""

    def prompts(self, num: int, identifier: str, class_noun: str) -> list[PromptPair]:
        """``num`` prompts spread over the whole list; more than the list has, and it repeats."""
        return [
            PromptPair(template.format(f"{identifier} {class_noun}"), template.format(class_noun))
            for template in _spread(self.templates, num)
        ]

    def class_texts(self, num: int, class_noun: str) -> list[str]:
        """The same prompts for the bare class, for the untouched base."""
        return [template.format(class_noun) for template in _spread(self.templates, num)]

    def unrelated_prompts(self, num: int) -> list[str]:
        """``num`` prompts that have nothing to do with the subject."""
        return _spread(self.unrelated, num)

    def pose_texts(self, class_noun: str) -> list[str]:
        """One text per pose, for the scorer to choose among."""
        return [f"a {class_noun} {pose}" for pose in self.poses]


def protocol_for(base_name: str, class_noun: str, kind: SubjectKind | None = None) -> Protocol:
    """The protocol for one class noun on one base.

    Args:
        kind: ``object`` or ``live``; None decides by the noun.
    """
    if base_name == EMBEDDED:
        return rendered_protocol(class_noun)
    live = kind == "live" or (kind is None and class_noun.split()[-1] in LIVE_NOUNS)
    if live:
        return Protocol("DreamBooth, live subjects", LIVE_TEMPLATES, UNRELATED, LIVE_POSES)
    return Protocol("DreamBooth, objects", OBJECT_TEMPLATES, UNRELATED, ())


def rendered_protocol(class_noun: str) -> Protocol:
    """The protocol in the drawn world's words, whatever the noun."""
    others = [noun for noun in CLASS_NOUNS if noun != class_noun]
    unrelated = tuple(f"a {noun} {SCENERY[index]}" for index, noun in enumerate(others))
    poses = POSES_OF.get(class_noun, ())
    return Protocol("drawn world", DRAWN_TEMPLATES, unrelated, poses)


@dataclass(frozen=True)
class ScoringBudget:
    """How many pictures each adapter is judged by, and how carefully each is drawn."""

    num_prompt_pictures: int = 8
    """Pictures of the subject in the protocol's prompts: fidelity, CLIP-T, copying."""
    num_class_pictures: int = 6
    """Pictures of the bare class: PRES, DIV, poses."""
    num_drift_pictures: int = 4
    """Pictures of unrelated prompts, each drawn by the base too."""
    steps: int = 12
    """Denoising steps a picture; 12 of DPM-Solver++ rank adapters as 50 of DDIM would."""
    guidance: float = 5.0
    """Classifier-free guidance; 1 halves the cost and the pictures' sharpness."""
    scheduler: SchedulerName = "dpm++2m"

    @property
    def num_pictures(self) -> int:
        """Pictures drawn for one adapter."""
        return self.num_prompt_pictures + self.num_class_pictures + self.num_drift_pictures

    @property
    def denoiser_rows(self) -> int:
        """Denoiser rows (one latent, one forward pass) that one adapter costs."""
        return self.num_pictures * self.steps * (2 if self.guidance > 1 else 1)

    @classmethod
    def full(cls) -> ScoringBudget:
        """The paper's own: 25 prompts × 4 pictures, and as many of the class."""
        return cls(100, 100, 32, steps=50, guidance=7.5, scheduler="ddim")

    @classmethod
    def within(cls, recipe: Recipe, share: float = 0.12) -> ScoringBudget | None:
        """The largest budget that costs at most ``share`` of training by ``recipe``.

        Counted in denoiser rows: an adapter's training step costs ``TRAINING_COST`` forward
        passes a row. The share is kept below the promised 20 % because decoding, scoring and
        the base's own pictures come on top. A short training gets the smallest card that is a
        card, up to half of what it cost: every adapter shall be judged.

        Returns:
            None where even the fewest pictures that make a score would cost more than that.
        """
        rows_a_step = recipe.instance_rows + (recipe.prior_rows if recipe.uses_prior else 0)
        allowed = share * recipe.steps * rows_a_step * TRAINING_COST
        if cls().denoiser_rows <= allowed:
            return cls()
        least = cls(MIN_PICTURES, MIN_PICTURES, MIN_PICTURES, steps=8)
        if least.denoiser_rows > allowed:
            fits = share > 0 and least.denoiser_rows <= allowed * max(1.0, SHORT_SHARE / share)
            return least if fits else None
        spare = int((allowed - least.denoiser_rows) / (2 * least.steps))
        return replace(
            least,
            num_prompt_pictures=MIN_PICTURES + min(4, (spare + 1) // 2),
            num_class_pictures=MIN_PICTURES + min(2, spare // 2),
        )


SHORT_SHARE = 0.5
"""Of its training's cost that the smallest card of a short recipe may take."""
TRAINING_COST = 2.13
"""Forward and backward of a LoRA over a frozen base, in forward passes (Stable Diffusion v1-5:
1.714 of 0.803 TFLOP, counted)."""


def _spread(items: Sequence[str], num: int) -> list[str]:
    """``num`` items at even distances; whole rounds first where there are fewer than that."""
    rounds, rest = divmod(num, len(items))
    return list(items) * rounds + [items[index * len(items) // rest] for index in range(rest)]
