"""The plan: how to cut the hardware into lanes and slots, how long it takes and what it costs.

Owns the memory model and the speed model, both pure functions of plain numbers with their sources
beside the constants. Measures nothing and starts nothing. The yardstick is a lane on 1/8 of a GPU
(the article's run); a larger share is chosen only where the model says that it is clearly faster.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from farm.base.interface import MemoryFacts
from farm.errors import PlanError
from farm.training.plan.costs import (
    CHECKPOINT_FACTOR,
    CONTEXT_BYTES,
    CPU_FLOPS,
    FILL,
    PEAK_SHARE,
    SHARING_LOSS,
    SMALL_BASE_THREADS,
    TRAINING_FACTOR,
    cpu_rows_per_s,
    fixed_bytes,
    lane_bytes,
    row_flops,
    rows_per_s,
    slot_bytes,
)
from farm.training.plan.estimate import Estimate, Speed, estimate
from farm.training.plan.shape import LaneShape, Workload

__all__ = ["GPUS", "Hardware", "Plan", "make_plan", "memory_of"]

GIB = 2**30

CLEARLY_FASTER = 1.10
"""How much faster a larger share must be before the yardstick of 1/8 is left."""
YARDSTICK = 0.125
FRACTIONS = (0.125, 0.25, 0.5, 1.0)
"""Binary-exact shares: others round badly in Ray's arithmetic."""
MAX_SLOTS = 64
"""More slots than this gain nothing: the pass is long saturated, and first results come late."""
CPU_SLOTS = 24
"""Where rows a CPU second stop growing (benchmarks/slots-*cpu-*.md)."""
CPU_LANE_JOBS = 3
"""Fewest subjects for which a further process on the same cores pays its start: two lanes of 3
slots train 120 rows a second, one of 6 slots 75 on its core."""
DRAWER_IMAGES = 64
"""Class images for which a further process on the same cores pays its start."""
SMALL_BASE_BYTES = 2**28
"""Passes of a base up to this size do not keep several cores busy; those of larger ones do."""
DRAWING_BYTES = 3 * 2**29
"""What drawing class images takes beside the base: a few guided rows at 512 px without gradients,
and the VAE's 0.4 GiB. A drawer that has more room draws more of them at once."""

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
    """What the lanes run on. All nodes are alike; the head that only drives is not counted."""

    gpu_name: str | None
    """None plans for CPUs."""
    gpu_bytes: int
    gpus_per_node: int
    cpus_per_node: float
    num_nodes: int = 1
    dollars_per_gpu_hour: float | None = None
    """None takes a rough market price by the GPU's name."""
    nodes_are_a_limit: bool = False
    """Whether ``num_nodes`` is what the cluster could have; the plan takes what the work fills."""

    @property
    def has_gpu(self) -> bool:
        """Whether lanes get GPUs."""
        return self.gpu_name is not None and self.gpus_per_node > 0

    @property
    def peak_flops(self) -> float:
        """Dense half-precision FLOP/s of one GPU; of all cores of a node without one."""
        return self._facts()[0] * 1e12 if self.has_gpu else CPU_FLOPS * self.cpus_per_node

    @property
    def hourly_dollars(self) -> float:
        """Of one GPU; 0 without one."""
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


@dataclass(frozen=True)
class Plan:
    """How a run uses its hardware. Printed before anything is spent."""

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
    """What a full lane is expected to take."""
    share_bytes: int
    """What it may take: its share of the GPU; 0 on CPUs, where nothing is capped."""
    rows_per_s: float
    """Of all lanes together, once they are full."""
    hours: float
    """Expected wall time, drawing of missing priors included."""
    gpu_hours: float
    dollars: float
    prior_fraction: float
    """Share of a GPU on each node that draws missing priors beside the lanes; 0 if none are."""
    estimate: Estimate
    """Where the hours go."""
    reason: str
    """Why this cut and not another."""
    threads: int = 1
    """Of a lane on CPUs, and of a drawer of class images."""
    drawers_per_node: int = 1
    """Processes on a node that generate missing class images on CPUs."""
    notes: tuple[str, ...] = field(default=())

    @property
    def num_lanes(self) -> int:
        """Lanes of all nodes."""
        return self.num_nodes * self.lanes_per_node

    @property
    def memory_fraction(self) -> float | None:
        """What a lane passes to ``torch.cuda.set_per_process_memory_fraction``: its share less
        the CUDA context, which PyTorch's allocator does not see. None on CPUs."""
        return self._allocatable(self.gpu_fraction)

    @property
    def drawer_memory_fraction(self) -> float | None:
        """The same for a drawer of class images; None where none draws on a GPU."""
        return self._allocatable(self.prior_fraction)

    def _allocatable(self, fraction: float) -> float | None:
        if self.device != "cuda" or not fraction:
            return None
        whole = self.share_bytes / self.gpu_fraction
        return fraction - CONTEXT_BYTES / whole


