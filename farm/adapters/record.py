"""The record of one adapter: ``adapter.json``, all that is needed to judge it or train it again.

Owns the fields and their checks. Where it lies in the store is the registry's matter; its presence
there is the commit marker.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from farm import __version__
from farm.adapters.files import RECORD_FILE
from farm.errors import AdapterFileError
from farm.recipe import Recipe

__all__ = ["AdapterRecord", "utc_now"]


def utc_now() -> str:
    """This moment as ISO 8601 in UTC, whole seconds."""
    return datetime.now(UTC).replace(microsecond=0).isoformat()


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
    recipe: Recipe
    """Whole, so that the training can be repeated."""
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
    """``steps`` when all were trained, ``early_stop``, or ``keep_best``."""
    gpu_seconds: float = Field(0.0, ge=0)
    """This job's share of its lane's time, in seconds."""
    farm_version: str = __version__
    """Of the farm that trained it."""
    created: str = Field(default_factory=utc_now)
    """ISO 8601 in UTC."""

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
