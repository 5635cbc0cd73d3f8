"""A resolved subject: all defaults applied, all photos found.

Owns the resolved values (``Subject``, ``Photo``, ``PriorSettings``), the charset of names and the
rules of prompts. The user's form, with its shorthands, is in ``schema.py``; bytes and pixels are in
``photos/``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from farm.recipe import Recipe
from farm.schedulers import SchedulerName
from farm.text.safe_names import MAX_NAME_LENGTH, NAME_PATTERN

__all__ = [
    "CLASS_NOUN_FIELD",
    "DEFAULT_CLASS_PROMPT",
    "DEFAULT_IDENTIFIER",
    "DEFAULT_INSTANCE_PROMPT",
    "DEFAULT_NAMESPACE",
    "DEFAULT_SAMPLE_PROMPTS",
    "MAX_CAPTION",
    "PLACEHOLDER",
    "CaptionText",
    "ClassNoun",
    "Identifier",
    "Name",
    "Photo",
    "PriorSettings",
    "Prompt",
    "Subject",
    "names_identifier",
]

PLACEHOLDER = "[V]"
"""Stands for the identifier in every prompt."""
CLASS_NOUN_FIELD = "{class_noun}"
"""Stands for the class noun in every prompt of a manifest; resolved prompts no longer hold it."""

DEFAULT_NAMESPACE = "default"
DEFAULT_IDENTIFIER = "sks"
DEFAULT_INSTANCE_PROMPT = "a photo of [V] {class_noun}"
DEFAULT_CLASS_PROMPT = "a photo of a {class_noun}"
DEFAULT_SAMPLE_PROMPTS = ("a photo of [V] {class_noun}", "a [V] {class_noun} in space")

MAX_CAPTION = 10_000
"""Characters of a caption."""
_NO_CONTROL = r"^[^\x00-\x1f\x7f]*$"
Name = Annotated[str, StringConstraints(pattern=NAME_PATTERN, max_length=MAX_NAME_LENGTH)]
ClassNoun = Annotated[
    str, StringConstraints(strip_whitespace=True, pattern=_NO_CONTROL, min_length=1, max_length=100)
]
Prompt = Annotated[
    str,
    StringConstraints(strip_whitespace=True, pattern=_NO_CONTROL, min_length=1, max_length=1000),
]
CaptionText = Annotated[
    str,
    StringConstraints(
        strip_whitespace=True, pattern=_NO_CONTROL, min_length=1, max_length=MAX_CAPTION
    ),
]
"""A photo's caption, wherever it is written. Captions that language models write are often longer
than prompts; what a base does not read of one is a warning."""
Identifier = Annotated[str, StringConstraints(pattern=r"^[^\s\x00-\x1f\x7f\[\]{}]{1,64}$")]


@dataclass(frozen=True, slots=True)
class Photo:
    """One photo: its URI, and the caption that replaces the instance prompt."""

    uri: str
    """Absolute local path, fsspec URL, or ``zip://member::archive`` for a member of an archive."""
    caption: str | None = None


class PriorSettings(BaseModel):
    """How the base model generates the class images of a prior set."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    scheduler: SchedulerName = "base"
    """Sampler of the class images; ``base`` is the one that the base's own folder names."""
    steps: int = Field(25, ge=1, le=1_000)
    """Denoising steps of each class image. The set is shared by all subjects of a class, and class
    images need to be typical, not flawless."""
    guidance: float = Field(5.0, ge=1, le=30)
    """Classifier-free guidance scale; 1 generates without guidance, at half the cost."""
    seed: int = Field(0, ge=0, lt=2**63)
    """Root of the seeds of the class images; each image has its own."""


class Subject(BaseModel):
    """One thing to learn, resolved: no field is left to a default elsewhere."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    id: Name
    """Unique in its manifest."""
    class_noun: ClassNoun
    """What it is: ``cat``, ``stuffed animal``."""
    photos: tuple[Photo, ...] = Field(min_length=1)
    """In the order of the manifest; an archive or folder in the order of its names."""
    namespace: Name = DEFAULT_NAMESPACE
    """Owner of the adapter; the endpoint's keys are bound to namespaces."""
    name: Name
    """Under which the adapter is served; the id where the manifest gives none."""
    identifier: Identifier = DEFAULT_IDENTIFIER
    """The rare token that ``[V]`` stands for."""
    instance_prompt: Prompt
    """With ``[V]``; of every photo that has no caption of its own."""
    class_prompt: Prompt
    """Of the prior set; never names the identifier."""
    class_images: tuple[str, ...] = ()
    """URIs of the user's own class images; empty where the base generates them."""
    sample_prompts: tuple[Prompt, ...]
    """Generated with the trained adapter; they are not part of the job's key."""
    priority: int = 0
    """Higher trains earlier."""
    recipe: Recipe = Recipe()
    """How to train it."""
    prior: PriorSettings = PriorSettings()
    """How its class images are generated."""

    @model_validator(mode="before")
    @classmethod
    def _fill(cls, values: object) -> object:
        """Fill the fields that follow from others: the name, and prompts with the class noun."""
        if not isinstance(values, dict):
            return values
        noun = values.get("class_noun")
        filled = {
            "name": values.get("id"),
            "instance_prompt": DEFAULT_INSTANCE_PROMPT,
            "class_prompt": DEFAULT_CLASS_PROMPT,
            "sample_prompts": DEFAULT_SAMPLE_PROMPTS,
            **values,
        }
        if isinstance(noun, str):
            for field in ("instance_prompt", "class_prompt", "sample_prompts"):
                filled[field] = _with_noun(filled[field], noun.strip())
        return filled

    def prompt(self, text: str) -> str:
        """A prompt as the text encoder reads it: ``[V]`` replaced by the identifier."""
        return text.replace(PLACEHOLDER, self.identifier)

    @property
    def photo_prompts(self) -> tuple[str, ...]:
        """What each photo is trained on: its caption or the instance prompt, ``[V]`` replaced."""
        return tuple(self.prompt(photo.caption or self.instance_prompt) for photo in self.photos)


def _with_noun(value: object, noun: str) -> object:
    """Prompts with the class noun filled in; other values are left for validation to refuse."""
    if isinstance(value, str):
        return value.replace(CLASS_NOUN_FIELD, noun)
    if isinstance(value, list | tuple):
        return tuple(_with_noun(item, noun) for item in value)
    return value


def names_identifier(prompt: str, identifier: str) -> bool:
    """Whether a prompt names the subject: by ``[V]``, or by the identifier as a whole word.

    Without case, as CLIP's tokenizers read.
    """
    if PLACEHOLDER in prompt:
        return True
    return re.search(rf"(?<!\w){re.escape(identifier)}(?!\w)", prompt, re.IGNORECASE) is not None