def make_plan(
    facts: MemoryFacts,
    workload: Workload,
    hardware: Hardware,
    *,
    slots: int | None = None,
    fraction: float | None = None,
    lanes: int | None = None,
    checkpointing: bool | None = None,
) -> Plan:
    """Choose lanes and slots.

    Args:
        slots, fraction, lanes, checkpointing: fixed by the user; None lets the plan choose.
            ``lanes`` counts those of one node.

    Raises:
        PlanError: if nothing fits, or what the user fixed does not; with the numbers.
    """
    shape = replace(workload.shape, max_rank=workload.max_rank)
    if not hardware.has_gpu:
        return _cpu_plan(facts, workload, hardware, slots, lanes, bool(checkpointing))
    candidates = [
        candidate
        for share in _shares(fraction)
        for checked in ((checkpointing,) if checkpointing is not None else (False, True))
        if (candidate := _candidate(facts, shape, workload, hardware, share, checked, slots, lanes))
    ]
    if not candidates:
        cuts = [_cut(facts, workload, hardware, share, lanes) for share in _shares(fraction)]
        if not any(cuts):
            raise _no_room_for_prior_worker(facts, hardware, fraction, lanes)
        raise _impossible(facts, shape, hardware, slots, fraction, checkpointing)
    return _choose(candidates, facts, shape)


def _shares(fraction: float | None) -> tuple[float, ...]:
    return (fraction,) if fraction else FRACTIONS


def _candidate(
    facts: MemoryFacts,
    shape: LaneShape,
    workload: Workload,
    hardware: Hardware,
    fraction: float,
    checkpointing: bool,
    slots: int | None,
    lanes: int | None,
) -> Plan | None:
    """The plan of one cut; None if it does not fit."""
    cut = _cut(facts, workload, hardware, fraction, lanes)
    if cut is None:
        return None
    fraction, drawer, places = cut
    share = int(hardware.gpu_bytes * fraction)
    room = int(share * FILL) - fixed_bytes(facts)
    most = room // slot_bytes(facts, shape, checkpointing)
    if most < max(slots or 1, 1):
        return None
    per_gpu = int(1 / fraction)
    lanes_per_node = min(places, workload.num_jobs)
    wanted = math.ceil(workload.num_jobs / (lanes_per_node * hardware.num_nodes))
    chosen = slots or max(1, min(most, MAX_SLOTS, wanted))
    work = row_flops(facts, shape, checkpointing)
    on_one_gpu = min(per_gpu, math.ceil(lanes_per_node / hardware.gpus_per_node))
    rate = rows_per_s(work, chosen * shape.rows, hardware.peak_flops)
    rate *= 1 - SHARING_LOSS if on_one_gpu > 1 else 1.0
    busy_gpus = math.ceil(lanes_per_node / on_one_gpu) * hardware.num_nodes
    rate *= busy_gpus
    forward = work / TRAINING_FACTOR / (CHECKPOINT_FACTOR if checkpointing else 1.0)
    expected = estimate(
        workload,
        Speed(
            rows_per_s=rate,
            forward_s=forward / (hardware.peak_flops * PEAK_SHARE),
            lanes=busy_gpus,
            drawers=busy_gpus,
            cores=hardware.cpus_per_node * hardware.num_nodes,
            weight_bytes=facts.weight_bytes,
            uses_ray=workload.uses_ray,
        ),
    )
    hours = expected.total_s / 3600
    gpu_hours = hours * busy_gpus
    return Plan(
        device="cuda",
        num_nodes=hardware.num_nodes,
        lanes_per_node=lanes_per_node,
        gpu_fraction=fraction,
        cpus_per_lane=_cpus_per_lane(hardware, lanes_per_node),
        slots=chosen,
        checkpointing=checkpointing,
        lane_bytes=lane_bytes(facts, shape, chosen, checkpointing=checkpointing),
        share_bytes=share,
        rows_per_s=rate,
        hours=hours,
        gpu_hours=gpu_hours,
        dollars=gpu_hours * hardware.hourly_dollars,
        prior_fraction=drawer,
        estimate=expected,
        reason="",
    )


def _cut(
    facts: MemoryFacts,
    workload: Workload,
    hardware: Hardware,
    fraction: float,
    lanes: int | None,
) -> tuple[float, float, int] | None:
    """Share of a GPU for a lane and for the drawer, and lanes of a node; None without room.

    While prior sets are missing, one drawer per node needs a place beside the lanes: whole-GPU
    lanes leave it a part of theirs, smaller ones leave it lanes' places.
    """
    drawer = prior_worker_fraction(facts, hardware) if workload.num_prior_images else 0.0
    places = lanes or int(1 / fraction) * hardware.gpus_per_node
    if drawer and fraction == 1.0:
        fraction -= drawer
    elif lanes is None:
        while places > 1 and _largest_rest(places, fraction, hardware) < drawer:
            places -= 1
    has_room = _largest_rest(places, fraction, hardware) >= drawer
    return (fraction, drawer, places) if has_room else None


