"""Bases whose denoiser is quantised: trained in slots, served in mixed batches, planned."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from support.adapters import published
from support.jobs import assert_close, build_job, open_trainer, train_alone
from torch import nn

from farm.base.device.quantized import PackedWeight, is_quantized, packed_weight
from farm.base.generate import generate_images
from farm.base.interface import Base
from farm.base.loading import load_base
from farm.base.memory import MemoryFacts
from farm.base.random_weights import build_pipeline
from farm.errors import BaseModelError
from farm.serving.config import EngineConfig
from farm.serving.engine.engine import Engine
from farm.serving.request import GenerationRequest

NAMES = ("tiny-klein", "tiny-sdxl")
GIB = 2**30


@pytest.fixture(scope="module", params=NAMES)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base") / request.param
    build_pipeline(request.param).save_pretrained(folder, safe_serialization=True)
    return folder


@pytest.fixture
def base(folder: Path) -> Base:
    pytest.importorskip("torchao", reason="the extra `quantize` is not installed")
    return load_base(str(folder), quantization="int8")


def denoiser_of(base: Base) -> nn.Module:
    return base.components[base.denoiser_name]


def in_nf4(folder: Path) -> Base:
    """A base whose layers are bitsandbytes' own, which diffusers loads on GPUs only."""
    bitsandbytes = pytest.importorskip("bitsandbytes", reason="the extra is not installed")
    base = load_base(str(folder))
    denoiser = denoiser_of(base)
    for path, layer in list(denoiser.named_modules()):
        if isinstance(layer, nn.Linear):
            parent, _, name = path.rpartition(".")
            packed = bitsandbytes.nn.Linear4bit(
                layer.in_features,
                layer.out_features,
                bias=layer.bias is not None,
                compute_dtype=torch.float32,
                quant_type="nf4",
            )
            packed.load_state_dict(layer.state_dict())
            setattr(denoiser.get_submodule(parent), name, packed.to("cpu").requires_grad_(False))
    return base


def dense(base: Base, folder: Path) -> Base:
    """The base in full precision, with the values that the quantised one has."""
    plain = load_base(str(folder))
    with torch.no_grad():
        for path, layer in denoiser_of(base).named_modules():
            if (packed := packed_weight(layer)) is not None:
                target = denoiser_of(plain).get_submodule(path)
                assert isinstance(target, nn.Linear)
                target.weight.copy_(packed.unpacked(torch.float32))
    return plain


def test_all_linear_layers_of_the_denoiser_are_quantised_and_nothing_else(
    base: Base, folder: Path
) -> None:
    layers = [one for one in denoiser_of(base).modules() if isinstance(one, nn.Linear)]
    assert all(isinstance(packed_weight(layer), PackedWeight) for layer in layers)
    pipeline = base.pipeline()
    assert not is_quantized(pipeline.text_encoder)
    assert not is_quantized(pipeline.vae)
    exact = load_base(str(folder))
    assert base.fingerprint == exact.fingerprint  # adapters fit both
    pictures = [
        generate_images(one, ["a cat"], [3], steps=2, guidance=1.0).numpy().astype(int)
        for one in (base, dense(base, folder), exact)
    ]
    assert np.abs(pictures[0] - pictures[1]).max() <= 1
    assert 0 < np.abs(pictures[0] - pictures[2]).mean() < 8


@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_slots_on_a_quantised_base_train_what_each_alone_trains(
    folder: Path, kind: str, request: pytest.FixtureRequest
) -> None:
    base = in_nf4(folder) if kind == "nf4" else request.getfixturevalue("base")
    jobs = [build_job(base, number, steps=3, rank=2 + number) for number in range(2)]
    trainer = open_trainer(base, num_slots=3, max_rank=4)
    assert trainer.bank.dtype == torch.float32  # adapters and moments stay in full precision
    slots = {job.key: trainer.admit(job) for job in jobs}
    while trainer.active_slots:
        trainer.step()
    together = {key: trainer.weights(slot) for key, slot in slots.items()}
    trainer.close()
    assert_close(together[jobs[1].key], train_alone(base, jobs[1]), 5e-3)
    # and the gradients are those through the unpacked weights
    assert_close(together[jobs[0].key], train_alone(dense(base, folder), jobs[0]), 5e-3)


def test_a_row_of_a_mixed_batch_on_a_quantised_base_is_the_row_alone(
    base: Base, tmp_path: Path
) -> None:
    registry, refs = published(tmp_path, base, 2)
    asked = [
        GenerationRequest(
            id=str(number), prompt="a photo of sks cat", seed=number, steps=2, guidance=1.0,
            width_px=64, height_px=64, adapters=((ref, 0.3),) if ref else (),
        )
        for number, ref in enumerate([*refs, None])
    ]  # fmt: skip
    config = EngineConfig(num_slots=4, max_rank=8, batch_rows=4)
    engine = Engine(base, registry, config, cache_folder=tmp_path / "disk")
    engine.start()
    try:
        tickets = [engine.submit(one) for one in asked]
        together = [ticket.result(120).pixels.astype(int) for ticket in tickets]
        alone = [engine.submit(one).result(120).pixels.astype(int) for one in asked]
    finally:
        engine.stop()
    for row, single in zip(together, alone, strict=True):
        assert np.abs(row - single).max() <= 2
    assert np.abs(together[0] - together[2]).max() > 10


def test_what_cannot_be_quantised_is_refused_with_the_remedy() -> None:
    with pytest.raises(BaseModelError, match="nf4 weights need a GPU"):
        load_base("embedded", quantization="nf4")
    with pytest.raises(BaseModelError, match="built in memory"):
        load_base("tiny", quantization="int8")
    assert not is_quantized(denoiser_of(load_base("embedded", device="meta", quantization="nf4")))


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_slots_on_a_quantised_base_of_a_gpu_train_what_each_alone_trains(
    folder: Path, kind: str
) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    pytest.importorskip("torchao" if kind == "int8" else "bitsandbytes")
    base = load_base(str(folder), device="cuda", dtype=torch.bfloat16, quantization=kind)  # type: ignore[arg-type]
    assert is_quantized(denoiser_of(base))
    jobs = [build_job(base, number, steps=3, rank=2 + number) for number in range(2)]
    trainer = open_trainer(base, num_slots=3, max_rank=4)
    slots = [trainer.admit(job) for job in jobs]
    while trainer.active_slots:
        trainer.step()
    together = trainer.weights(slots[1])
    trainer.close()
    assert_close(together, train_alone(base, jobs[1]), 3e-2)


def test_the_plans_bytes_are_those_of_the_packed_layers() -> None:
    facts = MemoryFacts(
        num_parameters=12 * GIB,
        denoiser_parameters=10 * GIB,
        weight_bytes=24 * GIB,
        latent_channels=16,
        latent_factor=8,
        tokens=512,
        linear_parameters=8 * GIB,
    )
    assert facts.quantized(None) is facts
    assert facts.quantized("int8").weight_bytes == (24 - 8) * GIB
    packed = facts.quantized("nf4")
    assert packed.weight_bytes == int((24 - 16 + 4.5) * GIB)
    assert packed.value_bytes == copy.copy(facts).value_bytes == 2  # passes run in half precision
