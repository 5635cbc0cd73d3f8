"""Requests to the engine and what it returns: tickets, progress, images.

Owns the values that cross the engine's boundary. All are plain and picklable except the ticket,
which stays in the engine's process. Imports neither torch nor ray, so that the HTTP side can run
without either.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from farm.errors import RequestRefused
from farm.recipe import LongPrompts
from farm.schedulers import SCHEDULERS, SchedulerName

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = [
    "AdapterRef",
    "GenerationRequest",
    "Picture",
    "Progress",
    "RequestLimits",
    "Stage",
    "Ticket",
]

Stage = Literal["queued", "loading", "denoising", "decoding", "done"]
"""The stages of a request, in order."""

MAX_SEED = 2**63 - 1
MAX_WEIGHT = 8.0
"""Absolute adapter weight beyond which images are noise."""
MAX_STEPS = 1000
"""Timesteps of the noise schedules that bases are trained with."""
MAX_SIDE_PX = 16_384
MAX_PROMPT_CHARACTERS = 32_000
"""OpenAI's own limit."""
MAX_GUIDANCE = 1000.0
MAX_ADAPTERS = 16
"""These five limits are the API schema's, and so the highest that an operator may set."""


@dataclass(frozen=True, slots=True)
class AdapterRef:
    """One adapter, identified by its job key; the name is for display."""

    key: str
    """Job key: 32 hex digits over everything that determines the adapter."""
    namespace: str = ""
    name: str = ""
    sha256: str = ""
    """From the name's pointer in the store; empty when requested by key."""

    @property
    def label(self) -> str:
        """The adapter's name in messages: its name if it has one, else its key."""
        return f"{self.name}@{self.key}" if self.name else self.key


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """One image to generate. It depends on these values alone, never on other requests."""

    id: str
    """Identifies the request in logs, events and metadata; unique among requests in flight."""
    prompt: str
    """The prompt, with ``[V]`` already replaced by the identifier."""
    negative_prompt: str = ""
    seed: int = 0
    steps: int = 25
    guidance: float = 5.0
    """Guidance scale; where it is classifier-free, 1 or less costs no unconditional row."""
    scheduler: SchedulerName = "base"
    width_px: int | None = None
    """None is the base's own resolution."""
    height_px: int | None = None
    long_prompts: LongPrompts = "cut"
    """Whether prompts longer than the text encoder reads at once are read in windows."""
    adapters: tuple[tuple[AdapterRef, float], ...] = ()
    """Adapters with their weights (1 is as trained); empty for the bare base."""
    tenant: str = ""
    """The caller whose share of the machine the request uses; the endpoint's is the key."""
    deadline_s: float | None = None
    """Seconds after submission at which the image is no longer useful; None is never."""
    preview_every: int = 0
    """Steps between previews sent as progress; 0 sends none."""


class RequestLimits(BaseModel):
    """Limits of one image; requests over them are refused before they cost anything.

    The only definition of these limits: the endpoint's ``limits`` extend them, and its engine
    receives the same values.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_steps: int = Field(150, ge=1, le=MAX_STEPS)
    max_side_px: int = Field(2048, ge=64, le=MAX_SIDE_PX)
    max_prompt_characters: int = Field(4000, ge=1, le=MAX_PROMPT_CHARACTERS)
    """About what ``long_prompts`` reads in windows; text beyond them only costs time."""
    max_guidance: float = Field(50.0, gt=0, le=MAX_GUIDANCE)
    max_adapters: int = Field(4, ge=1, le=MAX_ADAPTERS)
    """Adapters on one image."""

    def check(self, request: GenerationRequest) -> None:
        """Refuse what cannot be generated.

        Raises:
            RequestRefused: names the invalid field.
        """
        self._check_numbers(request)
        for field_name in ("prompt", "negative_prompt"):
            if len(getattr(request, field_name)) > self.max_prompt_characters:
                raise RequestRefused(
                    f"{field_name} is longer than {self.max_prompt_characters} characters",
                    "shorten it",
                    field_name,
                )
        if request.scheduler not in SCHEDULERS:
            raise RequestRefused(
                f"unknown scheduler {request.scheduler!r}",
                f"use one of {', '.join(SCHEDULERS)}",
                "scheduler",
            )
        if len(request.adapters) > self.max_adapters:
            raise RequestRefused(
                f"{len(request.adapters)} adapters on one image",
                f"use at most {self.max_adapters}",
                "adapters",
            )

    def _check_numbers(self, request: GenerationRequest) -> None:
        ranges: list[tuple[str, float | None, float, float]] = [
            ("steps", request.steps, 1, self.max_steps),
            ("seed", request.seed, 0, MAX_SEED),
            ("guidance", request.guidance, 0, self.max_guidance),
            ("width_px", request.width_px, 8, self.max_side_px),
            ("height_px", request.height_px, 8, self.max_side_px),
            ("deadline_s", request.deadline_s, 0, math.inf),
            ("preview_every", request.preview_every, 0, math.inf),
            *(("adapters", weight, -MAX_WEIGHT, MAX_WEIGHT) for _, weight in request.adapters),
        ]
        for name, value, least, most in ranges:
            if value is not None and not least <= value <= most:  # NaN fails every comparison
                raise RequestRefused(
                    f"{name} is {value}", f"use a number from {least} to {most}", name
                )


@dataclass(frozen=True, slots=True)
class Progress:
    """The progress of a request."""

    stage: Stage
    step: int = 0
    """Denoising steps done."""
    steps: int = 0
    """Total denoising steps."""
    preview: NDArray[np.uint8] | None = None
    """The denoiser's current estimate of the image, uint8 [H, W, 3]."""


