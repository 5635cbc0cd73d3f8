"""Tests of an engine whose device, memory or callers fail."""

import pytest
import torch
from support.engine import WAIT_S, ask, assert_same, generate, wait_for

from farm.errors import (
    FarmError,
    TooBusy,
)
from farm.serving.engine.row import Row
from farm.serving.request import GenerationRequest


def test_running_out_of_memory_halves_the_pass_and_loses_no_picture(make_engine, monkeypatch):
    engine = make_engine(batch_rows=16)
    (expected,) = generate(engine, ask(3))
    original = engine.base.denoise

    def small_device(latents, timesteps, conditioning):
        if len(latents) > 4:
            raise torch.OutOfMemoryError("pretend")
        return original(latents, timesteps, conditioning)

    monkeypatch.setattr(engine.base, "denoise", small_device)
    pictures = generate(engine, *(ask(i, steps=10 if i != 3 else 4) for i in range(8)))
    assert_same(pictures[3], expected)
    assert engine.stats().out_of_memory >= 1


def test_a_picture_that_fits_not_even_alone_is_given_up(make_engine, monkeypatch):
    engine = make_engine()

    def no_device(*given):
        raise torch.OutOfMemoryError("pretend")

    monkeypatch.setattr(engine.base, "denoise", no_device)
    with pytest.raises(TooBusy, match="memory"):
        engine.submit(ask(0)).result(WAIT_S)


def test_a_pass_that_fails_takes_down_only_the_row_at_fault(make_engine, monkeypatch):
    engine = make_engine()
    original = engine.base.denoise

    def picky(latents, timesteps, conditioning):
        if bool((timesteps < 300).any()) and len(latents) % 2:
            raise RuntimeError("an odd pass")
        return original(latents, timesteps, conditioning)

    monkeypatch.setattr(engine.base, "denoise", picky)
    odd, even = engine.submit(ask(0, guidance=1.0, steps=12)), engine.submit(ask(1, steps=12))
    with pytest.raises(FarmError, match="could not be generated"):
        odd.result(WAIT_S)
    assert even.result(WAIT_S).pixels.shape == (64, 64, 3)


def test_a_lost_device_is_told_so_that_another_engine_is_started(make_engine, monkeypatch):
    engine = make_engine()
    generate(engine, ask(0))
    assert engine.healthy

    def lost(*_):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(engine.base, "denoise", lost)
    with pytest.raises(FarmError, match="could not be generated"):
        engine.submit(ask(1)).result(WAIT_S)
    assert not engine.healthy


def test_a_device_lost_while_prompts_are_encoded_is_told_too(make_engine, monkeypatch):
    engine = make_engine()

    def lost(*_):
        raise RuntimeError("CUDA error: unspecified launch failure")

    monkeypatch.setattr(engine.base, "encode_prompts", lost)
    with pytest.raises(FarmError, match="could not be prepared"):
        engine.submit(ask(0, prompt="never asked before")).result(WAIT_S)
    wait_for(lambda: not engine.healthy)


def test_a_picture_that_cannot_be_delivered_fails_alone(make_engine, monkeypatch):
    engine = make_engine()
    whole = Row.metadata

    def broken(row, *arguments):
        if row.request.seed == 13:
            raise KeyError("a fault of ours")
        return whole(row, *arguments)

    monkeypatch.setattr(Row, "metadata", broken)
    tickets = [
        engine.submit(GenerationRequest(id=str(seed), prompt="a cat", steps=2, seed=seed))
        for seed in (12, 13, 14)
    ]
    for ticket in (tickets[0], tickets[2]):
        assert ticket.result(WAIT_S).pixels.shape == (64, 64, 3)
    with pytest.raises(FarmError, match="could not be delivered"):
        tickets[1].result(WAIT_S)
    assert engine.healthy
    wait_for(lambda: engine.stats().generated == 2 and engine.stats().failed == 1)
