"""An image in the running batch: its inputs for a pass, and its timing.

Owns the state of a request between submission and decoding, and its image's metadata. The engine
advances it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from torch import Tensor

from farm.base.interface import Base, Conditioning
from farm.errors import RequestRefused, UserError
from farm.serving.adapters.cache_tiers import Tier
from farm.serving.adapters.prompts import cut_notes
from farm.serving.adapters.slots import Reservation
from farm.serving.engine.sampler import Sampler
from farm.serving.request import GenerationRequest, Ticket
from farm.version import __version__

__all__ = ["LoadedAdapter", "Row", "Size", "Waiting", "size_of"]

Size = tuple[int, int]
"""Width and height in pixels; rows of one size share a pass."""


def size_of(base: Base, request: GenerationRequest) -> Size:
    """The image size of a request.

    Raises:
        RequestRefused: if the base cannot generate it.
    """
    width = request.width_px or base.resolution_px
    height = request.height_px or base.resolution_px
    try:
        base.latent_shape(width, height)
    except UserError as error:
        raise RequestRefused(error.message, error.remedy, "size") from error
    return width, height


@dataclass(frozen=True, slots=True)
class LoadedAdapter:
    """How one adapter of an image was loaded, for the metadata."""

    sha256: str
    tier: Tier
    load_s: float


@dataclass(eq=False)
class Waiting:
    """A request that is not yet a row. Times are of ``time.monotonic``."""

    ticket: Ticket
    size: Size
    cost: float
    """Row-steps at the base's own resolution."""
    submitted_s: float
    turn: int = 0
    """Its position in the order in which requests left the fair queue; ready rows join in it."""
    popped_s: float = 0.0
    uses: dict[str, LoadedAdapter] = field(default_factory=dict)

    @property
    def request(self) -> GenerationRequest:
        """What was asked."""
        return self.ticket.request

    @property
    def deadline(self) -> float:
        """When the image is no longer useful; infinite for never."""
        within_s = self.request.deadline_s
        return math.inf if within_s is None else self.submitted_s + within_s

    @property
    def keys(self) -> list[str]:
        """Keys of the adapters, in the request's order, each once."""
        return list(dict.fromkeys(ref.key for ref, _ in self.request.adapters))


@dataclass(eq=False)
class Row:
    """One image in the running batch; a guided one takes two rows of a pass."""

    waiting: Waiting
    sampler: Sampler
    prompted: Conditioning
    unprompted: Conditioning | None
    """None for an unguided image."""
    slots: tuple[int, ...]
    """Bank slots of its adapters; empty for the bare base."""
    factors: tuple[float, ...]
    reservations: list[Reservation]
    joined_s: float = 0.0
    denoised_s: float = 0.0
    rows_seen: int = 0
    """Rows of all passes it took part in, summed, for the mean in the metadata."""
    largest_pass: int = 0

    @property
    def ticket(self) -> Ticket:
        """The ticket of its request."""
        return self.waiting.ticket

    @property
    def request(self) -> GenerationRequest:
        """What was asked."""
        return self.waiting.ticket.request

    def count_pass(self, num_rows: int) -> None:
        """Count a pass that it took part in."""
        self.rows_seen += num_rows
        self.largest_pass = max(self.largest_pass, num_rows)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """Its inputs on the device."""
        plain = () if self.unprompted is None else self.unprompted.tensors
        return self.sampler.latents_1CHW, *self.prompted.tensors, *plain

    @property
    def num_rows(self) -> int:
        """Rows that it takes in a pass."""
        return 1 if self.unprompted is None else 2

    @property
    def step_cost(self) -> float:
        """Row-steps of one step, at the base's own resolution."""
        return self.waiting.cost / self.sampler.num_steps

    @property
    def remaining_cost(self) -> float:
        """Row-steps still to do, at the base's own resolution."""
        return self.waiting.cost * (1 - self.sampler.step / self.sampler.num_steps)

    def metadata(self, base: Base, decoded_s: float, decode_s: float) -> dict[str, Any]:
        """Everything that determined the image, as plain JSON values.

        Args:
            decoded_s: when decoding finished, on ``time.monotonic``.
            decode_s: seconds that decoding took.
        """
        request, waiting = self.request, self.waiting
        seconds = {
            "queue": waiting.popped_s - waiting.submitted_s,
            "prepare": self.joined_s - waiting.popped_s,
            "denoise": self.denoised_s - self.joined_s,
            "decode": decode_s,
            "total": decoded_s - waiting.submitted_s,
        }
        return {
            "id": request.id,
            "base": base.name,
            "base_fingerprint": base.fingerprint,
            "adapters": [self._adapter(i) for i in range(len(request.adapters))],
            "prompt": request.prompt,
            "negative_prompt": request.negative_prompt,
            "long_prompts": request.long_prompts,
            "notes": cut_notes(base, request),
            "seed": request.seed,
            "steps": request.steps,
            "guidance": request.guidance,
            "scheduler": request.scheduler,
            "width_px": waiting.size[0],
            "height_px": waiting.size[1],
            "seconds": {name: round(value, 4) for name, value in seconds.items()},
            "batch": {
                "mean_rows": round(self.rows_seen / max(1, self.sampler.step), 2),
                "largest": self.largest_pass,
            },
            "farm_version": __version__,
            "created": datetime.now(UTC).isoformat(timespec="milliseconds"),
        }

    def _adapter(self, index: int) -> dict[str, Any]:
        ref, weight = self.request.adapters[index]
        use = self.waiting.uses[ref.key]
        return {
            "key": ref.key,
            "namespace": ref.namespace,
            "name": ref.name,
            "sha256": use.sha256,
            "weight": weight,
            "found_in": "model" if use.tier == "slot" else use.tier,
            "load_seconds": round(use.load_s, 4),
        }