def prior_worker_fraction(facts: MemoryFacts, hardware: Hardware) -> float:
    """Share of one GPU that a drawer of class images needs; an eighth at the least."""
    need = CONTEXT_BYTES + facts.weight_bytes + DRAWING_BYTES
    fitting = [share for share in FRACTIONS[:-1] if need <= share * hardware.gpu_bytes]
    return fitting[0] if fitting else FRACTIONS[-2]


def _largest_rest(lanes: int, fraction: float, hardware: Hardware) -> float:
    """The largest share of a GPU that so many lanes, packed tightly, leave free on a node."""
    per_gpu = int(1 / fraction)
    full, rest = divmod(lanes, per_gpu)
    if full + (rest > 0) < hardware.gpus_per_node:
        return 1.0
    return 1 - (rest or per_gpu) * fraction


def _cpus_per_lane(hardware: Hardware, lanes: int) -> float:
    """Cores of one lane, leaving a quarter of the node (at most one core) to everything else."""
    spare = min(1.0, hardware.cpus_per_node / 4)
    exact = min((hardware.cpus_per_node - spare) / lanes, 1.0 if hardware.has_gpu else math.inf)
    return max(0.125, math.floor(exact * 8) / 8)


def _choose(candidates: Sequence[Plan], facts: MemoryFacts, shape: LaneShape) -> Plan:
    """The yardstick where it is nearly as fast as the best cut, else the best one, and why."""
    fastest = max(candidates, key=lambda plan: (plan.rows_per_s, -plan.gpu_fraction))
    usual = [plan for plan in candidates if plan.gpu_fraction == YARDSTICK]
    chosen, reason = fastest, "as asked"
    if usual:
        yardstick = max(usual, key=lambda plan: plan.rows_per_s)
        gain = fastest.rows_per_s / yardstick.rows_per_s
        if gain < CLEARLY_FASTER:
            chosen = yardstick
            reason = "1/8 of a GPU per lane, the yardstick; no other cut is 10 % faster"
        else:
            reason = (
                f"{chosen.gpu_fraction:g} GPU per lane is expected to be {gain:.1f}× as fast as "
                f"1/8: {chosen.slots} slots share one copy of the base and longer passes"
            )
    elif len(candidates) > 1:
        need = lane_bytes(facts, shape, 1, checkpointing=True) / GIB
        reason = f"1/8 of the GPU cannot hold the base and one slot ({need:.1f} GiB)"
    return replace(chosen, reason=reason, notes=(_checkpoint_note(candidates, chosen),))


def _checkpoint_note(candidates: Sequence[Plan], chosen: Plan) -> str:
    """Whether gradient checkpointing pays on the chosen share."""
    other = [
        plan
        for plan in candidates
        if plan.gpu_fraction == chosen.gpu_fraction and plan.checkpointing != chosen.checkpointing
    ]
    word = "pays" if chosen.checkpointing else "does not pay"
    if not other:
        return f"gradient checkpointing: {'needed' if chosen.checkpointing else 'not considered'}"
    rate = max(plan.rows_per_s for plan in other)
    return (
        f"gradient checkpointing {word}: {chosen.slots} slots at {chosen.rows_per_s:.3g} rows/s "
        f"against {other[0].slots} at {rate:.3g}"
    )


