"""Denoising of one image: its own scheduler object, timesteps and random stream.

Owns the per-image state of denoising. Each row of a pass has its own sampler, so rows may differ
in scheduler, step count and progress.

The scheduler objects are diffusers' own, with their tables on the CPU. Images whose steps are in
a table (``step_tables``) advance together, in a few operations for the whole pass. The others step
alone: Euler a copies new noise from the CPU at each step, and UniPC its tables; on a GPU both wait
for the copy.

Legend: C latent channels, H W latent; the leading 1 is the one row.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from farm.base.device.transfer import sent
from farm.base.generate import initial_noise
from farm.base.interface import Base
from farm.base.stepping import clean_estimate, initial_scale, model_input, takes_generator
from farm.keys import derive_seed
from farm.schedulers import SchedulerName
from farm.serving.engine.step_tables import step_all, table_of

LOG = logging.getLogger(__name__)

__all__ = ["Sampler", "advance_all", "inputs_of", "stream_seed"]


def stream_seed(seed: int) -> int:
    """The seed of an image's random stream: below 2**32 the seed itself, as in plain diffusers.

    Torch's CPU generator reads only the lowest 32 bits, so 2**32 + 5 would equal 5; larger seeds
    are hashed.
    """
    return seed if seed < 2**32 else derive_seed("picture", seed) % 2**32


class Sampler:
    """The denoising of one image, driven one step at a time from outside."""

    def __init__(
        self,
        base: Base,
        scheduler: SchedulerName,
        *,
        steps: int,
        seed: int,
        shape: tuple[int, int, int],
    ) -> None:
        """Sample the initial noise and set up the timesteps, as plain diffusers does.

        Args:
            shape: (C, H, W) of the latent.

        Raises:
            UserError: if the base does not know the scheduler.
        """
        seed = stream_seed(seed)
        self._scheduler: Any = base.start_scheduler(scheduler, steps, shape)
        self._timesteps: list[Tensor] = list(self._scheduler.timesteps)
        self._timestep_values: list[float] = [float(t) for t in self._timesteps]
        noise_1CHW = sent(initial_noise([seed], shape), base.device)
        self.latents_1CHW = noise_1CHW * initial_scale(self._scheduler)
        self._extra = self._step_arguments(seed, shape)
        self._estimate_1CHW: Tensor | None = None
        self.table = table_of(base, scheduler, steps, shape)
        """Its steps as numbers; None if only the scheduler object can take them."""
        self.step = 0

    def _step_arguments(self, seed: int, shape: tuple[int, int, int]) -> dict[str, Any]:
        arguments: dict[str, Any] = {"return_dict": False}
        if takes_generator(self._scheduler):
            # samplers that add noise continue the stream of the initial noise
            generator = torch.Generator("cpu").manual_seed(seed)
            torch.randn(shape, generator=generator)
            arguments["generator"] = generator
        return arguments

    @property
    def num_steps(self) -> int:
        """Total denoising steps."""
        return len(self._timesteps)

    @property
    def is_done(self) -> bool:
        """Whether the latent is clean."""
        return self.step >= len(self._timesteps)

    @property
    def timestep(self) -> float:
        """The timestep of the next step; fractional for Euler samplers."""
        return self._timestep_values[self.step]

    @property
    def input_scale(self) -> float:
        """The factor on the latent that gives the next input, if there is a table."""
        assert self.table is not None
        return self.table.input_scale_T[self.step]

    def model_input(self) -> Tensor:
        """The denoiser's input at the next step, [1, C, H, W]."""
        return model_input(self._scheduler, self.latents_1CHW, self._timesteps[self.step])

    def advance(self, prediction_1CHW: Tensor) -> None:
        """Take one step with the denoiser's (guided) prediction, float32 [1, C, H, W]."""
        before_1CHW, timestep = self.latents_1CHW, self._timesteps[self.step]
        outputs = self._scheduler.step(prediction_1CHW, timestep, before_1CHW, **self._extra)
        self.latents_1CHW = outputs[0]
        if len(outputs) > 1:
            self._estimate_1CHW = outputs[1]
        elif hasattr(self._scheduler, "model_outputs"):
            # multistep solvers keep their estimates of the clean latent instead
            self._estimate_1CHW = self._scheduler.model_outputs[-1]
        else:  # PNDM and flow matching keep none
            self._estimate_1CHW = clean_estimate(
                self._scheduler, prediction_1CHW, before_1CHW, timestep
            )
        self.step += 1

    def take(self, latents_1CHW: Tensor, estimate_1CHW: Tensor) -> None:
        """Continue from a step that was taken elsewhere; see ``advance_all``."""
        self.latents_1CHW, self._estimate_1CHW = latents_1CHW, estimate_1CHW
        self.step += 1

    def estimate(self) -> Tensor:
        """The denoiser's current estimate of the clean latent, [1, C, H, W]; for previews."""
        return self.latents_1CHW if self._estimate_1CHW is None else self._estimate_1CHW


def inputs_of(samplers: Sequence[Sampler]) -> Tensor:
    """The denoiser's inputs at the samplers' next steps, [P, C, H, W]."""
    # an image's own rounding must not depend on which others are in the pass
    latents_PCHW = torch.cat(
        [one.model_input() if one.table is None else one.latents_1CHW for one in samplers]
    )
    scales = [1.0 if one.table is None else one.input_scale for one in samplers]
    if all(scale == 1 for scale in scales):
        return latents_PCHW
    return latents_PCHW * sent(torch.tensor(scales), latents_PCHW.device).view(-1, 1, 1, 1)


def advance_all(samplers: Sequence[Sampler], predictions_PCHW: Tensor) -> list[Exception | None]:
    """Take each sampler's next step, those with a table together; returns each one's error.

    Args:
        predictions_PCHW: the (guided) predictions, float32.
    """
    errors: list[Exception | None] = [None] * len(samplers)
    together = [i for i, sampler in enumerate(samplers) if sampler.table is not None]
    for i in sorted(set(range(len(samplers))) - set(together)):
        try:
            samplers[i].advance(predictions_PCHW[i : i + 1])
        except Exception as error:
            LOG.exception("a scheduler step failed")
            errors[i] = error
    if together:
        chosen_PCHW = predictions_PCHW
        if len(together) < len(samplers):
            chosen_PCHW = torch.cat([predictions_PCHW[i : i + 1] for i in together])
        _advance_together([samplers[i] for i in together], chosen_PCHW)
    return errors


def _advance_together(samplers: Sequence[Sampler], predictions_PCHW: Tensor) -> None:
    latents_PCHW = torch.cat([sampler.latents_1CHW for sampler in samplers])
    # before the first step there is no estimate, and its factor is 0
    estimates_PCHW = torch.cat([sampler.estimate() for sampler in samplers])
    factors = [one.table.factors_T6[one.step] for one in samplers if one.table is not None]
    after_PCHW, clean_PCHW = step_all(latents_PCHW, predictions_PCHW, estimates_PCHW, factors)
    for i, sampler in enumerate(samplers):
        sampler.take(after_PCHW[i : i + 1], clean_PCHW[i : i + 1])
