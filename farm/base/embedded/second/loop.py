"""The loop of one stage: steps, rates, time, checkpoints.

The number of steps is fixed before most of them run: with a time budget it is measured on the
first steps and written to `plan.json`, and a resumed or repeated training reads it there. Rates and
batches depend on the step alone, so the same plan gives the same training.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from farm.base.embedded.checkpoint import load_checkpoint, save_checkpoint
from farm.base.embedded.progress import ProgressLog
from farm.base.embedded.second.edition import Stage

__all__ = ["BudgetSpent", "Clock", "Loop", "BudgetPlan"]

WARM_STEPS, TIMED_STEPS = 5, 15
"""Steps before the measurement, in which kernels are chosen and compiled, and steps measured."""
MARGIN = 0.95
"""Share of a stage's time that its steps are planned to take."""


class BudgetSpent(Exception):
    """The time budget is spent; everything is in the checkpoint."""


@dataclass(frozen=True)
class Clock:
    """The time budget of one call."""

    started_s: float
    budget_s: float | None

    def left_s(self) -> float:
        """Seconds left; infinite without a budget."""
        if self.budget_s is None:
            return float("inf")
        return self.started_s + self.budget_s - time.monotonic()

    def part_s(self, share: float, reserved: float = 0.0) -> float:
        """The seconds of a stage: its share of the budget, at most what is left after a reserve."""
        if self.budget_s is None:
            return float("inf")
        return min(share * self.budget_s, self.left_s() - reserved * self.budget_s)


@dataclass(frozen=True)
class BudgetPlan:
    """What a time budget decided, by stage: numbers of images and steps."""

    path: Path

    def get(self, key: str) -> int | None:
        """A number that an earlier call decided."""
        if not self.path.exists():
            return None
        found: int | None = json.loads(self.path.read_text()).get(key)
        return found

    def put(self, key: str, value: int) -> int:
        """Keep a number, atomically; returns it."""
        held = json.loads(self.path.read_text()) if self.path.exists() else {}
        aside = self.path.with_suffix(".partial")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        aside.write_text(json.dumps({**held, key: value}, indent=1) + "\n")
        os.replace(aside, self.path)
        return value


@dataclass
class Loop:
    """Trains one module."""

    name: str
    module: nn.Module
    stage: Stage
    rate_at: Callable[[int, int], float]
    """The factor on the learning rate at a step of a number of steps."""
    plan: BudgetPlan
    clock: Clock
    progress: ProgressLog
    checkpoint: Path
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.01
    average_decay: float | None = None
    every_s: float = 60.0
    """Seconds between two checkpoints."""
    on_checkpoint: Callable[[int, dict[str, Tensor]], None] | None = None
    after_step: Callable[[], None] | None = None

    def run(self, loss_of: Callable[[int], Tensor], seconds: float) -> dict[str, Tensor]:
        """Train to the planned step, or resume; returns the averaged weights, or the weights.

        Raises:
            BudgetSpent: after a checkpoint, if the call's time ends first.
        """
        optimizer = torch.optim.AdamW(
            self.module.parameters(),
            lr=self.stage.learning_rate,
            betas=self.betas,
            weight_decay=self.weight_decay,
            fused=True,
        )
        average = {n: t.detach().clone() for n, t in self.module.state_dict().items()}
        step = first = load_checkpoint(self.checkpoint, self.module, optimizer, average)
        num_steps = self.plan.get(f"{self.name}_steps") or self._unmeasured(seconds)
        began = saved = time.monotonic()
        while num_steps is None or step < num_steps:
            self._step(loss_of, step, num_steps or self.stage.num_steps, optimizer, average)
            step += 1
            if num_steps is None and step - first == WARM_STEPS:
                self._synchronize()
                timed = time.monotonic()
            if num_steps is None and step - first == WARM_STEPS + TIMED_STEPS:
                self._synchronize()
                num_steps = self._measured(step, (time.monotonic() - timed) / TIMED_STEPS,
                                           seconds - (time.monotonic() - began))  # fmt: skip
            now = time.monotonic()
            if now - saved > self.every_s or step == num_steps or self.clock.left_s() <= 0:
                saved = now
                self._save(step, optimizer, average, (now - began) / (step - first))
                if self.clock.left_s() <= 0 and step != num_steps:
                    raise BudgetSpent
        return average if self.average_decay else dict(self.module.state_dict())

    def _unmeasured(self, seconds: float) -> int | None:
        """The stage's own number of steps if there is no budget, else None: to be measured."""
        if seconds == float("inf"):
            return self.plan.put(f"{self.name}_steps", self.stage.num_steps)
        return None

    def _measured(self, step: int, step_s: float, left_s: float) -> int:
        fitting = step + int(MARGIN * max(0.0, left_s) / max(step_s, 1e-6))
        return self.plan.put(f"{self.name}_steps", min(self.stage.num_steps, fitting))

    def _synchronize(self) -> None:
        if next(self.module.parameters()).is_cuda:
            torch.cuda.synchronize()

    def _step(
        self,
        loss_of: Callable[[int], Tensor],
        step: int,
        num_steps: int,
        optimizer: torch.optim.Optimizer,
        average: dict[str, Tensor],
    ) -> None:
        for group in optimizer.param_groups:
            group["lr"] = self.stage.learning_rate * self.rate_at(step, num_steps)
        loss = loss_of(step)
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(self.module.parameters(), 1.0)
        optimizer.step()
        if self.after_step is not None:
            self.after_step()
        if self.average_decay is not None:
            decay = min(self.average_decay, (step + 1) / (step + 10))
            with torch.no_grad():
                state = self.module.state_dict()
                torch._foreach_lerp_(
                    list(average.values()), [state[name] for name in average], 1 - decay
                )
        if step % 100 == 0:
            self.progress.log(self.name, step, loss=loss.item())

    def _save(
        self,
        step: int,
        optimizer: torch.optim.Optimizer,
        average: dict[str, Tensor],
        step_s: float,
    ) -> None:
        kept = average if self.average_decay else None
        save_checkpoint(self.checkpoint, step, self.module, optimizer, kept)
        rows_s = self.stage.batch_size / step_s
        self.progress.log(f"{self.name}_speed", step, step_s=step_s, images_per_s=rows_s)
        if self.on_checkpoint is not None:
            self.on_checkpoint(step, average if kept else dict(self.module.state_dict()))
