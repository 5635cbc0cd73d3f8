"""Threads take turns at a bank's layers; images come from copies that training does not change."""

from __future__ import annotations

import threading
import time

import pytest
import torch
from support.jobs import build_job, open_trainer

from farm.adapters.bank.turns import Turns
from farm.base.interface import Base
from farm.base.loading import load_base


def test_a_busy_thread_cannot_take_the_next_turn_from_one_that_waits() -> None:
    turns, order = Turns(), []
    is_over = threading.Event()

    def take_often() -> None:
        while not is_over.is_set():
            with turns:
                order.append("busy")
                time.sleep(0.001)

    busy = threading.Thread(target=take_often)
    busy.start()
    for _ in range(5):
        asked = len(order)
        with turns:
            assert len(order) - asked <= 2  # the turn in progress, and one that was asked for
    is_over.set()
    busy.join()
    assert order


def test_a_thread_that_has_the_turn_may_take_it_again_and_others_wait_for_its_end() -> None:
    turns, order = Turns(), []

    def take() -> None:
        with turns:
            order.append("other")

    other = threading.Thread(target=take)
    with turns:
        with turns:
            other.start()
            time.sleep(0.02)
        time.sleep(0.02)
        order.append("first")
    other.join()
    assert order == ["first", "other"]


@pytest.mark.parametrize("alpha", [4.0, 12.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_copy_generates_what_its_slot_generated_when_it_was_copied(
    dtype: torch.dtype, alpha: float
) -> None:
    """Also if alpha / rank differs from the slots', and after many more steps."""
    base: Base = load_base("tiny", dtype=dtype)
    trainer = open_trainer(base, num_slots=2, max_rank=4, num_kept=2)
    for number, scale in enumerate((alpha, 4.0)):
        trainer.admit(build_job(base, number, steps=50, rank=4, alpha=scale, learning_rate=0.05))
    for _ in range(3):
        trainer.step()
    prompts = ["a photo of sks thing"]
    before = trainer.sample({0: prompts}, [1], steps=2)[0]
    row = trainer.keep(0)
    assert row is not None
    for _ in range(3):
        trainer.step()
    assert not torch.equal(trainer.sample({0: prompts}, [1], steps=2)[0], before)
    assert torch.equal(trainer.sample({row: prompts}, [1], steps=2)[row], before)
    trainer.release(0)
    assert torch.equal(trainer.sample({row: prompts}, [1], steps=2)[row], before)
    assert trainer.keep(1) is not None
    assert trainer.keep(1) is None
    trainer.drop_kept(row)
    assert trainer.keep(1) == row
    trainer.close()
