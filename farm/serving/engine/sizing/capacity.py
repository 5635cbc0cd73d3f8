"""Capacity of a pass: the measured knee, the memory guard, and the cost of a request.

Owns the numbers behind admission; ``measuring.py`` measures them. At image sizes other than the
base's own the limit scales with the area, which is conservative for attention.
"""

from __future__ import annotations

from collections import deque

import torch

from farm.base.device.queues import Mark, mark, wait_for
from farm.base.interface import Base
from farm.serving.engine.row import Size
from farm.serving.engine.sizing.batch_size_search import BatchSizeCurve
from farm.serving.memory import device_memory, host_memory
from farm.serving.request import GenerationRequest

__all__ = ["Capacity"]

PASSES_AHEAD = 1
"""Passes that may be queued on the device: enough to hide Python, few enough to cancel fast."""
UNMEASURED_PASS_S = 0.05
MAX_HOST_RESERVE = 512 << 20


class Capacity:
    """Limits of a pass and the estimates based on them."""

    def __init__(self, base: Base, knee: BatchSizeCurve, *, memory_reserve: float = 0.1) -> None:
        self._device = base.device
        self._needs_unprompted = base.needs_unprompted
        self._pixels = base.resolution_px**2
        self._knee = knee
        self._memory_reserve = memory_reserve
        self._shrunk: dict[Size, int] = {}
        self._marks: deque[Mark] = deque()

    @classmethod
    def unmeasured(cls, base: Base, rows: int) -> Capacity:
        """A configured limit; times are guesses until passes have run."""
        return cls(base, BatchSizeCurve(rows, {rows: UNMEASURED_PASS_S}))

    @property
    def rows(self) -> int:
        """Rows of a full pass at the base's own size."""
        return self._knee.rows

    @property
    def reason(self) -> str:
        """The measurement on one line."""
        return self._knee.reason

    @property
    def seconds_by_rows(self) -> dict[int, float]:
        """The measured curve."""
        return self._knee.seconds_by_rows

    @property
    def seconds_per_cost(self) -> float:
        """Seconds of a row-step at the base's own size in a full pass."""
        return self._knee.seconds_per_row

    def area_ratio(self, size: Size) -> float:
        """Ratio of a size's pixels to those of the base's own size."""
        return size[0] * size[1] / self._pixels

    def rows_at(self, size: Size) -> int:
        """Rows of a full pass at a size; at least two, which a guided image needs."""
        rows = min(4 * self.rows, round(self.rows / self.area_ratio(size)))
        return max(2, min(rows, self._shrunk.get(size, rows)))

    def pass_s(self, size: Size) -> float:
        """Measured seconds of a full pass at a size."""
        return self.seconds_per_cost * self.area_ratio(size) * self.rows_at(size)

    def seconds(self, size: Size, rows: int) -> float:
        """Estimated seconds of a pass of this many rows, from the measured curve."""
        return self._knee.seconds_of(rows * self.area_ratio(size))

    def cost(self, request: GenerationRequest, size: Size) -> float:
        """Row-steps of a request at the base's own size."""
        rows = 2 if self._needs_unprompted(request.guidance) else 1
        return request.steps * rows * self.area_ratio(size)

    # -- memory -------------------------------------------------------------------------------

    def has_memory(self) -> bool:
        """Whether the device has more free memory than the reserve."""
        if self._device.type != "cuda":
            free, total = host_memory()
            return free >= min(self._memory_reserve * total, MAX_HOST_RESERVE)
        free, total = device_memory(self._device)
        return free >= self._memory_reserve * total

    def shrink(self, size: Size, rows: int) -> None:
        """Lower the limit of this size, after running out of memory."""
        self._shrunk[size] = max(2, rows)

    def release_memory(self) -> None:
        """Return the allocator's unused blocks to the device, after running out."""
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    def pace(self) -> None:
        """Wait until the device is at most ``PASSES_AHEAD`` passes behind."""
        self._marks.append(mark(self._device))
        while len(self._marks) > PASSES_AHEAD:
            wait_for(self._marks.popleft())
