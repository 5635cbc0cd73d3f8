"""The record of one adapter: ``adapter.json``, all that is needed to judge it or train it again.

Owns the fields and their checks. Where it lies in the store is the registry's matter; its presence
there is the commit marker. An adapter that another tool trained has no recipe; its record names the
file that it was imported from instead.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from farm.adapters.file_names import RECORD_FILE
from farm.errors import AdapterFileError
from farm.recipe import Recipe
from farm.version import __version__

__all__ = ["AdapterRecord", "ImportedFile", "utc_now"]


def is_inner_path(name: str) -> bool:
    """Whether a relative path, on any system, names a file inside the folder that it starts from
    and holds nothing that a terminal or a file system could misread."""
    parts = name.split("/")
    return (
        0 < len(name) <= 1024
        and name.isprintable()
        and not any(character in name for character in '\\:*?"<>|')
        and not any(part in ("", ".", "..") for part in parts)
    )


def utc_now() -> str:
    """This moment as ISO 8601 in UTC, whole seconds."""
    return datetime.now(UTC).replace(microsecond=0).isoformat()


class ImportedFile(BaseModel):
    """The file of another tool that an adapter was imported from."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    file: str
    """Its name, or that of PEFT's folder."""
    sha256: str
    """Of the file; of PEFT's folder, over the digests of its files."""
    form: str
    """As it was written: ``diffusers``, ``peft``, ``kohya``, ``LoHa`` or ``LoKr``."""


class AdapterRecord(BaseModel):
    """What one training made, from what, and how it went."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    job_key: str = Field(min_length=1)
    """The hash of exactly the inputs: photos, prompts, recipe, base."""
    subject_id: str
    """As the manifest names the subject."""
    namespace: str = "default"
    """The tenant or project in which the name is unique."""
    name: str
    """Under which the endpoint serves it."""
    class_noun: str
    """What the subject is, such as ``cat``."""
    identifier: str = "sks"
    """The rare token that names the subject; ``[V]`` in prompts stands for it."""
    instance_prompt: str
    """As trained, the identifier put in."""
    class_prompt: str = ""
    """Of the prior set; empty without prior preservation."""
    base_id: str
    """The base as the user named it."""
    base_fingerprint: str
    """64 hex digits over the base's weights and configs."""
    recipe: Recipe | None = None
    """Whole, so that the training can be repeated; None for an imported adapter."""
    imported: ImportedFile | None = None
    """Where an adapter that the farm did not train comes from."""
    photo_digests: tuple[str, ...] = ()
    """sha256 of each photo's bytes, in training order."""
    files: dict[str, str] = Field(default_factory=dict)
    """sha256 of every other file of the adapter, by its path beside this record."""
    sample_prompts: dict[str, str] = Field(default_factory=dict)
    """The prompt of each sample picture, identifier put in, by its path in ``files``."""
    loss_curve: tuple[float, ...] = ()
    """Training loss of each step, priors included with their weight."""
    evaluation_curve: tuple[tuple[int, float], ...] = ()
    """(step, loss on fixed noise and timesteps), where the recipe evaluates."""
    quality: dict[str, Any] | None = None
    """The quality card, where one was made."""
    steps_trained: int = Field(0, ge=0)
    """Steps behind the committed weights."""
    stopped_because: str = "steps"
    """``steps`` when all were trained, ``early_stop``, ``keep_best``, or ``imported``."""
    gpu_seconds: float = Field(0.0, ge=0)
    """This job's share of its lane's time, in seconds."""
    farm_version: str = __version__
    """Of the farm that trained or imported it."""
    created: str = Field(default_factory=utc_now)
    """ISO 8601 in UTC."""

    @field_validator("files")
    @classmethod
    def _stay_in_the_folder(cls, files: dict[str, str]) -> dict[str, str]:
        """Whoever writes an adapter's files under these names writes nothing elsewhere."""
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
        """The text of ``adapter.json``."""
        return self.model_dump_json(indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes, source: str = RECORD_FILE) -> AdapterRecord:
        """Parse ``adapter.json``.

        Raises:
            AdapterFileError: if it is not a record.
        """
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            raise AdapterFileError(
                f"{source} is not an adapter record: {error}", "fetch the adapter again"
            ) from error

    @classmethod
    def read(cls, folder: str | Path) -> AdapterRecord:
        """The record in an adapter's folder.

        Raises:
            AdapterFileError: if it is missing or is not a record.
        """
        path = Path(folder) / RECORD_FILE
        try:
            return cls.from_json(path.read_bytes(), str(path))
        except FileNotFoundError as error:
            raise AdapterFileError(
                f"{path} does not exist", "name the folder of a finished adapter"
            ) from error
