"""The JSON of the HTTP interface: OpenAI's image and model shapes, with the farm's extra fields.

Owns the schema of requests and responses. Numbers are read strictly: neither ``"5"`` nor NaN is a
number. Limits that an operator sets are in ``access/limits.py``.
"""

from __future__ import annotations

import re
from itertools import islice
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    WithJsonSchema,
    field_validator,
    model_validator,
)

from farm.recipe import LongPrompts
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
from farm.text.safe_names import JOB_KEY, SAFE_NAME

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
"""Denoising steps for OpenAI's quality levels, where no number is given."""

ANY_SEED = -1
"""A random seed, as other tools write it."""


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


MAX_UNKNOWN_FIELDS = 8
"""Unknown fields that are reported: a body has room for 40,000, and each takes time."""


class _Body(BaseModel):
    """An object of a request, in which unknown fields are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    @model_validator(mode="before")
    @classmethod
    def _has_few_unknown_fields(cls, value: Any) -> Any:
        if not isinstance(value, dict) or len(value) <= len(cls.model_fields):
            return value
        unknown = islice(
            (name for name in value if name not in cls.model_fields), MAX_UNKNOWN_FIELDS
        )
        kept = {*cls.model_fields, *unknown}
        return {name: content for name, content in value.items() if name in kept}


class ExtraAdapter(_Body):
    """An additional adapter on the same image."""

    model: ModelName
    """The adapter's name, or ``name@key`` for one version."""
    weight: Annotated[float, Field(ge=-MAX_WEIGHT, le=MAX_WEIGHT, allow_inf_nan=False)] = 1.0
    """1 is as trained."""


class GenerateRequest(_Body):
    """What to generate. The first block of fields is OpenAI's, the second the farm's own."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"model": "rex", "prompt": "a photo of [V] dog in space", "seed": 7}]
        },
    )

    prompt: str = Field(min_length=1, max_length=MAX_PROMPT_CHARACTERS)
    """``[V]`` stands for the adapter's subject; ``[V:name]`` for that of another adapter."""
    model: ModelName | None = None
    """An adapter's name, ``name@key`` for one version, or the base; the base if left out."""
    n: int | None = Field(None, ge=1, le=MAX_PICTURES)
    """Number of images; each seed is one higher than the last."""
    size: Size | None = None
    """``WIDTHxHEIGHT`` in pixels, or ``auto`` for the base's own size."""
    response_format: Literal["b64_json", "url"] | None = None
    """``b64_json`` if left out; ``url`` gives a link that expires after some minutes."""
    output_format: OutputFormat | None = None
    output_compression: int | None = Field(None, ge=0, le=100)
    """Quality of JPEG and WebP."""
    quality: Literal["auto", "low", "medium", "high", "standard", "hd"] | None = None
    """Number of steps by level: 12, 25 or 40; ``num_inference_steps`` takes precedence."""
    stream: bool | None = None
    """Answer with server-sent events."""
    partial_images: int | None = Field(None, ge=0, le=3)
    """Number of previews of each image, when streaming."""
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
    """The same seed and request give the same image; -1 or left out is a random seed."""
    num_inference_steps: int | None = Field(None, ge=1, le=MAX_STEPS)
    guidance_scale: float | None = Field(None, ge=0, le=MAX_GUIDANCE, allow_inf_nan=False)
    """Classifier-free guidance; 1 or less turns it off, at half the cost."""
    negative_prompt: str | None = Field(None, max_length=MAX_PROMPT_CHARACTERS)
    scheduler: SchedulerName | None = None
    long_prompts: LongPrompts | None = None
    """Prompts longer than the text encoder reads at once: ``cut`` drops the end, ``chunk`` reads
    them in windows, as ComfyUI and A1111 do; if left out, as the adapter was trained."""
    adapters: list[ExtraAdapter] | None = Field(None, max_length=MAX_ADAPTERS)
    """Additional adapters on the same image."""
    adapter_weight: float | None = Field(None, ge=-MAX_WEIGHT, le=MAX_WEIGHT, allow_inf_nan=False)
    """Weight of the adapter that ``model`` names; 1 is as trained."""
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
        """Denoising steps requested, by number or quality level."""
        return self.num_inference_steps or QUALITY_STEPS[self.quality or "auto"]

    def side_px(self, default_px: int) -> tuple[int, int]:
        """Width and height requested."""
        if self.size is None or self.size == "auto":
            return default_px, default_px
        width, _, height = self.size.partition("x")
        return int(width), int(height)


class ErrorBody(BaseModel):
    """An error in OpenAI's form."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorAnswer(BaseModel):
    """Every unsuccessful response has this shape and an ``x-request-id`` header."""

    error: ErrorBody


class ImageItem(BaseModel):
    """One image."""

    b64_json: str | None = None
    url: str | None = None
    revised_prompt: str
    """The prompt as used, with the identifier in place of ``[V]``."""
    seed: int
    notes: list[str]
    """Notes for the caller, such as the end of the prompt that the model did not read."""
    receipt: dict[str, Any]
    """Everything that determined the image; also embedded in the file."""


class Usage(BaseModel):
    """Work done. Latent cells count as tokens; text is not counted."""

    input_tokens: int
    input_tokens_details: dict[str, int]
    output_tokens: int
    total_tokens: int


class ImagesAnswer(BaseModel):
    """The response to a generation without streaming."""

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
    """The current version of the name; ``id@job_key`` pins it."""
    class_noun: str | None = None
    """Empty, as is the instance prompt, if another namespace wrote it for a shared job."""
    identifier: str | None = None
    instance_prompt: str | None = None
    num_samples: int | None = None
    """Sample images, at ``/v1/models/{id}/samples/{index}``."""
    note: str | None = None
    """Set if there are no samples for this name's prompts."""


class ModelPage(BaseModel):
    """Models ordered by name; ``after=last_id`` gives the next page."""

    object: Literal["list"] = "list"
    data: list[ModelAnswer]
    first_id: str | None
    last_id: str | None
    has_more: bool
    total: int
    """Number of matching adapters on all pages."""
