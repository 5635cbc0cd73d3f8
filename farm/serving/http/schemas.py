"""The JSON of the HTTP interface: OpenAI's image and model shapes, with the farm's extra fields.

Owns what a request may look like and the documented shape of answers. Numbers are read strictly:
``"5"`` is no number, NaN is none either. Limits that an operator sets are in ``limits.py``.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    WithJsonSchema,
    field_validator,
)

from farm.safe_names import JOB_KEY, SAFE_NAME
from farm.schedulers import SchedulerName
from farm.serving.access.limits import MAX_PICTURES
from farm.serving.http.image_metadata import OutputFormat
from farm.serving.request import (
    MAX_ADAPTERS,
    MAX_GUIDANCE,
    MAX_PROMPT_CHARACTERS,
    MAX_SEED,
    MAX_STEPS,
    MAX_WEIGHT,
)

__all__ = [
    "ANY_SEED",
    "ExtraAdapter",
    "ErrorAnswer",
    "GenerateRequest",
    "ImagesAnswer",
    "ModelAnswer",
    "ModelPage",
]

SIZE_PATTERN = r"^(auto|[1-9][0-9]{0,4}x[1-9][0-9]{0,4})$"
MODEL_PATTERN = rf"^{SAFE_NAME}(@{JOB_KEY})?$"
QUALITY_STEPS = {"low": 12, "standard": 25, "medium": 25, "auto": 25, "high": 40, "hd": 40}
"""Denoising steps behind OpenAI's words for quality, where no number is given."""

ANY_SEED = -1
"""As other tools write a random seed."""


def _checked_size(value: str) -> str:
    if not re.fullmatch(SIZE_PATTERN, value):
        raise ValueError("write WIDTHxHEIGHT in pixels, such as 512x512, or auto")
    return value


def _checked_model(value: str) -> str:
    if not re.fullmatch(MODEL_PATTERN, value):
        raise ValueError(
            "write an adapter's name (letters, digits, dot, dash, underscore), or name@key"
        )
    return value


Size = Annotated[
    str, AfterValidator(_checked_size), WithJsonSchema({"type": "string", "pattern": SIZE_PATTERN})
]
ModelName = Annotated[
    str,
    Field(max_length=200),
    AfterValidator(_checked_model),
    WithJsonSchema({"type": "string", "pattern": MODEL_PATTERN, "maxLength": 200}),
]


