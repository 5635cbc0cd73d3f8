"""A picture depends on its request alone: to one level of 255, or to the byte if asked for.

On the embedded base with its adapters on attention layers. Passes of other row counts add float
values in another order, so a value near a rounding boundary may move by one level.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from support.adapters import publish, random_weights

from farm.adapters.registry import Registry
from farm.base.loading import load_base
from farm.serving.config import EngineConfig
from farm.serving.engine.engine import Engine
from farm.serving.request import GenerationRequest
from farm.storage import Store

SEEDS = (7, 8, 9)
WAIT_S = 120.0


@pytest.mark.parametrize(
    ("config", "max_levels"),
    [
        (EngineConfig(num_slots=4, batch_rows=16), 1),
        (EngineConfig(num_slots=4, batch_rows=2, decode_batch=1), 0),
    ],
    ids=["in one pass", "a pass per picture"],
)
def test_n_pictures_are_the_pictures_of_their_seeds_alone(
    tmp_path: Path, config: EngineConfig, max_levels: int
) -> None:
    base = load_base("embedded", device="cpu")
    registry = Registry(Store(tmp_path / "store"))
    weights = random_weights(base, 0, strength=0.05)  # changes a picture as a trained one does
    ref = publish(registry, base, weights, tmp_path / "local", "cat")
    requests = [
        GenerationRequest(
            f"{seed}", "a photo of sks cat", seed=seed, steps=8, adapters=((ref, 1.0),)
        )
        for seed in SEEDS
    ]
    with Engine(base, registry, config, cache_folder=tmp_path / "disk") as engine:
        alone = [engine.submit(request).result(WAIT_S) for request in requests]
        tickets = [engine.submit(request) for request in requests]
        together = [ticket.result(WAIT_S) for ticket in tickets]
    if max_levels:
        assert max(picture.metadata["batch"]["largest"] for picture in together) > 2
    for one, other in zip(alone, together, strict=True):
        levels = np.abs(one.pixels.astype(int) - other.pixels.astype(int))
        assert levels.max() <= max_levels
        assert (levels > 0).mean() <= 1e-3
