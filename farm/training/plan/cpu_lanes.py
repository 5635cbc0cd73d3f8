"""Lanes on CPUs: how many processes share the cores, and how fast they are.

Owns the choice of lanes, slots, threads and prior workers on nodes without a GPU.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from farm.training.plan.costs import (
    CONTEXT_BYTES,
    CPU_FLOPS,
    SMALL_BASE_THREADS,
    TRAINING_FACTOR,
    cpu_rows_per_s,
    lane_bytes,
    row_flops,
)
from farm.training.plan.estimate import PlannedSpeed, estimate_run
from farm.training.plan.plan import Plan, PlanInputs

__all__ = ["cpu_plan"]

CPU_SLOTS = 24
"""Slots beyond which rows per CPU second no longer grow (benchmarks/slots-*cpu-*.md)."""
CPU_LANE_JOBS = 3
"""Fewest subjects for which another process on the same cores is worth its start-up: two lanes of 3
slots train 120 rows per second, one lane of 6 slots 75 on its core."""
PRIOR_WORKER_IMAGES = 64
"""Fewest class images for which another process on the same cores is worth its start-up."""
SMALL_BASE_BYTES = 2**28
"""Passes of a base up to this size do not keep several cores busy; passes of larger bases do."""


@dataclass(frozen=True)
class _Processes:
    """The processes of one node."""

    lanes: int
    slots: int
    prior_workers: int


def cpu_plan(inputs: PlanInputs) -> Plan:
    """One single-threaded lane per core for a small base, whose passes gain little from threads;
    otherwise one lane with all cores.

    Measured with the embedded base on 2 cores: two lanes with 8 slots and one thread each train
    1.3 times the rows of one lane with 8 slots and two threads. The gain is larger if the lane does
    other work too, because each wait of one thread for another then costs a wake-up. If other
    processes use the same cores, two threads of one lane take six times the CPU seconds of one.
    """
    facts, shape = inputs.facts, inputs.shape
    checkpointing = bool(inputs.checkpointing)
    is_small = facts.weight_bytes <= SMALL_BASE_BYTES
    processes = _processes(inputs, is_small)
    cpus = inputs.cpus_per_lane(processes.lanes)
    speed = _small_base_speed(inputs, processes) if is_small else _large_base_speed(inputs)
    expected = estimate_run(inputs.workload, speed)
    used = lane_bytes(facts, shape, processes.slots, checkpointing=checkpointing)
    return Plan(
        device="cpu",
        num_nodes=inputs.hardware.num_nodes,
        lanes_per_node=processes.lanes,
        gpu_fraction=0.0,
        cpus_per_lane=min(cpus, 1.0) if is_small else cpus,
        slots=processes.slots,
        checkpointing=checkpointing,
        lane_bytes=used - CONTEXT_BYTES,
        share_bytes=0,
        rows_per_s=speed.rows_per_s,
        hours=expected.total_s / 3600,
        gpu_hours=0.0,
        dollars=0.0,
        prior_fraction=0.0,
        estimate=expected,
        threads=1 if is_small else math.ceil(cpus),
        prior_workers_per_node=processes.prior_workers,
        reason=f"no GPU: {_reason(processes)}",
    )


def _reason(processes: _Processes) -> str:
    if processes.lanes > 1:
        return "a small base gains more from a lane on each core than from threads"
    if processes.slots == 1:
        return "a single subject trains in one lane with one slot"
    return "few subjects are trained fastest together, in the slots of one lane"


def _processes(inputs: PlanInputs, is_small: bool) -> _Processes:
    workload, hardware = inputs.workload, inputs.hardware
    cores = max(1, int(hardware.cpus_per_node))
    jobs_per_node = workload.num_jobs // hardware.num_nodes
    images_per_node = workload.num_prior_images // hardware.num_nodes
    lanes, prior_workers = 1, 1
    if is_small:
        lanes = max(1, min(cores, jobs_per_node // CPU_LANE_JOBS))
        prior_workers = min(cores, max(1, images_per_node // PRIOR_WORKER_IMAGES))
    lanes = inputs.lanes or lanes
    slots = inputs.slots or max(1, min(CPU_SLOTS, inputs.slots_to_fill(lanes)))
    return _Processes(lanes, slots, prior_workers)


def _large_base_speed(inputs: PlanInputs) -> PlannedSpeed:
    """Each lane keeps all cores of its node busy."""
    nodes, flops = inputs.hardware.num_nodes, inputs.hardware.peak_flops
    work = row_flops(inputs.facts, inputs.shape, bool(inputs.checkpointing))
    forward = row_flops(inputs.facts, inputs.shape, False) / TRAINING_FACTOR
    return PlannedSpeed(
        rows_per_s=nodes * flops / work,
        forward_s=forward / flops,
        lanes=nodes,
        prior_workers=nodes,
        cores=max(1.0, inputs.hardware.cpus_per_node) * nodes,
        weight_bytes=inputs.facts.weight_bytes,
        uses_ray=inputs.workload.uses_ray,
    )


def _small_base_speed(inputs: PlanInputs, processes: _Processes) -> PlannedSpeed:
    """Each process keeps one core busy."""
    nodes, cores = inputs.hardware.num_nodes, max(1.0, inputs.hardware.cpus_per_node)
    uses_ray = inputs.workload.uses_ray
    work = row_flops(inputs.facts, inputs.shape, bool(inputs.checkpointing))
    forward = row_flops(inputs.facts, inputs.shape, False) / TRAINING_FACTOR
    busy = min(processes.lanes, cores)
    # a run in one process uses the threads of all cores
    gain = SMALL_BASE_THREADS if cores > 1 and not uses_ray else 1.0
    lane_rate = cpu_rows_per_s(work, processes.slots * inputs.shape.rows, CPU_FLOPS) * gain
    return PlannedSpeed(
        rows_per_s=lane_rate * busy * nodes,
        forward_s=forward / (CPU_FLOPS * gain),
        lanes=math.ceil(busy) * nodes,
        prior_workers=(processes.prior_workers if uses_ray else 1) * nodes,
        cores=cores * nodes,
        weight_bytes=inputs.facts.weight_bytes,
        uses_ray=uses_ray,
    )
