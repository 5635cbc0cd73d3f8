"""Flow matching's Euler steps from tables equal diffusers', for every shift of the timesteps."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from farm.serving.engine.sampler import Sampler, advance_all, inputs_of
from farm.serving.engine.step_tables import table_of

COUNTS = (1, 2, 4, 28)


@dataclass(eq=False)
class FlowSteps:
    """The part of a base that starts a scheduler, as the pipelines of flow families do."""

    config: dict[str, Any]
    gives_sigmas: bool = True
    """FLUX and Z-Image pass sigmas; Stable Diffusion 3 leaves them to the scheduler."""
    device: torch.device = field(default=torch.device("cpu"))

    def start_scheduler(self, name: str, steps: int, shape: tuple[int, int, int]) -> Any:
        scheduler = FlowMatchEulerDiscreteScheduler(**self.config)
        options: dict[str, Any] = {"num_inference_steps": steps}
        if self.gives_sigmas:
            options = {"sigmas": np.linspace(1.0, 1 / steps, steps)}
        if self.config.get("use_dynamic_shifting"):
            options["mu"] = 0.5 + (shape[1] * shape[2] / 4 - 256) * 0.65 / 3840
        scheduler.set_timesteps(**options)
        return scheduler


DYNAMIC = {"use_dynamic_shifting": True}
CONFIGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "shift": {"shift": 3.0},
    "dynamic": DYNAMIC,
    "linear": {**DYNAMIC, "time_shift_type": "linear", "shift": 3.0},
    "terminal": {**DYNAMIC, "shift_terminal": 0.02},
    "karras": {"use_karras_sigmas": True, "shift": 3.0},
}


@pytest.mark.parametrize("gives_sigmas", [True, False])
@pytest.mark.parametrize("config", CONFIGS.values(), ids=list(CONFIGS))
@pytest.mark.parametrize("shape", [(16, 8, 8), (4, 64, 32)])
def test_rows_of_any_progress_step_together_as_diffusers_steps_each(
    config: dict[str, Any], gives_sigmas: bool, shape: tuple[int, int, int]
) -> None:
    base: Any = FlowSteps(config, gives_sigmas)
    # diffusers' own stretch to a terminal sigma divides by zero for a single step
    counts = [steps for steps in COUNTS if steps > 1 or "shift_terminal" not in config]
    samplers = [Sampler(base, "base", steps=steps, seed=steps, shape=shape) for steps in counts]
    assert all(sampler.table is not None for sampler in samplers)
    objects = [base.start_scheduler("base", steps, shape) for steps in counts]
    latents = [sampler.latents_1CHW.clone() for sampler in samplers]
    generator = torch.Generator().manual_seed(1)
    for step in range(max(counts)):
        running = [i for i, sampler in enumerate(samplers) if not sampler.is_done]
        inputs = inputs_of([samplers[i] for i in running])
        assert torch.equal(inputs, torch.cat([samplers[i].latents_1CHW for i in running]))
        timesteps = [samplers[i].timestep for i in running]
        assert timesteps == [float(objects[i].timesteps[step]) for i in running]
        predictions = torch.randn(len(running), *shape, generator=generator)
        assert advance_all([samplers[i] for i in running], predictions) == [None] * len(running)
        for place, i in enumerate(running):
            prediction = predictions[place : place + 1]
            clean = latents[i] - objects[i].sigmas[step] * prediction
            (latents[i],) = objects[i].step(
                prediction, objects[i].timesteps[step], latents[i], return_dict=False
            )
            found = samplers[i]
            torch.testing.assert_close(found.latents_1CHW, latents[i], rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(found.estimate(), clean, rtol=1e-4, atol=1e-4)


def test_steps_that_add_noise_are_left_to_diffusers() -> None:
    base: Any = FlowSteps({"stochastic_sampling": True})
    assert table_of(base, "base", 4, (16, 8, 8)) is None
