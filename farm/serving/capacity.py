"""How much fits in a pass: the measured knee, the memory guard, and what a request costs.

Owns the numbers behind admission. The knee is measured on the real base with the real bank; at
other picture sizes the limit follows the area, which is on the safe side for attention.

Legend: R rows, K adapters per row.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable
from contextlib import nullcontext

import psutil
import torch

from farm.adapters.bank import Bank
from farm.adapters.rows import RowWeights
from farm.base.model import Base
from farm.serving.config import EngineConfig
from farm.serving.knee import Knee, find_knee
from farm.serving.request import DrawRequest
from farm.serving.rows import Size

__all__ = ["Capacity", "measure_capacity", "warm_up"]

REPEATS = 5
"""Passes timed per batch size; the fastest counts, for noise only adds."""
PASSES_AHEAD = 1
"""Passes that may be queued on the device: enough to hide Python, few enough to cancel fast."""
UNMEASURED_PASS_S = 0.05
MAX_HOST_RESERVE = 512 << 20


class Capacity:
    """Limits of a pass and estimates that follow from them."""

    def __init__(self, base: Base, knee: Knee, *, memory_reserve: float = 0.1) -> None:
        self._device = base.device
        self._pixels = base.resolution_px**2
        self._knee = knee
        self._memory_reserve = memory_reserve
        self._shrunk: dict[Size, int] = {}
        self._events: deque[torch.cuda.Event] = deque()

    @classmethod
    def unmeasured(cls, base: Base, rows: int) -> Capacity:
        """A limit set by hand; the times are guesses until passes have run."""
        return cls(base, Knee(rows, {rows: UNMEASURED_PASS_S}))

    @property
    def rows(self) -> int:
        """Rows of a full pass at the base's own size."""
        return self._knee.rows

    @property
    def reason(self) -> str:
        """The measurement in one line."""
        return self._knee.reason

    @property
    def seconds_by_rows(self) -> dict[int, float]:
        """The measured curve."""
        return self._knee.seconds_by_rows

    @property
    def seconds_per_cost(self) -> float:
        """Machine seconds of a row-step at the base's own size in a full pass."""
        return self._knee.seconds_per_row

    def area_ratio(self, size: Size) -> float:
        """Pixels of a size over those of the base's own."""
        return size[0] * size[1] / self._pixels

    def rows_at(self, size: Size) -> int:
        """Rows of a full pass at a size; two at least, for a guided picture needs them."""
        rows = min(4 * self.rows, round(self.rows / self.area_ratio(size)))
        return max(2, min(rows, self._shrunk.get(size, rows)))

    def pass_s(self, size: Size) -> float:
        """Seconds of a full pass at a size, as far as the measurement tells."""
        return self.seconds_per_cost * self.area_ratio(size) * self.rows_at(size)

    def cost(self, request: DrawRequest, size: Size) -> float:
        """Row-steps of a request at the base's own size."""
        return request.steps * request.num_rows * self.area_ratio(size)

    # -- memory -------------------------------------------------------------------------------

    def has_memory(self) -> bool:
        """Whether the device has more free than the reserve."""
        if self._device.type != "cuda":
            free, total = _host_memory()
            return free >= min(self._memory_reserve * total, MAX_HOST_RESERVE)
        free, total = _device_memory(self._device)
        return free >= self._memory_reserve * total

    def shrink(self, size: Size, rows: int) -> None:
        """Take fewer rows at this size from now on: so many were too many."""
        self._shrunk[size] = max(2, rows)

    def release_memory(self) -> None:
        """Give the allocator's unused blocks back, after running out."""
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    def pace(self) -> None:
        """Wait until the device is at most ``PASSES_AHEAD`` passes behind."""
        if self._device.type != "cuda":
            return
        event = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(self._device))
        self._events.append(event)
        while len(self._events) > PASSES_AHEAD:
            self._events.popleft().synchronize()


def warm_up(base: Base, bank: Bank | None, rows: int) -> None:
    """Run one pass of so many rows on a GPU, whose first pass takes seconds to load its kernels.

    What is learned from the engine's own first passes would be far too slow otherwise.
    """
    if base.device.type == "cuda":
        _passes(base, bank)(rows)()
        torch.cuda.synchronize(base.device)


def _passes(base: Base, bank: Bank | None) -> Callable[[int], Callable[[], None]]:
    """Makes passes with what a running batch has ready: each row's adapter, and prompts that come
    again."""
    shape = base.latent_shape(base.resolution_px, base.resolution_px)
    prompt = base.encode_prompts([""])
    weights = None if bank is None else RowWeights(bank)

    def pass_of(rows: int) -> Callable[[], None]:
        latents_RCHW = torch.zeros(rows, *shape, dtype=base.dtype, device=base.device)
        timesteps_R = torch.full((rows,), 500.0, device=base.device)
        prompts = prompt.repeat(rows)
        if bank is not None and weights is not None:
            weights.assign([[row % bank.num_slots] for row in range(rows)])

        @torch.no_grad()
        def run() -> None:
            with nullcontext() if weights is None else weights.active():
                base.denoise(latents_RCHW, timesteps_R, prompts)

        return run

    return pass_of


def measure_capacity(base: Base, bank: Bank | None, config: EngineConfig) -> Capacity:
    """Time real passes of growing size, each row with another adapter."""
    peak_bytes = {0: 0}
    pass_of = _passes(base, bank)

    def pass_seconds(rows: int) -> float:
        before = _allocated(base.device)
        try:
            run = pass_of(rows)
            run()
            run()  # what is remembered of prompts that come again is there now
            peak_bytes[rows] = max(0, _peak(base.device) - before)
            return min(_timed(run, base.device) for _ in range(REPEATS))
        except torch.OutOfMemoryError:  # a neighbour on the device may have taken what was free
            if rows == 1:
                raise
            return math.inf

    def fits(rows: int) -> bool:
        if base.device.type != "cuda":
            return True
        free, total = _device_memory(base.device)
        wanted = peak_bytes[max(peak_bytes)] * rows / max(1, *peak_bytes)
        return wanted < free - config.memory_reserve * total

    knee = find_knee(pass_seconds, max_rows=config.max_batch_rows, fits=fits)
    capacity = Capacity(base, knee, memory_reserve=config.memory_reserve)
    capacity.release_memory()  # to whoever shares the device
    return capacity


def _device_memory(device: torch.device) -> tuple[int, int]:
    """Bytes that can be allocated, those that torch holds ready among them, and bytes in all."""
    free, total = torch.cuda.mem_get_info(device)
    ready = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return free + ready, total


def _host_memory() -> tuple[int, int]:
    """Available and total bytes of the host."""
    memory = psutil.virtual_memory()
    return memory.available, memory.total


def _timed(run: Callable[[], None], device: torch.device) -> float:
    _synchronize(device)
    started_s = time.perf_counter()
    run()
    _synchronize(device)
    return time.perf_counter() - started_s


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _allocated(device: torch.device) -> int:
    if device.type != "cuda":
        return 0
    torch.cuda.reset_peak_memory_stats(device)
    return torch.cuda.memory_allocated(device)


def _peak(device: torch.device) -> int:
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0
