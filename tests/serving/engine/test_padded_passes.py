"""Padded and replayed passes, and steps taken together, change no picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from support.adapters import published

from farm.base.interface import Base
from farm.base.loading import load_base
from farm.base.stepping import initial_scale, model_input
from farm.serving.config import EngineConfig
from farm.serving.engine.engine import Engine
from farm.serving.engine.passes import ROW_COUNTS, padded_rows
from farm.serving.engine.sampler import Sampler, advance_all, inputs_of
from farm.serving.engine.step_tables import table_of
from farm.serving.request import GenerationRequest

WAIT_S = 120
SHAPE = (4, 8, 8)
TABULATED = ("ddim", "euler", "dpm++2m", "base")


@pytest.fixture(scope="module", params=["tiny", "tiny-v"])
def base(request: pytest.FixtureRequest) -> Base:
    return load_base(request.param)


@pytest.mark.parametrize("scheduler", TABULATED)
def test_steps_taken_together_equal_diffusers_own(base: Base, scheduler: str) -> None:
    counts = (1, 2, 7, 25)
    samplers = [
        Sampler(base, scheduler, steps=steps, seed=steps, shape=SHAPE) for steps in counts
    ]  # fmt: skip
    objects = [base.start_scheduler(scheduler, steps, SHAPE) for steps in counts]
    latents = [sampler.latents_1CHW for sampler in samplers]
    scale = initial_scale(objects[0])
    assert float(latents[0].std() / scale) == pytest.approx(1, rel=0.2)
    assert all(sampler.table is not None for sampler in samplers)
    generator = torch.Generator().manual_seed(1)
    for step in range(max(counts)):
        running = [i for i, sampler in enumerate(samplers) if not sampler.is_done]
        predictions = torch.randn(len(running), *SHAPE, generator=generator)
        inputs = inputs_of([samplers[i] for i in running])
        for place, i in enumerate(running):
            timestep = objects[i].timesteps[step]
            wanted = model_input(objects[i], latents[i], timestep)
            torch.testing.assert_close(inputs[place : place + 1], wanted, rtol=1e-5, atol=1e-5)
        errors = advance_all([samplers[i] for i in running], predictions)
        assert errors == [None] * len(running)
        for place, i in enumerate(running):
            timestep = objects[i].timesteps[step]
            after = objects[i].step(
                predictions[place : place + 1], timestep, latents[i], return_dict=False
            )
            latents[i] = after[0]
            torch.testing.assert_close(samplers[i].latents_1CHW, latents[i], rtol=1e-4, atol=1e-4)
            estimate = after[1] if len(after) > 1 else objects[i].model_outputs[-1]
            torch.testing.assert_close(samplers[i].estimate(), estimate, rtol=1e-4, atol=1e-4)


def test_schedulers_of_another_form_keep_their_own_objects(base: Base) -> None:
    for name in ("euler_a", "unipc"):
        assert table_of(base, name, 5, SHAPE) is None


@pytest.mark.parametrize("scheduler", ["dpm++2m", "euler", "ddim"])
def test_a_picture_that_steps_beside_others_keeps_its_bits(base: Base, scheduler: str) -> None:
    """Others may be of any number and scheduler, and their numbers need not be finite."""
    prediction = torch.randn(1, *SHAPE, generator=torch.Generator().manual_seed(2))
    ends = []
    for others in ((), ("ddim",), ("euler", "euler_a", "dpm++2m", "unipc", "euler", "ddim")):
        samplers = [
            Sampler(base, name, steps=6, seed=seed, shape=SHAPE)
            for seed, name in enumerate((scheduler, *others))
        ]
        inputs = []
        for _ in range(3):
            inputs.append(inputs_of(samplers)[0])
            noise = torch.full((len(others), *SHAPE), float("nan"))
            advance_all(samplers, torch.cat([prediction, noise]))
        ends.append(torch.stack([*inputs, samplers[0].latents_1CHW[0]]))
    assert torch.equal(ends[0], ends[1])
    assert torch.equal(ends[0], ends[2])


def test_a_pass_is_padded_to_the_next_of_a_few_sizes() -> None:
    assert [padded_rows(rows) for rows in (1, 2, 3, 5, 9, 33, 64, 65, 200)] == [
        1, 2, 4, 8, 16, 64, 64, 128, 256
    ]  # fmt: skip
    assert {padded_rows(rows) for rows in range(1, 65)} == set(ROW_COUNTS)


def test_padding_and_fixed_tensors_change_no_picture(tmp_path: Path) -> None:
    """Adapters of two ranks, the bare base, a weight, guided and unguided pictures, two sizes."""
    plain = load_base("tiny")
    registry, refs = published(tmp_path, plain, 2)
    wide, wide_refs = published(tmp_path / "wide", plain, 1, rank=20)
    assert wide is not registry
    kinds = [
        {"adapters": ((refs[0], 1.0),)},
        {"adapters": ((refs[1], 1.0),), "scheduler": "euler", "guidance": 1.0},
        {"adapters": ((refs[0], 0.5),), "scheduler": "ddim", "steps": 5},
        {"adapters": ()},
        {"adapters": ((refs[1], 1.0),), "width_px": 128, "scheduler": "euler_a"},
    ]
    requests = [
        GenerationRequest(
            id=str(i), prompt=f"a photo of sks cat {i}", seed=i,
            **{"steps": 4, "guidance": 4.0, "scheduler": "dpm++2m", **kind},
        )
        for i, kind in enumerate(kinds)
    ]  # fmt: skip
    del wide_refs
    generated = []
    for pads in (False, True):
        config = EngineConfig(batch_rows=16, pad_rows=pads)
        folder = tmp_path / f"cache-{pads}"
        with Engine(load_base("tiny"), registry, config, cache_folder=folder) as engine:
            for _ in range(2):  # the second time in passes that were made before
                tickets = [engine.submit(request) for request in requests]
                images = [ticket.result(WAIT_S).pixels.astype(int) for ticket in tickets]
            generated.append(images)
            fixed = engine._denoiser._passes._fixed
            assert bool(fixed) is pads
            assert all(key[0][0] in ROW_COUNTS for key in fixed)
    for without, padded in zip(*generated, strict=True):
        assert np.abs(without - padded).max() <= 1
