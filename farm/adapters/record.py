"""The record of one adapter (``adapter.json``): everything needed to evaluate or retrain it.

Owns the fields and their validation. The registry owns its location in the store, where its
presence is the commit marker. The record of an imported adapter has no recipe; it names the file
that the adapter was imported from.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from farm.adapters.file_names import RECORD_FILE
from farm.errors import AdapterFileError
from farm.recipe import Recipe
from farm.version import __version__

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

    from farm.base.interface import FamilyNames

__all__ = ["AdapterRecord", "BaseFamily", "ImportedFile", "utc_now"]


def is_inner_path(name: str) -> bool:
    """Whether a relative path stays inside its folder on every system and contains no characters
    that a terminal or a file system could misinterpret."""
    parts = name.split("/")
    return (
        0 < len(name) <= 1024
        and name.isprintable()
        and not any(character in name for character in '\\:*?"<>|')
        and not any(part in ("", ".", "..") for part in parts)
    )


def utc_now() -> str:
    """The current time as ISO 8601 in UTC, in whole seconds."""
    return datetime.now(UTC).replace(microsecond=0).isoformat()


class ImportedFile(BaseModel):
    """The file, written by another tool, that an adapter was imported from."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    file: str
    """The file's name, or the name of a PEFT folder."""
    sha256: str
    """sha256 of the file; for a PEFT folder, a digest over the sha256 of its files."""
    form: str
    """The original format: ``diffusers``, ``peft``, ``kohya``, ``LoHa`` or ``LoKr``."""


class BaseFamily(BaseModel):
    """The family of an adapter's base, as messages and the model card name it."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    title: str
    """Such as ``Stable Diffusion XL``."""
    pipeline: str = Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,127}$")
    """The diffusers pipeline that loads the base; the card writes it into code."""
    tags: tuple[str, ...] = ()
    """The family's tags on the Hub."""

    @classmethod
    def of(cls, names: FamilyNames) -> BaseFamily:
        """The family of a loaded base."""
        return cls(title=names.title, pipeline=names.pipeline, tags=names.tags)


FIRST_FAMILY = BaseFamily(
    title="Stable Diffusion 1.x or 2.x",
    pipeline="StableDiffusionPipeline",
    tags=("stable-diffusion",),
)
"""Of records that were written before there were others."""


