"""Serving the flow-transformer families: mixed batches, and a manifest from its run to a client."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from support.adapters import mixed_adapters
from support.endpoint import are_same, live_endpoint, pixels_of
from support.families import FLOW_FAMILIES
from support.manifests import QUICK, request, write_manifest

from farm.adapters.registry import Registry
from farm.base.loading import load_base
from farm.serving.config import EngineConfig
from farm.serving.engine.engine import Engine
from farm.serving.request import GenerationRequest
from farm.storage import Store
from farm.training.execute import run_manifest


@pytest.mark.proves("every flow family", "serve mixed")
@pytest.mark.parametrize("name", FLOW_FAMILIES)
def test_a_row_of_a_mixed_batch_is_the_row_alone(name: str, tmp_path: Path) -> None:
    """Prompts of different lengths, two adapters and none, guided or not."""
    registry, base = Registry(Store(tmp_path / "store")), load_base(name)
    adapters = mixed_adapters(registry, base, tmp_path / "local", strength=0.3)
    asked = [
        GenerationRequest(
            id=str(number),
            prompt=f"a photo of sks cat{' in the rain' * number}",
            seed=number,
            steps=3,
            guidance=[4.0, 1.0][number % 2],
            width_px=64,
            height_px=64,
            adapters=adapters[number % 3],
        )
        for number in range(4)
    ]
    engine = Engine(
        base,
        registry,
        EngineConfig(num_slots=4, max_rank=8, batch_rows=8),
        cache_folder=tmp_path / "disk",
    )
    engine.start()
    try:
        tickets = [engine.submit(one) for one in asked]
        together = [ticket.result(120).pixels.astype(int) for ticket in tickets]
        for one, picture in zip(asked, together, strict=True):
            alone = engine.submit(one).result(120).pixels.astype(int)
            assert np.abs(alone - picture).max() <= 2
    finally:
        engine.stop()
    assert not are_same(together[0], together[3])


@pytest.mark.proves("every flow family", "run to request")
@pytest.mark.parametrize("name", FLOW_FAMILIES)
def test_a_manifest_is_run_served_and_asked_for_by_an_openai_client(
    name: str, tmp_path: Path
) -> None:
    recipe = QUICK | {"steps": 3, "num_prior_images": 2, "learning_rate": 1e-2, "rank": 4}
    manifest = write_manifest(tmp_path / "m", 2, recipe=recipe, nouns=("cat",))
    store = Store(tmp_path / "served" / "store")
    summary = run_manifest(request(manifest, store.url, base=name, slots=2))
    assert (summary.jobs, summary.committed, summary.exit_code) == (2, 2, 0)
    engine = EngineConfig(num_slots=4, max_rank=8, batch_rows=8)
    with live_endpoint(tmp_path / "served", base=name, engine=engine) as endpoint:
        client = endpoint.openai()
        pictures = [
            client.images.generate(
                model=model,
                prompt="a [V] in space",
                response_format="b64_json",
                extra_body={"seed": 3, "num_inference_steps": 2},
            ).data
            for model in ("s000", "s001")
        ]
    first, second = (pixels_of(answer[0].b64_json) for answer in pictures if answer)
    assert first.shape == (64, 64, 3)
    assert not np.array_equal(first, second)
