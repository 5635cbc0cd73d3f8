"""The evaluation prompts of an adapter, and the budget of evaluation images.

Owns the prompt lists (the DreamBooth paper's for any real base; the synthetic world's vocabulary
for the embedded base, which knows no other words) and the scoring budget. Generates nothing.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from farm.base.embedded.world.words import CLASS_NOUNS, POSES_OF, SCENERY
from farm.base.names import EMBEDDED, edition_of
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
    "share_to_score",
    "steps_to_score",
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

RENDERED_TEMPLATES = tuple(f"a {{}} {place}" for place in SCENERY)
"""The places of the synthetic world; the embedded base knows no other words."""

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
"""Prompts without any subject's class, for drift."""

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
    """One prompt, as the base generates from it and as the scorer reads it."""

    prompt: str
    """With the identifier in place of ``[V]``."""
    text: str
    """Without the identifier, which the scorer does not know."""


@dataclass(frozen=True)
class Protocol:
    """The evaluation prompts for one kind of subject."""

    name: str
    """Recorded in the quality card; scores of different protocols must not be compared."""
    templates: tuple[str, ...]
    """Each with ``{}`` where the noun phrase goes."""
    unrelated: tuple[str, ...]
    poses: tuple[str, ...]
    """Poses of the class; empty for classes without poses."""

    def prompts(self, num: int, identifier: str, class_noun: str) -> list[PromptPair]:
        """``num`` prompts spread over the whole list, which repeats if ``num`` exceeds it."""
        return [
            PromptPair(template.format(f"{identifier} {class_noun}"), template.format(class_noun))
            for template in _spread(self.templates, num)
        ]

    def class_texts(self, num: int, class_noun: str) -> list[str]:
        """The same prompts for the class without a subject, for the untouched base."""
        return [template.format(class_noun) for template in _spread(self.templates, num)]

    def unrelated_prompts(self, num: int) -> list[str]:
        """``num`` prompts unrelated to the subject."""
        return _spread(self.unrelated, num)

    def pose_texts(self, class_noun: str) -> list[str]:
        """One text per pose, among which the scorer chooses."""
        return [f"a {class_noun} {pose}" for pose in self.poses]


def protocol_for(base_name: str, class_noun: str, kind: SubjectKind | None = None) -> Protocol:
    """The protocol for one class noun on one base.

    Args:
        kind: ``object`` or ``live``; None decides by the noun.
    """
    if edition_of(base_name) == EMBEDDED:
        return rendered_protocol(class_noun)
    live = kind == "live" or (kind is None and class_noun.split()[-1] in LIVE_NOUNS)
    if live:
        return Protocol("DreamBooth, live subjects", LIVE_TEMPLATES, UNRELATED, LIVE_POSES)
    return Protocol("DreamBooth, objects", OBJECT_TEMPLATES, UNRELATED, ())


def rendered_protocol(class_noun: str) -> Protocol:
    """The protocol in the synthetic world's vocabulary, for any noun."""
    others = [noun for noun in CLASS_NOUNS if noun != class_noun]
    unrelated = tuple(f"a {noun} {SCENERY[index]}" for index, noun in enumerate(others))
    poses = POSES_OF.get(class_noun, ())
    return Protocol("synthetic world", RENDERED_TEMPLATES, unrelated, poses)


@dataclass(frozen=True)
class ScoringBudget:
    """The number of evaluation images per adapter, and their sampling settings."""

    num_prompt_pictures: int = 8
    """Images of the subject with the protocol's prompts: fidelity, CLIP-T, copying."""
    num_class_pictures: int = 6
    """Images of the class without the identifier: PRES, DIV, poses."""
    num_drift_pictures: int = 4
    """Images of unrelated prompts, each also generated by the base."""
    steps: int = 12
    """Denoising steps per image; 12 steps of DPM-Solver++ rank adapters as 50 of DDIM do."""
    guidance: float = 5.0
    """Classifier-free guidance; 1 halves the cost, and the images are less sharp."""
    scheduler: SchedulerName = "dpm++2m"

    @property
    def num_pictures(self) -> int:
        """Images generated per adapter."""
        return self.num_prompt_pictures + self.num_class_pictures + self.num_drift_pictures

    @property
    def denoiser_rows(self) -> int:
        """Denoiser rows (one latent, one forward pass) that one adapter costs."""
        return self.num_pictures * self.steps * (2 if self.guidance > 1 else 1)

    @classmethod
    def full(cls) -> ScoringBudget:
        """The paper's budget: 25 prompts × 4 images, and as many of the class."""
        return cls(100, 100, 32, steps=50, guidance=7.5, scheduler="ddim")

    @classmethod
    def least(cls) -> ScoringBudget:
        """The smallest budget with which every score has enough images."""
        return cls(MIN_PICTURES, MIN_PICTURES, MIN_PICTURES, steps=8)

    @classmethod
    def within(cls, recipe: Recipe, share: float = 0.12) -> ScoringBudget | None:
        """The largest budget that costs at most ``share`` of a training with ``recipe``.

        Counted in denoiser rows: a training step costs ``TRAINING_COST`` forward passes per row.
        The default share is below the documented 20 % because decoding, scoring and the base's own
        images add to it. A short training gets the smallest valid card, up to half of the
        training's cost, so that as many adapters as possible are scored.

        Returns:
            None if even the minimum number of images would cost more than that.
        """
        allowed = share * recipe.steps * _step_cost(recipe)
        if cls().denoiser_rows <= allowed:
            return cls()
        least = cls.least()
        if least.denoiser_rows > allowed:
            fits = share > 0 and least.denoiser_rows <= allowed * max(1.0, SHORT_SHARE / share)
            return least if fits else None
        spare = int((allowed - least.denoiser_rows) / (2 * least.steps))
        return replace(
            least,
            num_prompt_pictures=MIN_PICTURES + min(4, (spare + 1) // 2),
            num_class_pictures=MIN_PICTURES + min(2, spare // 2),
        )


def steps_to_score(recipe: Recipe, share: float) -> int:
    """The fewest steps of a recipe with which it is scored; ``share`` must be positive."""
    rows = ScoringBudget.least().denoiser_rows
    return math.ceil(rows / (max(share, SHORT_SHARE) * _step_cost(recipe)))


def share_to_score(recipe: Recipe) -> float:
    """The smallest share, in whole percent, with which a recipe is scored."""
    rows = ScoringBudget.least().denoiser_rows
    return math.ceil(100 * rows / (recipe.steps * _step_cost(recipe))) / 100


def _step_cost(recipe: Recipe) -> float:
    """The cost of a training step, in denoiser rows."""
    rows = recipe.instance_rows + (recipe.prior_rows if recipe.uses_prior else 0)
    return rows * TRAINING_COST


SHORT_SHARE = 0.5
"""Maximum cost of the smallest card of a short recipe, as a fraction of its training."""
TRAINING_COST = 2.13
"""Cost of a LoRA's forward and backward pass over a frozen base, in forward passes (Stable
Diffusion v1-5: 1.714 against 0.803 TFLOP, counted)."""


def _spread(items: Sequence[str], num: int) -> list[str]:
    """``num`` evenly spaced items; full rounds first if there are fewer items."""
    rounds, rest = divmod(num, len(items))
    return list(items) * rounds + [items[index * len(items) // rest] for index in range(rest)]
