"""What a lane writes to the store: checkpoints from which training can continue."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from support.jobs import build_job, open_trainer

from farm.adapters.weights import AdapterWeights
from farm.base.interface import Base
from farm.storage import Store
from farm.training.lane.publisher import Publisher, load_checkpoint


def test_a_state_that_is_not_finite_replaces_no_checkpoint(base: Base, tmp_path: Path) -> None:
    trainer = open_trainer(base, num_slots=1, max_rank=4)
    job = build_job(base, 1, rank=4)
    slot = trainer.admit(job)
    trainer.step()
    good = trainer.state(slot)
    trainer.close()
    name, layer = next(iter(good.second.layers.items()))
    broken = replace(layer, up=torch.full_like(layer.up, float("nan")))
    second = AdapterWeights(good.second.layers | {name: broken}, good.second.alphas)
    store = Store(tmp_path)
    publisher = Publisher(store, base, (), lambda _: None)
    publisher.checkpoint(good)
    publisher.checkpoint(replace(good, step=good.step + 1, second=second))
    publisher.close()
    found = load_checkpoint(store, job.key)
    assert found is not None
    assert found.step == good.step
    assert found.is_finite
