"""What ``farm run`` trains with the embedded base's own recipe, ``farm serve`` serves."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image, ImageDraw
from typer.testing import CliRunner

from farm.adapters.registry import NamedAdapter, Registry
from farm.base.loading import load_base
from farm.cli import app
from farm.serving.access.inventory import read_inventory, summary
from farm.serving.build import build_engine
from farm.serving.engine.engine import Engine
from farm.serving.request import AdapterRef, GenerationRequest
from farm.serving.settings import EndpointConfig
from farm.storage import Store

WAIT_S = 120
SUBJECTS: list[dict[str, object]] = [
    {"id": "by_default"},
    {"id": "high", "recipe": {"rank": 32, "text_encoder_modules": ["q_proj", "v_proj"]}},
    {"id": "narrow", "recipe": {"rank": 2, "target_modules": ["to_q", "conv2"]}},
]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with adapters of the default recipe and of others, trained for a few steps."""
    root = tmp_path_factory.mktemp("trained")
    for index, subject in enumerate(SUBJECTS):
        for number in range(3):
            photo = Image.effect_noise((128, 128), 40 + 20 * number).convert("RGB")
            box = (20 + 5 * number, 30, 80 + 5 * number, 90)
            ImageDraw.Draw(photo).ellipse(box, fill=(200 - 80 * index, 60 * index, 90))
            folder = root / "photos" / str(subject["id"])
            folder.mkdir(parents=True, exist_ok=True)
            photo.save(folder / f"{number}.png")
        subject["photos"] = str(folder)
    manifest = root / "manifest.yaml"
    manifest.write_text(
        yaml.safe_dump({"version": 1, "defaults": {"class_noun": "cat"}, "subjects": SUBJECTS})
    )
    options = ["--in-process", "--yes", "--no-cards", "--no-report", "--sample-steps", "1"]
    options += ["--set", "steps=6", "--set", "num_prior_images=2", "--plain"]
    done = CliRunner().invoke(app, ["run", str(manifest), "--store", str(root / "store"), *options])
    assert done.exit_code == 0, done.output
    return root / "store"


@pytest.fixture(scope="module")
def engine(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    folder = tmp_path_factory.mktemp("disk")
    engine, _ = build_engine(EndpointConfig(store=str(store), cache_folder=str(folder)))
    with engine:
        yield engine


def request_of(named: NamedAdapter | None) -> GenerationRequest:
    adapters = ()
    if named is not None:
        ref = AdapterRef(named.job_key, named.namespace, named.name, named.sha256)
        adapters = ((ref, 1.0),)
    return GenerationRequest("one", "a photo of sks cat", seed=3, steps=6, adapters=adapters)


def plain(store: Path, named: NamedAdapter, request: GenerationRequest) -> np.ndarray:
    """The picture of a plain diffusers pipeline with the exported file."""
    pipeline = load_base("embedded").pipeline()
    pipeline.load_lora_weights(store / "adapters" / named.job_key)
    picture = pipeline(
        request.prompt,
        num_inference_steps=request.steps,
        guidance_scale=request.guidance,
        generator=torch.Generator("cpu").manual_seed(request.seed),
        output_type="np",
    ).images[0]
    return (picture * 255).round().astype(int)


@pytest.mark.slow
def test_every_trained_adapter_is_served_and_is_what_plain_diffusers_generates(
    store: Path, engine: Engine
) -> None:
    names = list(Registry(Store(store)).names())
    assert [named.name for named in names] == ["by_default", "high", "narrow"]
    asked = [request_of(named) for named in names]
    tickets = [engine.submit(request) for request in [*asked, request_of(None)]]
    *pictures, bare = [ticket.result(WAIT_S).pixels.astype(int) for ticket in tickets]
    for named, request, picture in zip(names, asked, pictures, strict=True):
        assert np.abs(picture - bare).max() > 2, named.name
        difference = np.abs(picture - plain(store, named, request))
        assert difference.max() <= 3, named.name
        assert difference.mean() < 0.1, named.name


@pytest.mark.slow
def test_the_start_says_what_is_served_and_what_not_and_why(store: Path, engine: Engine) -> None:
    inventory = read_inventory(Registry(Store(store)))
    fingerprint = engine.base.fingerprint
    lines = summary(inventory, engine.config, fingerprint)
    assert lines == ["3 adapters, up to 64 of them in the model at once (--slots)"]
    limited = engine.config.model_copy(
        update={"max_rank": 16, "target_modules": ("to_q", "to_k", "to_v", "to_out.0")}
    )
    told = "\n".join(summary(inventory, limited, fingerprint))
    assert "0 of 3 adapters, up to" in told
    assert "3 cannot be served" in told
    assert "high: a rank above the limit of 16 (--max-rank)" in told
    assert "by_default, narrow: layers outside the limit" in told
    assert "another base (embedded, Stable Diffusion 1.x)" in "\n".join(
        summary(inventory, engine.config, "0" * 64)
    )
