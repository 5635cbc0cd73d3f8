"""Lanes on GPUs: which splits of a GPU hold a lane, and how fast each would be.

Owns the rules by which a GPU is shared among lanes and the prior worker. ``planner`` chooses among
the candidates.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from farm.base.memory import MemoryFacts
from farm.errors import PlanError
from farm.training.plan.costs import (
    CHECKPOINT_FACTOR,
    COMPILE_S,
    COMPILING_PAYS,
    CONTEXT_BYTES,
    FILL,
    PEAK_SHARE,
    SHARING_LOSS,
    TRAINING_FACTOR,
    beside_bytes,
    fixed_bytes,
    lane_bytes,
    row_flops,
    rows_per_s,
    slot_bytes,
)
from farm.training.plan.estimate import Estimate, PlannedSpeed, estimate_run
from farm.training.plan.hardware import Hardware
from farm.training.plan.plan import GIB, Plan, PlanInputs

__all__ = ["YARDSTICK", "gpu_candidates", "prior_worker_fraction"]

YARDSTICK = 0.125
"""The share of a GPU used in the article's run."""
FRACTIONS = (YARDSTICK, 0.25, 0.5, 1.0)
"""Exact in binary: other fractions accumulate rounding errors in Ray's arithmetic."""
MAX_SLOTS = 64
"""More slots are not faster: the GPU is saturated long before, and the first results come late."""
PRIOR_WORKER_BYTES = 3 * 2**29
"""Memory for generating class images, beside the base: a few guided rows at 512 px without
gradients, and the VAE's 0.4 GiB. A prior worker with more memory generates more of them at once."""


@dataclass(frozen=True)
class Split:
    """How a node's GPUs are shared."""

    lane_fraction: float
    """Of a GPU, for each lane."""
    prior_fraction: float
    """Of a GPU, for the prior worker; 0 if no class images are missing."""
    max_lanes: int
    """Lanes of a node."""


def gpu_candidates(inputs: PlanInputs) -> list[Plan]:
    """The plan of every split that fits.

    Raises:
        PlanError: if none fits; with the numbers.
    """
    fractions = (inputs.fraction,) if inputs.fraction else FRACTIONS
    splits = [split for share in fractions if (split := _split(inputs, share)) is not None]
    if not splits:
        raise _no_room_for_prior_worker(inputs)
    choices = (False, True) if inputs.checkpointing is None else (inputs.checkpointing,)
    candidates = [
        candidate
        for split in splits
        for checkpointing in choices
        if (candidate := _candidate(inputs, split, checkpointing)) is not None
    ]
    if not candidates:
        raise _does_not_fit(inputs)
    return candidates


def _candidate(inputs: PlanInputs, split: Split, checkpointing: bool) -> Plan | None:
    """The plan of one split; None if it does not fit."""
    facts, shape, hardware = inputs.facts, inputs.shape, inputs.hardware
    share = int(hardware.gpu_bytes * split.lane_fraction)
    fixed, each = _lane_memory(inputs, checkpointing)
    most = (int(share * FILL) - fixed) // each
    if most < max(inputs.slots or 1, 1):
        return None
    lanes = min(split.max_lanes, inputs.workload.num_jobs)
    slots = inputs.slots or max(1, min(most, MAX_SLOTS, inputs.slots_to_fill(lanes)))
    lanes_per_gpu = min(int(1 / split.lane_fraction), math.ceil(lanes / hardware.gpus_per_node))
    num_gpus = math.ceil(lanes / lanes_per_gpu) * hardware.num_nodes
    work = row_flops(facts, shape, checkpointing)
    rate = _gpu_rows_per_s(hardware, work, slots * shape.rows) * num_gpus
    if lanes_per_gpu > 1:
        rate *= 1 - SHARING_LOSS
    expected = _estimate(inputs, checkpointing, rate=rate, num_gpus=num_gpus)
    gpu_hours = expected.total_s / 3600 * num_gpus
    return Plan(
        device="cuda",
        num_nodes=hardware.num_nodes,
        lanes_per_node=lanes,
        gpu_fraction=split.lane_fraction,
        cpus_per_lane=inputs.cpus_per_lane(lanes),
        slots=slots,
        checkpointing=checkpointing,
        lane_bytes=fixed + slots * each,
        share_bytes=share,
        rows_per_s=rate,
        hours=expected.total_s / 3600,
        gpu_hours=gpu_hours,
        dollars=gpu_hours * hardware.hourly_dollars,
        prior_fraction=split.prior_fraction,
        estimate=expected,
        reason="",
    )


def _lane_memory(inputs: PlanInputs, checkpointing: bool) -> tuple[int, int]:
    """Bytes of a lane without slots, and of a slot; from the card's calibration if there is one."""
    fixed = fixed_bytes(inputs.facts)
    if inputs.workload.num_pictures:
        fixed += beside_bytes(inputs.facts, inputs.shape)
    each = slot_bytes(inputs.facts, inputs.shape, checkpointing)
    measured = inputs.hardware.calibration
    if measured is None:
        return fixed, each
    return fixed + measured.fixed_bytes_more, max(1, round(each * measured.slot_bytes_ratio))


