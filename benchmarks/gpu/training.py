"""Training: step time, share of peak and memory for S slots, against the plain loop.

Owns the slot cases. All of them share one process and one base. Every case also gives the memory
that the planner expects, and its ratio to the plain diffusers and peft loop of the same run.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

from plain_loop import PlainLoop, synthetic_job, timed_steps

from farm.adapters.bank.grouped import Kernel
from farm.base.interface import Base
from farm.training.plan.costs import CONTEXT_BYTES, lane_bytes, row_flops
from farm.training.plan.shape import common_shape
from farm.training.slots.speed import Speed
from farm.training.slots.trainer import SlotTrainer
from gpu.results import Result, Results
from gpu.setting import Setting
from gpu.suite import Case

__all__ = ["SlotCase", "cases", "measured", "open_trainer", "slot_results"]

SUBJECT_STEPS, ROWS = 800, 2


@dataclass(frozen=True)
class SlotCase:
    """One configuration of the trainer."""

    slots: int
    compile: bool | str = False
    graph: bool = False
    checkpointing: bool = False
    channels_last: bool | None = None
    kernel: Kernel = "products"

    @property
    def label(self) -> str:
        """Its options in words."""
        words = ["compiled"] * bool(self.compile) + ["captured"] * self.graph
        words += ["checkpointing"] * self.checkpointing + [self.kernel] * (
            self.kernel != "products"
        )
        if self.channels_last is not None:
            words.append("channels-last" if self.channels_last else "channels-first")
        return " ".join(words) or "eager"


def cases(setting: Setting) -> list[Case]:
    first, *others = setting.eager_slots
    eager = [SlotCase(slots) for slots in others]
    fast = [SlotCase(1, graph=True), SlotCase(4, graph=True)]
    fast += [
        SlotCase(slots, compile=setting.compile, graph=slots <= 4) for slots in setting.fast_slots
    ]
    options = [
        SlotCase(first, channels_last=False),
        SlotCase(first, kernel="triton"),
        SlotCase(first, checkpointing=True),
    ]
    return [
        Case("slots", partial(_slots, [SlotCase(first)]), 15),
        Case("plain loop", _plain, 15),
        Case("slots", partial(_slots, eager), 40),
        *(Case("slots", partial(_slots, [one]), 60 if one.compile else 10) for one in fast),
        *(Case("slots", partial(_slots, [one]), 15) for one in options),
    ]


def _plain(setting: Setting, results: Results) -> Iterator[Result]:
    base = setting.base()
    found: dict[str, float] = {}
    with setting.peak_memory(found):
        loop = PlainLoop(base, synthetic_job(base, 0, rank=setting.rank))
        try:
            timed_steps(loop.step, setting.warm_up, base.device)
            wall_s, _ = timed_steps(loop.step, setting.steps, base.device)
        finally:
            loop.unet.unload_lora()
    yield {
        "base": base.name,
        "slots": 1,
        **_derived(setting, base, 1, wall_s / setting.steps),
        **found,
    }


def _slots(chosen: list[SlotCase], setting: Setting, results: Results) -> Iterator[Result]:
    yield from slot_results(chosen, setting, results, setting.base())


def slot_results(
    chosen: list[SlotCase], setting: Setting, results: Results, base: Base
) -> Iterator[Result]:
    """Measure slot cases on a base; out of memory is a result of its own."""
    import torch

    for case in chosen:
        try:
            found = measured(case, setting, base)
        except torch.OutOfMemoryError:
            found = {"base": base.name, "slots": case.slots, "how": case.label, "failed": "memory"}
        setting.free()
        plain = results.best(lambda one: one["step_ms"], kind="plain loop", base=base.name)
        if plain is not None and "failed" not in found:
            found["times_plain"] = found["rows_per_s"] / plain["rows_per_s"]
        yield found


def open_trainer(case: SlotCase, setting: Setting, base: Base, *, num_kept: int = 0) -> SlotTrainer:
    """A trainer with all slots in use."""
    jobs = [synthetic_job(base, number, rank=setting.rank) for number in range(case.slots)]
    trainer = SlotTrainer(
        base,
        common_shape([job.recipe for job in jobs], base.resolution_px),
        num_slots=case.slots,
        checkpointing=case.checkpointing,
        speed=Speed(case.compile, case.graph, case.channels_last, case.kernel),
        num_kept=num_kept,
    )
    for job in jobs:
        trainer.admit(job)
    return trainer


def measured(case: SlotCase, setting: Setting, base: Base) -> Result:
    """One case: step time after warm-up, and the peak of memory."""
    found: dict[str, float] = {}
    with setting.peak_memory(found):
        trainer = open_trainer(case, setting, base)
        try:
            warm_s, _ = timed_steps(trainer.step, setting.warm_up, base.device)
            wall_s, _ = timed_steps(trainer.step, setting.steps, base.device)
            how = trainer.speed_report
        finally:
            trainer.close()
    result = {"base": base.name, "slots": case.slots, "how": case.label}
    result |= _derived(setting, base, case.slots, wall_s / setting.steps)
    facts, shape = base.memory, trainer.shape
    planned = lane_bytes(facts, shape, case.slots, checkpointing=case.checkpointing)
    found["planned_gib"] = (planned - CONTEXT_BYTES) / 2**30
    if "peak_gib" in found:
        found["planned_to_peak"] = found["planned_gib"] / found["peak_gib"]
    return {**result, "warm_up_s": warm_s, **found, "ran": how}


def _derived(setting: Setting, base: Base, slots: int, step_s: float) -> Result:
    job = synthetic_job(base, 0, rank=setting.rank)
    shape = common_shape([job.recipe], base.resolution_px)
    flops = row_flops(base.memory, shape, False) * slots * ROWS
    peak = setting.peak_tflops
    return {
        "step_ms": 1e3 * step_s,
        "rows_per_s": slots * ROWS / step_s,
        "subject_s": step_s * SUBJECT_STEPS / slots,
        "share_of_peak": flops / step_s / (peak * 1e12) if peak else None,
    }
