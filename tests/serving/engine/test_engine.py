"""Tests of the engine: a picture depends only on its request, not on the rest of the batch.

Tolerance: the same request alone, in a full batch, and by plain diffusers with the adapter
loaded gives the same uint8 picture but for single levels (matrix products of other shapes round
differently): no value differs by more than 2 of 255, and the mean difference is under 0.05.
"""

import numpy as np
import pytest
from support.adapters import TEXT, publish, random_weights
from support.engine import WAIT_S, ask, assert_same, generate, plain_diffusers, various

from farm.adapters.registry import Registry
from farm.errors import (
    AdapterFileError,
)
from farm.serving.request import GenerationRequest
from farm.storage import Store


def test_a_picture_is_the_same_alone_and_in_a_full_batch(make_engine, committed):
    registry, refs = committed
    requests = various(refs)
    engine = make_engine(registry, text_encoder_modules=TEXT)
    together = generate(engine, *requests)
    assert engine.stats().rows / engine.stats().passes > 4  # they did share passes
    for request, picture in zip(requests, together, strict=True):
        (alone,) = generate(engine, request)
        assert_same(alone, picture)


@pytest.mark.parametrize("number", range(14))
def test_a_picture_is_what_plain_diffusers_generates(make_engine, committed, tmp_path, number):
    registry, refs = committed
    request = various(refs)[number]
    (picture,) = generate(make_engine(registry, text_encoder_modules=TEXT), request)
    assert_same(picture, plain_diffusers(registry, request, tmp_path))


def test_two_adapters_with_weights_are_what_plain_diffusers_generates(
    make_engine, committed, tmp_path
):
    registry, refs = committed
    pairs = ((refs[0], 0.6), (refs[4], 0.8))
    request = GenerationRequest("two", "a cat", seed=5, steps=4, adapters=pairs)
    engine = make_engine(registry, text_encoder_modules=TEXT)
    picture, one, _ = generate(engine, request, ask(5, refs[0]), ask(6))
    expected = plain_diffusers(registry, request, tmp_path)
    assert_same(picture, expected)
    assert np.abs(one.astype(int) - expected.astype(int)).max() > 5


def test_a_weight_of_zero_is_the_bare_base(make_engine, committed):
    registry, refs = committed
    request = GenerationRequest("zero", "a cat", seed=5, steps=4, adapters=((refs[0], 0.0),))
    engine = make_engine(registry)
    without, bare = generate(engine, request, GenerationRequest("bare", "a cat", seed=5, steps=4))
    assert_same(without, bare)


def test_another_adapter_prompt_or_seed_gives_another_picture(make_engine, committed):
    registry, refs = committed
    engine = make_engine(registry)
    pictures = generate(
        engine,
        ask(1, refs[0]),
        ask(1, refs[1]),
        ask(1),
        ask(2, refs[0]),
        ask(1, refs[0], prompt="something else entirely"),
        ask(1, refs[0], negative_prompt="something else entirely"),
        ask(1, refs[0], guidance=9.0),
    )
    for i, picture in enumerate(pictures):
        for other in pictures[i + 1 :]:
            assert np.abs(picture.astype(int) - other.astype(int)).max() > 2


def test_text_layers_change_how_the_prompt_is_read_and_are_remembered(make_engine, committed):
    registry, refs = committed
    engine = make_engine(registry, text_encoder_modules=TEXT)
    generate(engine, ask(1, refs[4]), ask(2, refs[4]), ask(1, refs[5]), ask(1, refs[0]))
    # two texts (prompt, negative) for each of two text adapters and for all the others together
    assert engine.stats().prompts_encoded == 6
    assert engine.stats().prompt_hits == 2


def test_an_adapter_that_generates_infinities_spoils_its_own_pictures_only(
    make_engine, base, committed, tmp_path
):
    _, refs = committed
    registry = Registry(Store(tmp_path / "store"))
    wild = publish(
        registry, base, random_weights(base, 0, strength=1e30), tmp_path / "local", "wild"
    )
    good = publish(registry, base, random_weights(base, 1), tmp_path / "local", "good")
    engine = make_engine(registry)
    (alone,) = generate(engine, ask(1, good))
    tickets = [engine.submit(ask(1, ref)) for ref in (wild, good, wild)]
    assert_same(tickets[1].result(WAIT_S).pixels, alone)
    for ticket in (tickets[0], tickets[2]):
        with pytest.raises(AdapterFileError, match="wild.*not finite"):
            ticket.result(WAIT_S)


def test_sizes_share_the_machine_and_keep_their_shapes(make_engine, committed):
    registry, refs = committed
    engine = make_engine(registry)
    sizes = [(64, 64), (96, 64), (64, 128), (64, 64), (96, 64)]
    requests = [
        ask(i, refs[i % 4], width_px=width, height_px=height)
        for i, (width, height) in enumerate(sizes)
    ]
    pictures = generate(engine, *requests)
    assert [picture.shape for picture in pictures] == [(h, w, 3) for w, h in sizes]
    for request, picture in zip(requests, pictures, strict=True):
        assert_same(generate(engine, request)[0], picture)