def _cpu_plan(
    facts: MemoryFacts,
    workload: Workload,
    hardware: Hardware,
    slots: int | None,
    lanes: int | None,
    checkpointing: bool,
) -> Plan:
    """A lane of one thread per core for a small base, whose passes gain little from threads; else
    one lane with all cores.

    Measured with the embedded base on 2 cores: two lanes with 8 slots and a thread each train 1.3
    times the rows of one lane with 8 slots and two threads, and more where the lane does anything
    besides, since each wait of one thread for another then costs a wake-up. Beside other work on
    the same cores, two threads of one lane take six times the CPU seconds of one.
    """
    is_small = facts.weight_bytes <= SMALL_BASE_BYTES
    cores = max(1, int(hardware.cpus_per_node))
    jobs_per_node = workload.num_jobs // hardware.num_nodes
    most = min(cores, jobs_per_node // CPU_LANE_JOBS) if is_small else 1
    lanes_per_node = lanes or max(1, most)
    wanted = math.ceil(workload.num_jobs / (lanes_per_node * hardware.num_nodes))
    chosen = slots or max(1, min(CPU_SLOTS, wanted))
    cpus = _cpus_per_lane(hardware, lanes_per_node)
    images_per_node = workload.num_prior_images // hardware.num_nodes
    drawers = min(cores, max(1, images_per_node // DRAWER_IMAGES)) if is_small else 1
    speed = _cpu_speed(
        facts, workload, hardware, checkpointing,
        lanes=lanes_per_node, slots=chosen, drawers=drawers, is_small=is_small,
    )  # fmt: skip
    expected = estimate(workload, speed)
    shape = replace(workload.shape, max_rank=workload.max_rank)
    return Plan(
        device="cpu",
        num_nodes=hardware.num_nodes,
        lanes_per_node=lanes_per_node,
        gpu_fraction=0.0,
        cpus_per_lane=min(cpus, 1.0) if is_small else cpus,
        slots=chosen,
        checkpointing=checkpointing,
        lane_bytes=lane_bytes(facts, shape, chosen, checkpointing=checkpointing) - CONTEXT_BYTES,
        share_bytes=0,
        rows_per_s=speed.rows_per_s,
        hours=expected.total_s / 3600,
        gpu_hours=0.0,
        dollars=0.0,
        prior_fraction=0.0,
        estimate=expected,
        threads=1 if is_small else math.ceil(cpus),
        drawers_per_node=drawers,
        reason="no GPU: "
        + (
            "a small base gains more from a lane on each core than from threads"
            if lanes_per_node > 1
            else "one lane with many slots keeps all cores busy"
        ),
    )


def _cpu_speed(
    facts: MemoryFacts,
    workload: Workload,
    hardware: Hardware,
    checkpointing: bool,
    *,
    lanes: int,
    slots: int,
    drawers: int,
    is_small: bool,
) -> Speed:
    """How fast lanes and drawers on CPUs are; large bases keep all cores of a node busy."""
    work = row_flops(facts, workload.shape, checkpointing)
    forward = row_flops(facts, workload.shape, False) / TRAINING_FACTOR
    nodes, cores = hardware.num_nodes, max(1.0, hardware.cpus_per_node)
    if not is_small:
        flops = hardware.peak_flops
        return Speed(
            rows_per_s=nodes * flops / work, forward_s=forward / flops, lanes=nodes, drawers=nodes,
            cores=cores * nodes, weight_bytes=facts.weight_bytes, uses_ray=workload.uses_ray,
        )  # fmt: skip
    busy = min(lanes, cores)
    # in one process, every pass has the threads of all cores
    gain = SMALL_BASE_THREADS if cores > 1 and not workload.uses_ray else 1.0
    each = cpu_rows_per_s(work, slots * workload.shape.rows, CPU_FLOPS) * gain
    return Speed(
        rows_per_s=each * busy * nodes,
        forward_s=forward / (CPU_FLOPS * gain),
        lanes=math.ceil(busy) * nodes,
        drawers=(drawers if workload.uses_ray else 1) * nodes,
        cores=cores * nodes,
        weight_bytes=facts.weight_bytes,
        uses_ray=workload.uses_ray,
    )


def _no_room_for_prior_worker(
    facts: MemoryFacts, hardware: Hardware, fraction: float | None, lanes: int | None
) -> PlanError:
    drawer = prior_worker_fraction(facts, hardware)
    asked = f"{lanes} lane(s)" if lanes else "a lane"
    asked += f" of {fraction:g} GPU" if fraction else ""
    return PlanError(
        f"{asked} on a node with {hardware.gpus_per_node} GPU(s) leave no {drawer:g} of a GPU free "
        "for drawing the class images that are missing",
        f"ask for fewer lanes, or for at most {1 - drawer:g} of a GPU",
    )


def _impossible(
    facts: MemoryFacts,
    shape: LaneShape,
    hardware: Hardware,
    slots: int | None,
    fraction: float | None,
    checkpointing: bool | None,
) -> PlanError:
    checked = True if checkpointing is None else checkpointing
    need = lane_bytes(facts, shape, slots or 1, checkpointing=checked) / FILL
    share = hardware.gpu_bytes * (fraction or 1.0)
    smallest = lane_bytes(facts, shape, 1, checkpointing=True) / FILL
    remedy = (
        "a smaller resolution, fewer rows or a smaller base is needed"
        if smallest > hardware.gpu_bytes
        else f"give a lane at least {smallest / hardware.gpu_bytes:.3f} of this GPU, fewer slots, "
        "or switch gradient checkpointing on"
    )
    return PlanError(
        f"a lane with {slots or 1} slot(s) needs {need / GIB:.1f} GiB and its share of "
        f"{hardware.gpu_name} is {share / GIB:.1f} GiB "
        f"(base {facts.weight_bytes / GIB:.1f} GiB, context {CONTEXT_BYTES / GIB:.1f} GiB, each "
        f"slot {slot_bytes(facts, shape, checked) / GIB:.1f} GiB)",
        remedy,
    )
