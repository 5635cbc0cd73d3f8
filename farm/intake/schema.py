"""Schema of a manifest: its fields before defaults are applied.

Owns the form of the file; every field's docstring here is a line of ``docs/manifest.md``. The
resolved fields are in ``subject.py``, their resolution in ``resolve.py``.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from farm.intake.subject import CaptionText, ClassNoun, Identifier, Name, Prompt
from farm.recipe import PresetName, Quantization

__all__ = ["Defaults", "Head", "PhotoEntry", "RunDefaults", "SubjectEntry"]


def _as_text(value: object) -> object:
    """A whole number as the text it was written as; ids are often numbers."""
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _as_list(value: object) -> object:
    return [value] if isinstance(value, str) else value


NameEntry = Annotated[Name, BeforeValidator(_as_text)]
Texts = Annotated[list[str], BeforeValidator(_as_list)]
Prompts = Annotated[list[Prompt], BeforeValidator(_as_list)]


class _Entry(BaseModel):
    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True
    )


class Defaults(_Entry):
    """Fields that every subject inherits unless it has its own."""

    class_noun: ClassNoun | None = None
    """What the subject is: `cat`, `stuffed animal`. Required, here or on the subject."""
    namespace: NameEntry | None = None
    """Owner of the adapter; the endpoint's keys are bound to namespaces. Default `default`."""
    identifier: Identifier | None = None
    """The rare token that `[V]` stands for. One token that means little to the base learns best.
    Default `sks`."""
    instance_prompt: Prompt | None = None
    """What photos without a caption show. Must contain `[V]` (or the identifier). Default
    `a photo of [V] {class_noun}`."""
    class_prompt: Prompt | None = None
    """What the prior set shows; must not name the identifier. Subjects with the same class prompt
    share one prior set. Default `a photo of a {class_noun}`."""
    sample_prompts: Prompts | None = None
    """Generated with the trained adapter and kept beside it. Default: the instance prompt, and
    `a [V] {class_noun} in space`."""
    priority: Annotated[int, Field(ge=-1_000_000, le=1_000_000)] | None = None
    """Higher trains earlier; equal ones in the order of the file. Default 0."""
    preset: PresetName | None = None
    """Starting point of the recipe: `object` for things, `live` for people and animals, `style` for
    a look. Fields written under `recipe` win over it."""
    recipe: dict[str, Any] | None = None
    """How to train: any of the fields of the recipe. A subject's own win over the defaults', field
    by field."""
    prior: dict[str, Any] | None = None
    """How the base generates class images: any of `scheduler`, `steps`, `guidance`, `seed`."""


class RunDefaults(Defaults):
    """``defaults``: those fields, and what concerns all subjects of a run together."""

    scorer: Annotated[str, Field(min_length=1)] | None = None
    """The CLIP that scores finished adapters: `embedded`, a folder or a hub id. The option
    `--scorer` wins over it. Default: the embedded scorer for the embedded base, none for others."""
    dino: Annotated[str, Field(min_length=1)] | None = None
    """A DINO or DINOv2 that scores them too: a folder or a hub id. The option `--dino` wins over
    it."""
    scoring_share: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    """Share of the training's cost that scoring may take. The option `--scoring-share` wins over
    it. Default 0.12."""
    quantize: Quantization | None = None
    """Keeps the base's denoiser in few bits, so that it fits smaller cards: `int8` or `nf4`. The
    option `--quantize` wins over it. Default: full precision."""


class PhotoEntry(_Entry):
    """One photo in a list, with a caption of its own."""

    uri: Annotated[str, Field(min_length=1)]
    """A path from the manifest's folder, or a URL."""
    caption: CaptionText | None = None
    """Replaces the instance prompt; must contain `[V]` (or the identifier)."""


class SubjectEntry(Defaults):
    """One subject as it is written."""

    id: NameEntry
    """Unique in the manifest; becomes part of paths: letters, digits, `_ - .`, at most 128."""
    photos: Any = None
    """Where the photos are: a folder, a glob, a zip archive, a photo, each as a path from the
    manifest's folder or a URL; or a list of these; or `{uri, caption}` items; or a mapping of
    photos to captions. Default: the folder beside the manifest that has the id's name. 3 to 20
    photos are usual."""
    name: NameEntry | None = None
    """Under which the adapter is served; unique in its namespace. Default: the id."""
    captions: dict[str, CaptionText] | Literal["files", "none"] | None = None
    """Captions by file name. `files` (the default) takes them from `photo.txt` or `photo.caption`
    beside `photo.jpg` and from tables such as `metadata.csv` beside the photos; `none` takes
    none."""
    class_images: Texts | None = None
    """The user's own class images, in any form that `photos` accepts. Default: generated."""


class Head(_Entry):
    """The top of a manifest. Keys that begin with ``x-`` are the user's own, for YAML anchors."""

    version: Literal[1] = 1
    """Of this format."""
    defaults: RunDefaults = RunDefaults()
    """Fields that every subject inherits unless it has its own."""
    class_images: dict[str, Texts] | None = None
    """The user's own class images by class noun, in any form that `photos` accepts."""
    subjects: str | None = None
    """The list of subjects; or a path from this file to a table of them (CSV, JSONL, Parquet) or to
    a folder of folders."""

    @model_validator(mode="before")
    @classmethod
    def _without_extensions(cls, values: object) -> object:
        if isinstance(values, dict):
            return {key: value for key, value in values.items() if not str(key).startswith("x-")}
        return values
