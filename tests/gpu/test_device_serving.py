"""Serving and adapter files on a device: the CPU's pictures, alone and in a mixed batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.adapters import ATTENTION, published, random_weights

from farm.adapters.bank.bank import Bank
from farm.adapters.files.folder import load_adapter
from farm.adapters.generate import generate_adapted
from farm.base.interface import Base
from farm.base.loading import load_base
from farm.serving.config import EngineConfig
from farm.serving.engine.engine import Engine
from farm.serving.request import GenerationRequest

LEVELS = 2
"""Largest difference of a pixel: rounding on another device."""
WAIT_S = 120


@pytest.fixture
def base(device: torch.device) -> Base:
    return load_base("tiny", device=device, dtype=torch.float32)


def pictures(engine: Engine, requests: list[GenerationRequest]) -> list[np.ndarray[Any, Any]]:
    tickets = [engine.submit(request) for request in requests]
    return [ticket.result(WAIT_S).pixels.astype(int) for ticket in tickets]


def test_a_mixed_batch_generates_the_pictures_that_a_cpu_generates_alone(
    base: Base, tmp_path: Path
) -> None:
    registry, refs = published(tmp_path, load_base("tiny"), 3)
    schedulers = ("ddim", "euler", "dpm++2m", "base")
    requests = [
        GenerationRequest(
            id=str(i), prompt=f"a photo of sks cat {i}", seed=i, steps=4 + i % 2, guidance=4.0,
            scheduler=name, adapters=((refs[i % 3], 0.5 if i == 2 else 1.0),) if i else (),
        )
        for i, name in enumerate(schedulers)
    ]  # fmt: skip
    config = EngineConfig(batch_rows=8)
    with Engine(base, registry, config, cache_folder=tmp_path / "here") as engine:
        together = pictures(engine, requests)
        again = pictures(engine, requests)
    with Engine(load_base("tiny"), registry, config, cache_folder=tmp_path / "cpu") as engine:
        alone = [pictures(engine, [request])[0] for request in requests]
    for found, repeated, wanted in zip(together, again, alone, strict=True):
        assert np.abs(found - wanted).max() <= LEVELS
        assert np.abs(found - repeated).max() <= LEVELS
        assert wanted.std() > 0


def test_an_adapters_file_gives_the_bank_of_any_device_the_same_weights(
    base: Base, tmp_path: Path
) -> None:
    cpu = load_base("tiny")
    _, (ref,) = published(tmp_path, base, 1)
    folder = tmp_path / "local" / ref.key
    weights = random_weights(cpu, 0)
    images = []
    for one in (base, cpu):
        bank = Bank(one, num_slots=1, max_rank=4, target_modules=ATTENTION)
        loaded = load_adapter(folder / "pytorch_lora_weights.safetensors", one)
        for name, layer in weights.layers.items():
            torch.testing.assert_close(loaded.layers[name].up, layer.up)
        bank.set_slot(0, loaded)
        prompts = ["a photo of sks cat"] * 2
        images.append(generate_adapted(one, bank, prompts, [3, 4], [0, -1], steps=3).int())
        bank.close()
    assert (images[0] - images[1]).abs().max() <= LEVELS
