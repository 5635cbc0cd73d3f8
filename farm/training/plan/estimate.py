"""How long a run takes, by part: start-up, class images, photos, training, samples, publishing.

Owns the time model; ``costs`` owns the speed of one pass, ``planner`` the choice of lanes. Pure
functions.
The constants are measured on two cores with the embedded base (benchmarks/plan-*.md).
"""

from __future__ import annotations

from dataclasses import dataclass

from farm.training.plan.shape import Workload

__all__ = ["Estimate", "PlannedSpeed", "estimate_run"]

DECODE_ROWS = 2.0
"""Cost of decoding one image, in forward rows of the denoiser: 2 on the embedded base, 3 on Stable
Diffusion v1-5 (2.5 TFLOP against 0.8)."""
ENCODE_ROWS = 1.0
"""Cost of encoding one crop or class image, in the same unit: 0.5 and 1.4."""
RAY_START_S = 10.0
"""Seconds to start and stop Ray, the dispatcher and the first lane's process."""
PROCESS_CPU_S = 6.0
"""CPU seconds in which a lane or prior worker imports torch, diffusers and Ray."""
LOAD_BYTES_PER_S = 0.5e9
"""Seconds to read a base's weights onto its device."""
IN_PROCESS_START_S = 1.0
"""Seconds without Ray, where everything is already imported."""
JOB_CPU_S = 0.15
"""CPU seconds to publish one adapter: three formats, names, ledger, its part of the report."""


@dataclass(frozen=True)
class PlannedSpeed:
    """The speed of the planned processes."""

    rows_per_s: float
    """Training rows of all lanes together."""
    forward_s: float
    """One forward row of the denoiser, in one lane or prior worker."""
    lanes: int
    """Lanes that run at the same time."""
    prior_workers: int
    """Processes that generate class images at the same time."""
    cores: float
    """Of all nodes; processes start on them."""
    weight_bytes: int
    uses_ray: bool = True


@dataclass(frozen=True)
class Estimate:
    """Expected wall seconds of each part of a run, on otherwise idle hardware."""

    start_s: float = 0.0
    """Starting Ray and the lanes' processes, loading the base, compiling on GPUs."""
    class_images_s: float = 0.0
    """Generating and encoding the missing class images."""
    photos_s: float = 0.0
    """Encoding the subjects' crops."""
    training_s: float = 0.0
    """Steps, and the evaluations of ``keep_best`` and ``early_stop``."""
    pictures_s: float = 0.0
    """Generating samples and the images that quality cards score."""
    compiles: bool = False
    """Whether lanes compile their passes, which ``start_s`` then includes."""
    end_s: float = 0.0
    """Publishing adapters, the report."""

    @property
    def total_s(self) -> float:
        """The whole run."""
        return (
            self.start_s
            + self.class_images_s
            + self.photos_s
            + self.training_s
            + self.pictures_s
            + self.end_s
        )


def estimate_run(workload: Workload, speed: PlannedSpeed) -> Estimate:
    """Estimate a run. Overlapping parts share the same devices, so their times are added."""
    each = workload.prior_steps * 2 + DECODE_ROWS + ENCODE_ROWS
    lane_row_s = speed.forward_s / speed.lanes
    pictures = workload.picture_rows + workload.num_pictures * DECODE_ROWS
    return Estimate(
        start_s=_start_s(workload, speed),
        class_images_s=workload.num_prior_images * each * speed.forward_s / speed.prior_workers,
        photos_s=workload.num_crops * ENCODE_ROWS * lane_row_s,
        training_s=workload.row_steps / speed.rows_per_s + workload.evaluation_rows * lane_row_s,
        pictures_s=pictures * lane_row_s,
        end_s=workload.num_jobs * JOB_CPU_S / speed.lanes,
    )


def _start_s(workload: Workload, speed: PlannedSpeed) -> float:
    load_s = speed.weight_bytes / LOAD_BYTES_PER_S
    if not speed.uses_ray:
        return IN_PROCESS_START_S + load_s
    processes = speed.lanes + (speed.prior_workers if workload.num_prior_images else 0)
    return RAY_START_S + load_s + PROCESS_CPU_S * max(1.0, processes / speed.cores)