class ExtraAdapter(BaseModel):
    """A further adapter on the same picture."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    model: ModelName
    """Its name, or ``name@key`` for one version."""
    weight: Annotated[float, Field(ge=-MAX_WEIGHT, le=MAX_WEIGHT, allow_inf_nan=False)] = 1.0
    """1 is as trained."""


class GenerateRequest(BaseModel):
    """What to generate. The first block is OpenAI's, the second the farm's own."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        json_schema_extra={
            "examples": [{"model": "rex", "prompt": "a photo of [V] dog in space", "seed": 7}]
        },
    )

    prompt: str = Field(min_length=1, max_length=MAX_PROMPT_CHARACTERS)
    """``[V]`` stands for the adapter's subject; ``[V:name]`` for that of another adapter."""
    model: ModelName | None = None
    """An adapter's name, ``name@key`` for one version, or the base; the base if left out."""
    n: int | None = Field(None, ge=1, le=MAX_PICTURES)
    """How many pictures; the seeds count up."""
    size: Size | None = None
    """``WIDTHxHEIGHT`` in pixels, or ``auto``: what the base was made for."""
    response_format: Literal["b64_json", "url"] | None = None
    """``b64_json`` if left out; ``url`` gives a link that ends after some minutes."""
    output_format: OutputFormat | None = None
    output_compression: int | None = Field(None, ge=0, le=100)
    """Quality of JPEG and WebP."""
    quality: Literal["auto", "low", "medium", "high", "standard", "hd"] | None = None
    """Steps in words: 12, 25 or 40; ``num_inference_steps`` wins."""
    stream: bool | None = None
    """Answer with server-sent events."""
    partial_images: int | None = Field(None, ge=0, le=3)
    """How many pictures to show on the way, when streaming."""
    background: Literal["auto", "opaque"] | None = None
    moderation: Literal["auto", "low"] | None = None
    """Accepted for OpenAI's clients; without effect."""
    style: Literal["vivid", "natural"] | None = None
    """Accepted for OpenAI's clients; without effect."""
    user: str | None = Field(None, max_length=512)
    """Accepted for OpenAI's clients; without effect."""
    safety_identifier: str | None = Field(None, max_length=512)
    """Accepted for OpenAI's clients; without effect."""

    seed: int | None = Field(None, ge=ANY_SEED, le=MAX_SEED)
    """The same seed and request give the same picture; -1, or left out, takes a random one."""
    num_inference_steps: int | None = Field(None, ge=1, le=MAX_STEPS)
    guidance_scale: float | None = Field(None, ge=0, le=MAX_GUIDANCE, allow_inf_nan=False)
    """Classifier-free guidance; 1 or less turns it off, at half the cost."""
    negative_prompt: str | None = Field(None, max_length=MAX_PROMPT_CHARACTERS)
    scheduler: SchedulerName | None = None
    adapters: list[ExtraAdapter] | None = Field(None, max_length=MAX_ADAPTERS)
    """Further adapters on the same picture."""
    adapter_weight: float | None = Field(None, ge=-MAX_WEIGHT, le=MAX_WEIGHT, allow_inf_nan=False)
    """Of the adapter that ``model`` names; 1 is as trained."""
    stream_progress: bool | None = None
    """Also send an ``image_generation.progress`` event for each step."""

    @field_validator("prompt", "negative_prompt", "user", "safety_identifier")
    @classmethod
    def _is_text(cls, value: str | None) -> str | None:
        if value is not None:
            if "\0" in value:
                raise ValueError("holds a NUL character")
            try:
                value.encode()
            except UnicodeEncodeError:  # half of a surrogate pair, which JSON can write
                raise ValueError("is not Unicode text") from None
        return value

    @property
    def steps(self) -> int:
        """Denoising steps asked for, in a number or in words."""
        return self.num_inference_steps or QUALITY_STEPS[self.quality or "auto"]

    def side_px(self, default_px: int) -> tuple[int, int]:
        """Width and height asked for."""
        if self.size is None or self.size == "auto":
            return default_px, default_px
        width, _, height = self.size.partition("x")
        return int(width), int(height)


class ErrorBody(BaseModel):
    """What went wrong, as OpenAI words it."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorAnswer(BaseModel):
    """Every answer that is not a success has this shape and an ``x-request-id`` header."""

    error: ErrorBody


class ImageItem(BaseModel):
    """One picture."""

    b64_json: str | None = None
    url: str | None = None
    revised_prompt: str
    """The prompt as used, with the identifier in place of ``[V]``."""
    seed: int
    notes: list[str]
    """What the caller should know, such as an end of the prompt that the model did not read."""
    receipt: dict[str, Any]
    """Everything that made the picture; the file itself carries it too."""


class Usage(BaseModel):
    """Work done. A picture counts its latent cells as tokens; text is not counted."""

    input_tokens: int
    input_tokens_details: dict[str, int]
    output_tokens: int
    total_tokens: int


class ImagesAnswer(BaseModel):
    """The answer to a generation without streaming."""

    created: int
    data: list[ImageItem]
    size: str
    output_format: OutputFormat
    quality: str
    background: str
    usage: Usage


class ModelAnswer(BaseModel):
    """One adapter, or the base."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str
    """The namespace; ``farm`` for the base."""
    job_key: str | None = None
    """The version that the name means now; ``id@job_key`` pins it."""
    class_noun: str | None = None
    identifier: str | None = None
    instance_prompt: str | None = None
    num_samples: int | None = None
    """Sample pictures, at ``/v1/models/{id}/samples/{index}``."""


class ModelPage(BaseModel):
    """Models in order of their names; ``after=last_id`` gives the next page."""

    object: Literal["list"] = "list"
    data: list[ModelAnswer]
    first_id: str | None
    last_id: str | None
    has_more: bool
    total: int
    """Adapters that match, on all pages."""