def _gpu_rows_per_s(hardware: Hardware, work: float, rows: int) -> float:
    measured = hardware.calibration
    if measured is not None:
        return measured.rows_per_s(work, rows)
    return rows_per_s(work, rows, hardware.peak_flops)


def _estimate(inputs: PlanInputs, checkpointing: bool, *, rate: float, num_gpus: int) -> Estimate:
    hardware = inputs.hardware
    work = row_flops(inputs.facts, inputs.shape, checkpointing)
    forward = work / TRAINING_FACTOR / (CHECKPOINT_FACTOR if checkpointing else 1.0)
    measured = hardware.calibration
    flops = hardware.peak_flops * PEAK_SHARE if measured is None else measured.flops_per_s
    speed = PlannedSpeed(
        rows_per_s=rate,
        forward_s=forward / flops,
        lanes=num_gpus,
        prior_workers=num_gpus,
        cores=hardware.cpus_per_node * hardware.num_nodes,
        weight_bytes=inputs.facts.weight_bytes,
        uses_ray=inputs.workload.uses_ray,
    )
    expected = estimate_run(inputs.workload, speed)
    warm_up_s = COMPILE_S if measured is None else measured.warm_up_s
    if expected.training_s < COMPILING_PAYS * warm_up_s:
        return expected
    return replace(expected, start_s=expected.start_s + warm_up_s, compiles=True)


def _split(inputs: PlanInputs, fraction: float) -> Split | None:
    """The split with lanes of this fraction; None if the prior worker has no room beside them.

    While prior sets are missing, one prior worker per node needs memory beside the lanes:
    whole-GPU lanes get a smaller share; if lanes are smaller, fewer are placed.
    """
    hardware = inputs.hardware
    is_needed = inputs.workload.num_prior_images > 0
    prior = prior_worker_fraction(inputs.facts, hardware) if is_needed else 0.0
    lanes = inputs.lanes or int(1 / fraction) * hardware.gpus_per_node
    if prior and fraction == 1.0:
        fraction -= prior
    elif inputs.lanes is None:
        while lanes > 1 and _largest_free_share(lanes, fraction, hardware) < prior:
            lanes -= 1
    has_room = _largest_free_share(lanes, fraction, hardware) >= prior
    return Split(fraction, prior, lanes) if has_room else None


def prior_worker_fraction(facts: MemoryFacts, hardware: Hardware) -> float:
    """Share of one GPU that a prior worker needs; at least an eighth."""
    need = CONTEXT_BYTES + facts.weight_bytes + PRIOR_WORKER_BYTES
    fitting = [share for share in FRACTIONS[:-1] if need <= share * hardware.gpu_bytes]
    return fitting[0] if fitting else FRACTIONS[-2]


def _largest_free_share(lanes: int, fraction: float, hardware: Hardware) -> float:
    """The largest share of a GPU that this many lanes, packed tightly, leave free on a node."""
    per_gpu = int(1 / fraction)
    full, rest = divmod(lanes, per_gpu)
    if full + (rest > 0) < hardware.gpus_per_node:
        return 1.0
    return 1 - (rest or per_gpu) * fraction


def _no_room_for_prior_worker(inputs: PlanInputs) -> PlanError:
    prior = prior_worker_fraction(inputs.facts, inputs.hardware)
    lanes = f"{inputs.lanes} lane(s)" if inputs.lanes else "a lane"
    lanes += f" of {inputs.fraction:g} GPU" if inputs.fraction else ""
    return PlanError(
        f"{lanes} on a node with {inputs.hardware.gpus_per_node} GPU(s) leave no {prior:g} of a "
        "GPU free for generating the class images that are missing",
        f"ask for fewer lanes, or for at most {1 - prior:g} of a GPU",
    )


def _does_not_fit(inputs: PlanInputs) -> PlanError:
    facts, shape, hardware = inputs.facts, inputs.shape, inputs.hardware
    checkpointing = True if inputs.checkpointing is None else inputs.checkpointing
    slots = inputs.slots or 1
    need = lane_bytes(facts, shape, slots, checkpointing=checkpointing) / FILL
    share = hardware.gpu_bytes * (inputs.fraction or 1.0)
    smallest = lane_bytes(facts, shape, 1, checkpointing=True) / FILL
    part = smallest / hardware.gpu_bytes
    is_needed = inputs.workload.num_prior_images > 0
    prior = prior_worker_fraction(facts, hardware) if is_needed else 0.0
    beside = ""
    if part > 1:
        remedy = "use a lower resolution, fewer rows or a smaller base"
    elif part + prior > 1 and hardware.gpus_per_node == 1:
        beside = f"; the class images that are missing need {prior:g} of the GPU beside it"
        remedy = "quantise the base, use a lower resolution, or set prior_rows to 0"
    else:
        remedy = (
            f"give a lane at least {part:.3f} of this GPU, use fewer slots, or switch gradient "
            "checkpointing on"
        )
    return PlanError(
        f"a lane with {slots} slot(s) needs {need / GIB:.1f} GiB and its share of "
        f"{hardware.gpu_name} is {share / GIB:.1f} GiB "
        f"(base {facts.weight_bytes / GIB:.1f} GiB, context {CONTEXT_BYTES / GIB:.1f} GiB, each "
        f"slot {slot_bytes(facts, shape, checkpointing) / GIB:.1f} GiB){beside}",
        remedy,
    )