@dataclass(frozen=True, slots=True)
class Picture:
    """One finished image with its metadata."""

    pixels: NDArray[np.uint8]
    """uint8 [H, W, 3]."""
    metadata: dict[str, Any] = field(default_factory=dict)
    """Everything that determined the image, as plain JSON values; ``receipt`` in the API."""


class Ticket:
    """A submitted request: a future of its image, its progress, and cancellation.

    ``future`` may be awaited from asyncio with ``asyncio.wrap_future``; cancelling that cancels
    the request. Errors in the future are ``FarmError``s.
    """

    def __init__(self, request: GenerationRequest) -> None:
        self.request = request
        self.future: Future[Picture] = Future()
        self.progress = Progress("queued", 0, request.steps)
        self._listeners: list[Callable[[Progress], None]] = []

    def cancel(self) -> bool:
        """Stop the request within one denoising step; False if it had already ended."""
        return self.future.cancel()

    @property
    def cancelled(self) -> bool:
        """Whether the request was cancelled before it ended."""
        return self.future.cancelled()

    @property
    def ended(self) -> bool:
        """Whether the request ended in an image, an error or a cancellation."""
        return self.future.done()

    @property
    def generated(self) -> bool:
        """Whether the request ended in an image."""
        future = self.future
        return future.done() and not future.cancelled() and future.exception() is None

    @property
    def error(self) -> BaseException | None:
        """The error, if the request ended in one."""
        future = self.future
        return future.exception() if future.done() and not future.cancelled() else None

    def result(self, timeout_s: float | None = None) -> Picture:
        """Wait for the image.

        Raises:
            FarmError: if the request failed.
            TimeoutError: if it takes longer than ``timeout_s``.
            concurrent.futures.CancelledError: if it was cancelled.
        """
        return self.future.result(timeout_s)

    def listen(self, callback: Callable[[Progress], None]) -> None:
        """Call back on all further progress, in a thread of the engine.

        The callback must return immediately and not raise; pass the value to a queue or event loop.
        """
        self._listeners.append(callback)

    # -- the engine's side --------------------------------------------------------------------

    def report(self, progress: Progress) -> None:
        """Publish progress to the listeners; a listener that raises is dropped."""
        if self.ended:
            return
        self.progress = progress
        for listener in list(self._listeners):
            try:
                listener(progress)
            except Exception:  # a closed event loop must not stop the batch
                self._listeners.remove(listener)

    def succeed(self, picture: Picture) -> None:
        """Deliver the image, unless the request has been cancelled."""
        self.report(Progress("done", self.request.steps, self.request.steps))
        with suppress(InvalidStateError):
            self.future.set_result(picture)

    def fail(self, error: BaseException) -> None:
        """End with an error, unless the request had already ended."""
        with suppress(InvalidStateError):
            self.future.set_exception(error)
