"""The planner: how to split the hardware into lanes and slots, how long a run takes, what it costs.

Owns the choice among the candidates. The memory and speed models are in ``costs`` and ``estimate``.
Measures nothing and starts nothing. The yardstick is a lane on 1/8 of a GPU (the article's run); a
larger share is chosen only if the model expects it to be clearly faster.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from farm.base.memory import MemoryFacts
from farm.training.plan.costs import lane_bytes
from farm.training.plan.cpu_lanes import cpu_plan
from farm.training.plan.gpu_lanes import YARDSTICK, gpu_candidates
from farm.training.plan.hardware import Hardware
from farm.training.plan.plan import GIB, Plan, PlanInputs
from farm.training.plan.shape import Workload

__all__ = ["make_plan"]

CLEARLY_FASTER = 1.10
"""How much faster than the yardstick a larger share must be to be chosen."""


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
        slots, fraction, lanes, checkpointing: fixed by the user; None lets the planner choose.
            ``lanes`` counts those of one node.

    Raises:
        PlanError: if nothing fits, or the user's choices do not; with the numbers.
    """
    inputs = PlanInputs(facts, workload, hardware, slots, fraction, lanes, checkpointing)
    if not hardware.has_gpu:
        return cpu_plan(inputs)
    return _choose(gpu_candidates(inputs), inputs)


def _choose(candidates: Sequence[Plan], inputs: PlanInputs) -> Plan:
    """The yardstick if it is nearly as fast as the best one, else the best one."""
    fastest = max(candidates, key=lambda plan: (plan.rows_per_s, -plan.gpu_fraction))
    usual = [plan for plan in candidates if plan.gpu_fraction == YARDSTICK]
    chosen, reason = fastest, "as requested"
    if usual:
        yardstick = max(usual, key=lambda plan: plan.rows_per_s)
        gain = fastest.rows_per_s / yardstick.rows_per_s
        if gain < CLEARLY_FASTER:
            chosen = yardstick
            reason = "1/8 of a GPU per lane, the yardstick; no other split is 10 % faster"
        else:
            reason = (
                f"{chosen.gpu_fraction:g} GPU per lane is expected to be {gain:.1f}× as fast as "
                f"1/8: {chosen.slots} slots share one copy of the base and longer passes"
            )
    elif len(candidates) > 1:
        need = lane_bytes(inputs.facts, inputs.shape, 1, checkpointing=True) / GIB
        reason = f"1/8 of the GPU cannot hold the base and one slot ({need:.1f} GiB)"
    notes = [*_checkpoint_notes(candidates, chosen), *_sharing_notes(inputs.hardware, chosen)]
    return replace(chosen, reason=reason, notes=tuple(notes))


def _sharing_notes(hardware: Hardware, chosen: Plan) -> list[str]:
    """What to know where several lanes share a GPU."""
    if chosen.lanes_per_node <= hardware.gpus_per_node:
        return []
    if hardware.uses_mps:
        return ["NVIDIA MPS runs: lanes on one GPU overlap; the hours do not count this gain"]
    known = "does not run" if hardware.uses_mps is False else "was not looked for"
    return [f"lanes on one GPU take turns: NVIDIA MPS {known}; with it, their kernels overlap"]


def _checkpoint_notes(candidates: Sequence[Plan], chosen: Plan) -> list[str]:
    """Whether gradient checkpointing pays on the chosen share; nothing where it changes nothing."""
    others = [
        plan
        for plan in candidates
        if plan.gpu_fraction == chosen.gpu_fraction and plan.checkpointing != chosen.checkpointing
    ]
    if not others:
        return [f"gradient checkpointing: {'needed' if chosen.checkpointing else 'not considered'}"]
    verdict = "pays" if chosen.checkpointing else "does not pay"
    own, rate = f"{chosen.rows_per_s:.3g}", f"{max(plan.rows_per_s for plan in others):.3g}"
    if (chosen.slots, own) == (others[0].slots, rate):
        return []
    slots = f"{chosen.slots} slot{'' if chosen.slots == 1 else 's'}"
    against = f"{others[0].slots} at {rate}"
    return [f"gradient checkpointing {verdict}: {slots} at {own} rows/s against {against}"]
