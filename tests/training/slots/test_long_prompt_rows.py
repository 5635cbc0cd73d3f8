"""Slots whose prompts are read in windows train beside slots with usual prompts."""

from __future__ import annotations

import pytest
import torch
from support.jobs import assert_close, build_job, open_trainer, train_all, train_alone

from farm.adapters.weights import AdapterWeights
from farm.base.interface import Base
from farm.base.loading import load_base
from farm.training.lane.encode import TrainingPrompts

LONG = "a wooden table with a red ball, a blue cup and sks thing"


@pytest.fixture(scope="module")
def base() -> Base:
    return load_base("tiny", dtype=torch.float64)


@pytest.mark.parametrize("modules", [(), ("q_proj", "v_proj")], ids=["denoiser", "with text"])
def test_a_job_ends_as_it_does_alone_whatever_the_lengths_of_its_neighbours(
    base: Base, modules: tuple[str, ...]
) -> None:
    shape = {"text_encoder_modules": modules}
    chunked = {**shape, "long_prompts": "chunk"}
    jobs = [
        build_job(base, 0, steps=3, **shape),
        build_job(base, 1, steps=6, prompt=LONG, **chunked),
        build_job(base, 2, steps=5, prompt=f"{LONG}, {LONG}", **chunked),
        build_job(base, 3, steps=4, prompt=LONG, **shape),
    ]
    alone = {job.key: train_alone(base, job) for job in jobs}
    trainer = open_trainer(base, num_slots=2, max_rank=4, text_encoder_modules=modules)
    together = train_all(trainer, jobs)  # slots are refilled with shorter and longer prompts
    trainer.close()
    for key, weights in together.items():
        assert_close(weights, alone[key], 1e-5)


def test_what_lies_behind_the_first_window_is_learned(base: Base) -> None:
    ends: dict[str, AdapterWeights] = {}
    for choice in ("cut", "chunk"):
        job = build_job(base, 1, steps=4, prompt=LONG, long_prompts=choice)
        ends[choice] = train_alone(base, job)
    name = next(name for name in ends["cut"].layers if "attn2.to_k" in name)
    up, other = (ends[choice].layers[name].up for choice in ("cut", "chunk"))
    assert (up - other).abs().max() > 1e-4


def test_a_lane_encodes_captions_of_different_lengths_as_the_recipe_says(base: Base) -> None:
    encode = TrainingPrompts(base)
    captions = ["a photo of sks thing", LONG]
    tokens, conditioning = encode(captions, "chunk")
    length = base.memory.tokens
    assert (tokens.num_tokens, conditioning.num_tokens) == (2 * length, 2 * length)
    assert torch.equal(base.encode_tokens(tokens).hidden_RTD[1], conditioning.hidden_RTD[1])
    tokens, conditioning = encode(captions, "cut")
    assert (tokens.num_tokens, conditioning.num_tokens) == (length, length)


def test_samples_are_generated_as_the_slots_recipe_says(base: Base) -> None:
    pictures = {}
    for choice in ("cut", "chunk"):
        trainer = open_trainer(base, num_slots=1, max_rank=4)
        slot = trainer.admit(build_job(base, 1, steps=1, long_prompts=choice))
        trainer.step()
        pictures[choice] = trainer.sample({slot: [LONG]}, [7], steps=2)[slot]
        trainer.close()
    assert not torch.equal(pictures["cut"], pictures["chunk"])
