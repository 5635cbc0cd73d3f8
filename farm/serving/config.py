"""The engine's settings and statistics."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field

from pydantic import BaseModel, ConfigDict, Field

from farm.serving.request import RequestLimits

__all__ = ["MAX_RANK", "CacheLimits", "CacheStats", "EngineConfig", "EngineStats"]


MAX_RANK = 256
"""Highest rank of any adapter, the same as in recipes."""


@dataclass(frozen=True, slots=True)
class CacheLimits:
    """Capacity of each tier of the adapter cache."""

    disk_bytes: int = 20 << 30
    host_bytes: int = 4 << 30
    max_file_bytes: int = 1 << 30
    """A weights file larger than this is refused."""
    num_loaders: int = 8
    """Adapters that may load at once; enough to hide an object store's latency."""
    revocations_max_age_s: float = 15.0
    """Maximum age of the list of revocations while the store does not answer."""
    bad_for_s: float = 300.0
    """How long an invalid adapter is refused before it is read again; its files may be fixed by
    then."""


class EngineConfig(BaseModel):
    """The engine's settings; the defaults suit one whole GPU and Stable Diffusion v1-5."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    num_slots: int = Field(65, ge=2, le=4096)
    """Adapters in the model at once, plus one slot for the bare base. Twice the images of a full
    batch lets the next adapters load while the current ones run."""
    max_rank: int = Field(MAX_RANK, ge=1, le=MAX_RANK)
    """An operator's limit: adapters of a higher rank are refused."""
    target_modules: tuple[str, ...] | None = None
    """An operator's limit: suffixes of the denoiser's module names that adapters may change; None
    allows every linear and convolution layer."""
    text_encoder_modules: tuple[str, ...] | None = None
    """The same for the text encoder; empty refuses adapters with text-encoder layers."""
    adapter_mib: int | None = Field(None, ge=1)
    """Memory for the adapters in slots, in MiB; None is a quarter of what is free after the base is
    loaded."""
    batch_rows: int | None = Field(None, ge=1, le=1024)
    """Rows of a full pass at the base's own size; None measures the best number, once per base and
    machine."""
    pad_rows: bool | None = None
    """Pad passes to a few sizes and replay each as a CUDA graph; None does so on GPUs."""
    max_batch_rows: int = Field(128, ge=2, le=1024)
    """The measurement stops at this size."""
    memory_reserve: float = Field(0.1, ge=0, lt=0.9)
    """Share of the device's memory that joining rows must leave free; at most 512 MiB on a CPU,
    whose memory other programs also use."""
    max_sizes: int = Field(4, ge=1, le=64)
    """Full batches of different image sizes that may run at once, in turns."""
    lookahead: int | None = Field(None, ge=1)
    """Requests prepared ahead of joining; None is the batch limit."""
    max_loading: int = Field(64, ge=1)
    """Requests that may wait for their adapters, in addition to those prepared ahead."""
    decode_batch: int = Field(4, ge=1, le=64)
    """Images decoded at once."""
    max_prompts: int = Field(512, ge=1)
    """Encoded prompts kept."""
    max_waiting: int = Field(256, ge=1)
    """Requests in the queue; more are refused, except from tenants below their share."""
    max_wait_s: float = Field(120.0, gt=0)
    """Requests with a longer expected wait are refused."""
    quantum: float = Field(50.0, gt=0)
    """Row-steps that a tenant may spend per round; 50 is one guided image of 25 steps."""
    stuck_after_s: float = Field(120.0, gt=0)
    """A loop that completes no turn for this long is unhealthy."""
    limits: RequestLimits = Field(default_factory=RequestLimits)
    """Limits per request; an endpoint's config sets them under its own ``limits``."""
    cache: CacheLimits = Field(default_factory=CacheLimits)
    """Limits of the cache."""


@dataclass(slots=True)
class CacheStats:
    """Counts since the start."""

    host_hits: int = 0
    disk_hits: int = 0
    store_loads: int = 0
    joined_loads: int = 0
    """Requests that waited for a load begun by another request."""
    refused: int = 0
    failed: int = 0
    load_s: float = 0.0
    """Seconds that loads took, summed."""
    host_bytes: int = 0
    disk_bytes: int = 0


@dataclass(slots=True)
class EngineStats:
    """Counts since the start, and current sizes."""

    submitted: int = 0
    generated: int = 0
    failed: int = 0
    cancelled: int = 0
    refused: int = 0
    """Refused at ``submit`` because of load."""
    passes: int = 0
    rows: int = 0
    """Rows of all passes."""
    denoise_s: float = 0.0
    """Seconds of all passes, scheduler steps included."""
    last_rows: int = 0
    out_of_memory: int = 0
    seconds_per_cost: float = 0.0
    """Running mean of a row-step's seconds at the base's own size."""
    waiting: int = 0
    preparing: int = 0
    running: int = 0
    decoding: int = 0
    backlog_s: float = 0.0
    """Seconds of work waiting or running."""
    wait_s: float = 0.0
    """Seconds until an image requested now would start."""
    batch_rows: int = 0
    """Rows of a full pass at the base's own size."""
    slots_in_use: int = 0
    slots_filled: int = 0
    slot_bytes: int = 0
    """Memory of the adapters in slots."""
    slot_hits: int = 0
    """Adapters already in a slot when a request needed them."""
    prompt_hits: int = 0
    prompts_encoded: int = 0
    revocations_age_s: float = 0.0
    cache: CacheStats = field(default_factory=CacheStats)

    def copy(self) -> EngineStats:
        """A snapshot."""
        return copy.copy(self)

    @property
    def batch_fill(self) -> float:
        """Mean fill of a full pass."""
        return self.rows / (self.passes * self.batch_rows) if self.passes else 0.0
