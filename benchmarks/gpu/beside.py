"""Samples beside training steps, against one after the other, with the same steps and images."""

from __future__ import annotations

import time
from collections.abc import Iterator
from threading import Thread

from farm.base.device.queues import Queue, mark
from farm.training.slots.trainer import SlotTrainer
from gpu.results import Result, Results
from gpu.setting import Setting
from gpu.suite import Case
from gpu.training import SlotCase, open_trainer

__all__ = ["cases"]

PROMPTS = ("a photo of sks cat", "a sks cat in space", "a sks cat in the snow", "a cat")


def cases(setting: Setting) -> list[Case]:
    return [Case("beside", _beside, 20)]


def _beside(setting: Setting, results: Results) -> Iterator[Result]:
    base = setting.base()
    for slots in setting.fast_slots[:2]:
        case = SlotCase(slots, graph=slots <= 4)
        trainer = open_trainer(case, setting, base, num_kept=1)
        try:
            for _ in range(setting.warm_up):
                trainer.step()
            _sample(trainer, setting, 0)
            setting.synchronize()
            apart_s = _apart(trainer, setting)
            beside_s = _together(trainer, setting)
        finally:
            trainer.close()
        yield {
            "slots": slots,
            "how": case.label,
            "steps": setting.steps,
            "images": len(PROMPTS[: setting.pictures]),
            "apart_s": apart_s,
            "beside_s": beside_s,
            "apart_to_beside": apart_s / beside_s,
        }


def _sample(trainer: SlotTrainer, setting: Setting, row: int) -> None:
    prompts = PROMPTS[: setting.pictures]
    trainer.sample({row: prompts}, range(len(prompts)), steps=setting.sampling_steps)


def _apart(trainer: SlotTrainer, setting: Setting) -> float:
    began = time.perf_counter()
    for _ in range(setting.steps):
        trainer.step()
    _sample(trainer, setting, 0)
    setting.synchronize()
    return time.perf_counter() - began


def _together(trainer: SlotTrainer, setting: Setting) -> float:
    device = setting.device
    began = time.perf_counter()
    with Queue(device, is_urgent=True).active(mark(device)):
        row = trainer.keep(0)
        assert row is not None
        copied, queue = mark(device), Queue(device)

        def generate() -> None:
            with queue.active(copied):
                _sample(trainer, setting, row)

        beside = Thread(target=generate)
        beside.start()
        for _ in range(setting.steps):
            trainer.step()
        beside.join()
    setting.synchronize()
    trainer.drop_kept(row)
    return time.perf_counter() - began