class AdapterRecord(BaseModel):
    """An adapter's inputs, files, training history and scores."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    job_key: str = Field(min_length=1)
    """The hash of exactly the inputs: photos, prompts, recipe, base."""
    subject_id: str
    """The subject's id in the manifest."""
    namespace: str = "default"
    """The tenant or project in which the name is unique."""
    name: str
    """The name under which the endpoint serves it."""
    class_noun: str
    """What the subject is, such as ``cat``."""
    identifier: str = "sks"
    """The rare token that names the subject; it replaces ``[V]`` in prompts."""
    instance_prompt: str
    """The prompt used in training, with the identifier."""
    class_prompt: str = ""
    """The prompt of the class images; empty without prior preservation."""
    base_id: str
    """The base as the user named it."""
    base_fingerprint: str
    """64 hex digits over the base's weights and configs."""
    base_family: BaseFamily = FIRST_FAMILY
    """The model family of the base."""
    recipe: Recipe | None = None
    """The complete recipe, so that the training can be repeated; None for an imported adapter."""
    imported: ImportedFile | None = None
    """The origin of an adapter that the farm did not train."""
    photo_digests: tuple[str, ...] = ()
    """sha256 of each photo's bytes, in training order."""
    files: dict[str, str] = Field(default_factory=dict)
    """sha256 of every other file of the adapter, by its path relative to this record."""
    sample_prompts: dict[str, str] = Field(default_factory=dict)
    """The prompt of each sample image, with the identifier, by its path in ``files``."""
    loss_curve: tuple[float, ...] = ()
    """Training loss of each step, including the weighted prior loss."""
    evaluation_curve: tuple[tuple[int, float], ...] = ()
    """(step, loss on fixed noise and timesteps), if the recipe evaluates."""
    quality: dict[str, Any] | None = None
    """The quality card, if one was made."""
    steps_trained: int = Field(0, ge=0)
    """Number of steps that produced the committed weights."""
    stopped_because: str = "steps"
    """``steps`` if all steps were trained, ``early_stop``, ``keep_best``, or ``imported``."""
    gpu_seconds: float = Field(0.0, ge=0)
    """This job's share of its lane's time, in seconds."""
    farm_version: str = __version__
    """Version of the farm that trained or imported it."""
    created: str = Field(default_factory=utc_now)
    """Time of creation, ISO 8601 in UTC."""

    @field_validator("files")
    @classmethod
    def _stay_in_the_folder(cls, files: dict[str, str]) -> dict[str, str]:
        """Reject names that would place a file outside the adapter's folder."""
        for name in files:
            if not is_inner_path(name) or name.casefold() == RECORD_FILE:
                raise ValueError(f"{name[:100]!r} is not the name of a file beside the record")
        return files

    @model_validator(mode="after")
    def _has_an_origin(self) -> AdapterRecord:
        if (self.recipe is None) == (self.imported is None):
            raise ValueError("a record has either a recipe or the file that it was imported from")
        return self

    def to_json(self) -> str:
        """The contents of ``adapter.json``."""
        return self.model_dump_json(indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes, source: str = RECORD_FILE) -> AdapterRecord:
        """Parse ``adapter.json``.

        Raises:
            AdapterFileError: if it is not a valid record.
        """
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            raise _refusal(error, text, source) from error

    @classmethod
    def read(cls, folder: str | Path) -> AdapterRecord:
        """The record in an adapter's folder.

        Raises:
            AdapterFileError: if it is missing or not a valid record.
        """
        path = Path(folder) / RECORD_FILE
        try:
            return cls.from_json(path.read_bytes(), str(path))
        except FileNotFoundError as error:
            raise AdapterFileError(
                f"{path} does not exist", "name the folder of a finished adapter"
            ) from error


def _refusal(error: ValidationError, text: str | bytes, source: str) -> AdapterFileError:
    """The error of a record that cannot be read: damaged, or of another version of the farm."""
    details = error.errors(include_url=False)
    where = {detail["type"]: ".".join(map(str, detail["loc"])) for detail in details}
    writer = _writer_of(text)
    if (unknown := where.get("extra_forbidden")) or (writer and writer != __version__):
        what = f"its field `{unknown}` is unknown here" if unknown else _words(details[0])
        by = f" ({writer}; this is {__version__})" if writer and writer != __version__ else ""
        return AdapterFileError(
            f"{source} is not an adapter record of this version of the farm: "
            f"another version wrote it{by}; {what}",
            "use a newer version of the farm on this store; the adapter itself is complete",
        )
    return AdapterFileError(
        f"{source} is not an adapter record: {_words(details[0])}",
        "restore the file from a copy, or train or import the adapter again",
    )


def _writer_of(text: str | bytes) -> str:
    """The version of the farm that wrote a record; empty if it names none."""
    try:
        body = json.loads(text)
    except ValueError:
        return ""
    version = body.get("farm_version") if isinstance(body, dict) else None
    return version[:40] if isinstance(version, str) and version.isprintable() else ""


def _words(detail: ErrorDetails) -> str:
    """What is wrong with a field."""
    field = ".".join(map(str, detail["loc"]))
    if detail["type"] == "json_invalid" or not field:
        cause = detail.get("ctx", {}).get("error") if detail["type"] == "value_error" else None
        return str(cause) if cause else "it is not a complete JSON object"
    if detail["type"] == "missing":
        return f"`{field}` is missing"
    if detail["type"] == "value_error":
        return f"`{field}`: {detail['ctx']['error']}"
    return f"`{field}` has an invalid value"
