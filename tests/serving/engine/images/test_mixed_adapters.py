"""Adapters of any layers and ranks, text-encoder layers among them, share passes of one engine that
has its default settings, and each picture is what plain diffusers generates with the file."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch
from support.adapters import publish, weights_on

from farm.adapters.bank.mixed import MixedBank
from farm.adapters.registry import Registry
from farm.adapters.weights import AdapterWeights
from farm.base.loading import load_base
from farm.errors import AdapterFileError, RequestRefused
from farm.serving.config import EngineConfig
from farm.serving.engine.engine import Engine
from farm.serving.request import GenerationRequest
from farm.storage import Store

WAIT_S = 120
KINDS = {
    "attention": ({"targets": ("to_q", "to_k", "to_v", "to_out.0"), "rank": 4}, None),
    "wide": (
        {"targets": ("to_q", "ff.net.0.proj", "ff.net.2", "proj_in", "conv1"), "rank": 8},
        None,
    ),
    "high": ({"targets": ("to_k", "to_v"), "rank": 64}, None),
    "text": ({"targets": ("to_q",), "rank": 5}, {"targets": ("q_proj", "fc1"), "rank": 20}),
    "words": (None, {"targets": ("v_proj", "out_proj"), "rank": 3}),
    "edges": ({"targets": ("conv_in", "conv_out", "linear_1", "time_emb_proj"), "rank": 2}, None),
}


@pytest.fixture(scope="module")
def base():
    return load_base("tiny")


@pytest.fixture(scope="module")
def spare():
    return load_base("tiny")


def weights_of(base, name, seed):
    """One of the kinds, with weights that change every picture visibly."""
    layers, alphas = {}, {}
    for component, kind in zip(("unet", "text_encoder"), KINDS[name], strict=True):
        if kind is not None:
            bank = MixedBank(base, component, num_slots=1)
            part = weights_on(bank, seed, alpha=1.5 * kind["rank"], strength=0.6, **kind)
            layers |= part.layers
            alphas |= part.alphas
    return AdapterWeights(layers, alphas)


@pytest.fixture
def registry(tmp_path):
    return Registry(Store(tmp_path / "store"))


@pytest.fixture
def commit(registry, spare, tmp_path):
    def commit(name, seed=0):
        weights = weights_of(spare, name, seed)
        return publish(registry, spare, weights, tmp_path / "local", f"{name}-{seed}")

    return commit


@pytest.fixture
def make_engine(base, registry, tmp_path):
    opened = []

    def make(**options):
        config = EngineConfig(**{"batch_rows": 16, **options})
        engine = Engine(base, registry, config, cache_folder=tmp_path / "disk")
        opened.append(engine)
        engine.start()
        return engine

    yield make
    for engine in opened:
        engine.stop()


def ask(number, *refs, **fields):
    fields = {"prompt": "a photo of a cat", "seed": number, "steps": 4, **fields}
    return GenerationRequest(id=str(number), adapters=tuple((ref, 1.0) for ref in refs), **fields)


def generate(engine, *requests):
    tickets = [engine.submit(request) for request in requests]
    return [ticket.result(WAIT_S).pixels for ticket in tickets]


def assert_same(picture, other):
    difference = np.abs(picture.astype(int) - other.astype(int))
    assert difference.max() <= 2
    assert difference.mean() < 0.05


def differs(picture, other):
    return np.abs(picture.astype(int) - other.astype(int)).max() > 2


def plain_diffusers(registry, request, folder):
    pipeline = load_base("tiny").pipeline()
    ((ref, _),) = request.adapters
    registry.fetch(ref.key, folder / ref.key)
    pipeline.load_lora_weights(folder / ref.key)
    picture = pipeline(
        request.prompt,
        negative_prompt=request.negative_prompt,
        num_inference_steps=request.steps,
        guidance_scale=request.guidance,
        generator=torch.Generator("cpu").manual_seed(request.seed),
        output_type="np",
    ).images[0]
    return (picture * 255).round().astype(np.uint8)


@pytest.mark.proves("Stable Diffusion 1.x and 2.x", "serve mixed")
def test_adapters_of_any_kind_in_one_batch_are_each_what_plain_diffusers_generates(
    make_engine, registry, commit, tmp_path
):
    refs = [commit(name) for name in KINDS]
    engine = make_engine()
    requests = [ask(i, ref, guidance=[5.0, 1.0][i % 2]) for i, ref in enumerate(refs)]
    together = generate(engine, *requests, ask(9))
    assert engine.stats().rows / engine.stats().passes > 4  # they did share passes
    for request, picture in zip(requests, together, strict=False):
        assert_same(generate(engine, request)[0], picture)
        bare = GenerationRequest("bare", request.prompt, seed=request.seed, steps=4)
        assert differs(generate(engine, bare)[0], picture)
    for request, picture in zip(requests, together, strict=False):
        assert_same(plain_diffusers(registry, request, tmp_path / "plain"), picture)


def test_two_adapters_of_different_layers_on_one_picture_equal_their_sum(make_engine, commit):
    one, other = commit("attention"), commit("wide")
    engine = make_engine()
    both, alone, swapped = generate(engine, ask(1, one, other), ask(1, one), ask(1, other, one))
    assert differs(both, alone)
    assert_same(both, swapped)


def test_layers_and_ranks_seen_first_while_pictures_run_are_served_and_no_picture_is_lost(
    make_engine, commit
):
    first = commit("attention")
    engine = make_engine()
    (expected,) = generate(engine, ask(1, first, steps=60))
    running = [engine.submit(ask(1, first, steps=60)), engine.submit(ask(2, first, steps=150))]
    until_s = time.monotonic() + WAIT_S
    while not running[1].progress.step and time.monotonic() < until_s:
        time.sleep(0.002)
    late = [commit(name) for name in KINDS if name != "attention"]
    pictures = generate(engine, *(ask(3, ref, steps=2) for ref in late))
    assert not running[1].ended
    (bare,) = generate(engine, ask(3, steps=2))
    assert all(differs(picture, bare) for picture in pictures)
    assert_same(running[0].result(WAIT_S).pixels, expected)
    running[1].result(WAIT_S)
    assert engine.stats().failed == 0


def test_after_it_stops_the_base_is_as_it_was(make_engine, commit, base):
    before = [type(module) for module in base.components["unet"].modules()]
    engine = make_engine()
    generate(engine, *(ask(i, commit(name)) for i, name in enumerate(KINDS)))
    engine.stop()
    assert [type(module) for module in base.components["unet"].modules()] == before


# -- limits ----------------------------------------------------------------------------------------


def test_adapters_never_take_more_memory_than_their_budget(make_engine, commit):
    refs = [commit("attention", seed) for seed in range(4)]
    engine = make_engine()
    generate(engine, ask(0, refs[0]))
    each = engine.stats().slot_bytes
    engine.stop()
    mib = max(1, int(1.5 * each / 2**20) + 1)
    engine = make_engine(adapter_mib=mib)
    generate(engine, *(ask(i, refs[i % 4], steps=1 + i % 3) for i in range(12)))
    assert 0 < engine.stats().slot_bytes <= mib * 2**20


def test_what_is_over_the_budget_is_refused_with_the_option(make_engine, commit, monkeypatch):
    big, small = commit("high"), commit("attention")
    engine = make_engine()
    slots = engine._adapters.slots
    generate(engine, ask(0, small))
    slots.max_bytes = 1.2 * slots.num_bytes
    with pytest.raises(AdapterFileError, match=r"high-0.*MiB.*engine\.adapter_mib"):
        generate(engine, ask(1, big))
    other = commit("attention", 1)
    with pytest.raises(RequestRefused, match=r"together.*MiB"):
        generate(engine, ask(2, small, other))
    generate(engine, ask(3, other))


def test_an_operator_s_limit_refuses_with_the_option_s_name(make_engine, commit):
    refs = {name: commit(name) for name in ("attention", "wide", "high", "text")}
    engine = make_engine(
        max_rank=16, target_modules=("to_q", "to_k", "to_v", "to_out.0"), text_encoder_modules=()
    )
    generate(engine, ask(0, refs["attention"]))
    for name, option in (
        ("wide", r"engine\.target_modules"),
        ("high", "--max-rank"),
        ("text", "rank 20 .*--max-rank"),
    ):
        with pytest.raises(AdapterFileError, match=option):
            generate(engine, ask(1, refs[name]))
    engine.stop()
    engine = make_engine(text_encoder_modules=())
    with pytest.raises(AdapterFileError, match=r"text-encoder layers.*text_encoder_modules"):
        generate(engine, ask(2, refs["text"]))


def test_more_adapters_on_a_picture_than_the_endpoint_holds_are_refused(make_engine, commit):
    refs = [commit("attention", seed) for seed in range(2)]
    engine = make_engine(num_slots=2)
    with pytest.raises(RequestRefused, match="has room for 1"):
        generate(engine, ask(0, *refs))
    generate(engine, ask(1, refs[1]))
