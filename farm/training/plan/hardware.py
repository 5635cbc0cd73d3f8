"""The hardware that a plan divides into lanes: nodes, GPUs, cores, their speed and price.

Owns the table of known GPUs. Detects nothing; callers fill ``Hardware`` in.
"""

from __future__ import annotations

from dataclasses import dataclass

from farm.training.plan.calibration import Calibration
from farm.training.plan.costs import CPU_FLOPS

__all__ = ["GPUS", "Hardware", "memory_of"]

GPUS: dict[str, tuple[float, float, float]] = {
    # name part: dense half-precision peak in TFLOP/s, USD per hour (order of magnitude on demand),
    # memory in GiB (of the common model)
    "H200": (989, 4.0, 140),
    "H100": (989, 3.0, 80),
    "A100": (312, 1.8, 40),
    "L40": (181, 1.2, 45),
    "L4": (121, 0.7, 22.5),
    "A10": (125, 0.9, 22.5),
    "V100": (125, 1.5, 16),
    "T4": (65, 0.4, 15),
    "4090": (165, 0.5, 24),
    "3090": (71, 0.3, 24),
}
UNKNOWN_GPU = (100.0, 1.5, 0.0)


@dataclass(frozen=True)
class Hardware:
    """The lanes' hardware: identical nodes, not counting a head that only runs the driver."""

    gpu_name: str | None
    """None plans for CPUs."""
    gpu_bytes: int
    gpus_per_node: int
    cpus_per_node: float
    num_nodes: int = 1
    dollars_per_gpu_hour: float | None = None
    """None uses a rough market price for the GPU's name."""
    nodes_are_a_limit: bool = False
    """Whether ``num_nodes`` is an upper bound; the plan then uses as many as the work needs."""
    uses_mps: bool | None = None
    """Whether NVIDIA's MPS runs on the nodes; None if that is not known."""
    calibration: Calibration | None = None
    """The card's measured speed and memory; None uses the model's constants."""
    cluster: str = ""
    """Address of the Ray cluster that it was read from; empty if it was not."""

    @property
    def has_gpu(self) -> bool:
        """Whether lanes get GPUs."""
        return self.gpu_name is not None and self.gpus_per_node > 0

    @property
    def peak_flops(self) -> float:
        """Dense half-precision FLOP/s of one GPU; without one, of all cores of a node."""
        return self._facts()[0] * 1e12 if self.has_gpu else CPU_FLOPS * self.cpus_per_node

    @property
    def hourly_dollars(self) -> float:
        """Price of one GPU; 0 without one."""
        if not self.has_gpu:
            return 0.0
        price = self.dollars_per_gpu_hour
        return self._facts()[1] if price is None else price

    def _facts(self) -> tuple[float, float, float]:
        return _facts_of(self.gpu_name or "")


def memory_of(gpu_name: str) -> float | None:
    """GiB of a well-known GPU; None for others."""
    return _facts_of(gpu_name)[2] or None


def _facts_of(gpu_name: str) -> tuple[float, float, float]:
    return next((facts for part, facts in GPUS.items() if part in gpu_name), UNKNOWN_GPU)
