"""A table of kernels for the fastest eager training case."""

from __future__ import annotations

from collections.abc import Iterator

from torch.profiler import ProfilerActivity, profile

from gpu.results import Result, Results
from gpu.setting import Setting
from gpu.suite import Case
from gpu.training import SlotCase, open_trainer

__all__ = ["cases"]

STEPS = 3


def cases(setting: Setting) -> list[Case]:
    return [Case("profile", _profile, 15)]


def _profile(setting: Setting, results: Results) -> Iterator[Result]:
    best = results.best(lambda one: one["subject_s"], kind="slots", how="eager")
    slots = best["slots"] if best is not None else setting.eager_slots[0]
    trainer = open_trainer(SlotCase(slots), setting, setting.base())
    try:
        trainer.step()
        activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * setting.on_gpu
        with profile(activities=activities) as profiler:
            for _ in range(STEPS):
                trainer.step()
            setting.synchronize()
    finally:
        trainer.close()
    found = profiler.key_averages()
    order = "self_cuda_time_total" if setting.on_gpu else "self_cpu_time_total"
    (results.folder / "profile.txt").write_text(found.table(sort_by=order, row_limit=60))
    launches = sum(one.count for one in found if one.key.startswith("cudaLaunchKernel"))
    yield {"slots": slots, "steps": STEPS, "launches_per_step": launches / STEPS}
