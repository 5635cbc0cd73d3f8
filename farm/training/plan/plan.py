"""The plan and its inputs: plain values.

Owns ``PlanInputs`` and ``Plan``. ``planner`` decides; ``gpu_lanes`` and ``cpu_lanes`` hold the
rules for each kind of device.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from farm.base.memory import MemoryFacts
from farm.training.plan.costs import CONTEXT_BYTES
from farm.training.plan.estimate import Estimate
from farm.training.plan.hardware import Hardware
from farm.training.plan.shape import LaneShape, Workload

__all__ = ["GIB", "Plan", "PlanInputs"]

GIB = 2**30


@dataclass(frozen=True)
class PlanInputs:
    """The base, the work, the hardware, and the user's choices."""

    facts: MemoryFacts
    workload: Workload
    hardware: Hardware
    slots: int | None = None
    fraction: float | None = None
    """Of a GPU, per lane."""
    lanes: int | None = None
    """Of one node."""
    checkpointing: bool | None = None

    @property
    def shape(self) -> LaneShape:
        """The shape that lanes are planned for."""
        return self.workload.shape

    def slots_to_fill(self, lanes_per_node: int) -> int:
        """Slots of each lane that give every job a slot at once."""
        return math.ceil(self.workload.num_jobs / (lanes_per_node * self.hardware.num_nodes))

    def cpus_per_lane(self, lanes: int) -> float:
        """Cores of one lane; a quarter of the node, at most one core, is left for the rest."""
        cores = self.hardware.cpus_per_node
        spare = min(1.0, cores / 4)
        exact = min((cores - spare) / lanes, 1.0 if self.hardware.has_gpu else math.inf)
        return max(0.125, math.floor(exact * 8) / 8)


@dataclass(frozen=True)
class Plan:
    """How a run uses its hardware. Printed before the run starts."""

    device: str
    """``cuda`` or ``cpu``."""
    num_nodes: int
    lanes_per_node: int
    gpu_fraction: float
    """Of one GPU, per lane; 0 on CPUs."""
    cpus_per_lane: float
    slots: int
    checkpointing: bool
    lane_bytes: int
    """Expected memory of a lane with full slots."""
    share_bytes: int
    """Memory a lane may use: its share of the GPU; 0 on CPUs, where there is no cap."""
    rows_per_s: float
    """Of all lanes together, once they are full."""
    hours: float
    """Expected wall time, including the generation of missing prior sets."""
    gpu_hours: float
    dollars: float
    prior_fraction: float
    """Share of a GPU on each node that generates missing prior sets beside the lanes; 0 if none
    are missing."""
    estimate: Estimate
    """The hours by part."""
    reason: str
    """Why this split was chosen."""
    threads: int = 1
    """Of a lane on CPUs, and of a prior worker."""
    prior_workers_per_node: int = 1
    """Processes on a node that generate missing class images on CPUs."""
    notes: tuple[str, ...] = field(default=())

    @property
    def num_lanes(self) -> int:
        """Lanes of all nodes."""
        return self.num_nodes * self.lanes_per_node

    @property
    def memory_fraction(self) -> float | None:
        """A lane's value for ``torch.cuda.set_per_process_memory_fraction``: its share less the
        CUDA context, which PyTorch's allocator does not see. None on CPUs."""
        return self._allocatable(self.gpu_fraction)

    @property
    def prior_worker_memory_fraction(self) -> float | None:
        """The same for a prior worker; None if none runs on a GPU."""
        return self._allocatable(self.prior_fraction)

    def _allocatable(self, fraction: float) -> float | None:
        if self.device != "cuda" or not fraction:
            return None
        whole = self.share_bytes / self.gpu_fraction
        return fraction - CONTEXT_BYTES / whole
