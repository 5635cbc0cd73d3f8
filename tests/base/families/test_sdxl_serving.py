"""Serving Stable Diffusion XL: mixed batches, and a manifest from its run to an OpenAI client."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from support.adapters import mixed_adapters
from support.endpoint import are_same, live_endpoint, pixels_of
from support.manifests import QUICK, request, write_manifest

from farm.adapters.registry import Registry
from farm.base.interface import Base
from farm.base.loading import load_base
from farm.serving.config import EngineConfig
from farm.serving.engine.engine import Engine
from farm.serving.request import AdapterRef, GenerationRequest
from farm.storage import Store
from farm.training.execute import run_manifest

SDXL = "tiny-sdxl"


@pytest.fixture(scope="module")
def base() -> Base:
    return load_base(SDXL)


def pictures_of(engine: Engine, *asked: GenerationRequest) -> list[np.ndarray]:
    tickets = [engine.submit(one) for one in asked]
    return [np.asarray(ticket.result(120).pixels) for ticket in tickets]


def plain_picture(registry: Registry, ref: AdapterRef, asked: GenerationRequest, folder: Path):
    registry.fetch(ref.key, folder / ref.key)
    pipeline = load_base(SDXL).pipeline()
    pipeline.load_lora_weights(folder / ref.key)
    return (
        pipeline(
            asked.prompt,
            negative_prompt=asked.negative_prompt or None,
            num_inference_steps=asked.steps,
            guidance_scale=asked.guidance,
            width=asked.width_px,
            height=asked.height_px,
            generator=torch.Generator("cpu").manual_seed(asked.seed),
            output_type="np",
        ).images[0]
        * 255
    )


@pytest.mark.proves("Stable Diffusion XL", "serve mixed")
def test_rows_of_a_mixed_batch_are_what_plain_diffusers_generates(
    base: Base, tmp_path: Path
) -> None:
    """Adapters with and without text layers, guided or not, in two sizes and two schedulers."""
    registry, spare = Registry(Store(tmp_path / "store")), load_base(SDXL)
    adapters = mixed_adapters(registry, spare, tmp_path / "local", strength=0.1, text=True)
    asked = [
        GenerationRequest(
            id=str(number),
            prompt=f"a photo of sks cat {number}",
            negative_prompt=["", "ugly"][number % 2],
            seed=number,
            steps=3,
            guidance=[4.0, 1.0][number % 2],
            scheduler=["base", "ddim"][number // 3],
            width_px=64,
            height_px=64,
            adapters=adapters[number % 3],
        )
        for number in range(6)
    ]
    config = EngineConfig(num_slots=4, max_rank=8, batch_rows=12)
    engine = Engine(base, registry, config, cache_folder=tmp_path / "disk")
    engine.start()
    try:
        together = pictures_of(engine, *asked)
        assert engine.stats().rows / engine.stats().passes > 2  # one image has at most two rows
        for one, picture in zip(asked[1:4], together[1:4], strict=True):
            assert are_same(pictures_of(engine, one)[0].astype(int), picture.astype(int))
    finally:
        engine.stop()
    for number in (0, 1):
        plain = plain_picture(registry, adapters[number][0][0], asked[number], tmp_path / "fetched")
        assert np.abs(together[number] - plain).max() <= 2


@pytest.mark.proves("Stable Diffusion XL", "run to request")
def test_a_manifest_is_run_served_and_asked_for_by_an_openai_client(tmp_path: Path) -> None:
    recipe = QUICK | {"learning_rate": 1e-2, "text_encoder_modules": ["q_proj"]}
    manifest = write_manifest(tmp_path / "m", 2, recipe=recipe, nouns=("cat", "dog"))
    store = Store(tmp_path / "served" / "store")
    summary = run_manifest(request(manifest, store.url, base=SDXL, slots=2))
    assert (summary.jobs, summary.committed, summary.exit_code) == (2, 2, 0)
    record = Registry(store).record(next(iter(Registry(store).names())).job_key)
    assert "pytorch_lora_weights.safetensors" in record.files
    engine = EngineConfig(num_slots=4, max_rank=8, batch_rows=8)
    with live_endpoint(tmp_path / "served", base=SDXL, engine=engine) as endpoint:
        client = endpoint.openai()
        assert {"s000", "s001"} <= {model.id.split("/")[-1] for model in client.models.list()}

        def picture(model: str) -> np.ndarray:
            answer = client.images.generate(
                model=model,
                prompt="a [V] in space",
                response_format="b64_json",
                extra_body={"seed": 3, "num_inference_steps": 3},
            )
            assert answer.data
            return pixels_of(answer.data[0].b64_json)

        first, second = picture("s000"), picture("s001")
        assert first.shape == (64, 64, 3)
        assert not are_same(first, second)
        assert are_same(first, picture("s000"))
