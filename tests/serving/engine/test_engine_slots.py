"""Tests of slots and loads: which adapters an engine holds, and who waits for them."""

import threading

import numpy as np
import pytest
from support.adapters import publish, published, random_weights
from support.engine import WAIT_S, ask, assert_same, generate, plain_diffusers, wait_for

from farm.adapters.registry import Registry
from farm.errors import (
    AdapterFileError,
    AdapterNotFound,
)
from farm.serving.request import AdapterRef
from farm.storage import Store


def test_more_adapters_than_slots_are_served_in_turn(make_engine, committed):
    registry, refs = committed
    engine = make_engine(registry, num_slots=3)
    requests = [ask(i, refs[i % 4], steps=2 + i % 3) for i in range(16)]
    pictures = generate(engine, *requests)
    assert engine.stats().slots_filled == 2
    for request, picture in list(zip(requests, pictures, strict=True))[::3]:
        assert_same(generate(engine, request)[0], picture)


def test_a_request_for_many_slots_is_not_starved_by_small_ones(make_engine, committed):
    registry, refs = committed
    engine = make_engine(registry, num_slots=3, batch_rows=4)
    generate(
        engine, *(ask(i, ref, steps=1) for i, ref in enumerate(refs[:4]))
    )  # no load from here on
    tickets = [engine.submit(ask(i, refs[i % 2])) for i in range(4)]
    large = engine.submit(ask(9, refs[2], refs[3], steps=1))
    tickets += [engine.submit(ask(i, refs[i % 2])) for i in range(4, 28)]
    large.result(WAIT_S)
    assert not all(ticket.ended for ticket in tickets)
    for ticket in tickets:
        ticket.result(WAIT_S)


class Gated:
    """A registry whose fetches wait for a gate."""

    def __init__(self, registry):
        self.registry = registry
        self.gate = threading.Event()
        self.waiting = threading.Event()

    def fetch(self, job_key, local_folder, *, names=None):
        self.waiting.set()
        assert self.gate.wait(WAIT_S)
        return self.registry.fetch(job_key, local_folder, names=names)

    def __getattr__(self, name):
        return getattr(self.registry, name)


def test_nobody_waits_for_another_one_s_load(make_engine, committed):
    registry, refs = committed
    source = Gated(registry)
    engine = make_engine(source, lookahead=1)
    slow = [engine.submit(ask(i, refs[i % 3])) for i in range(6)]
    assert source.waiting.wait(WAIT_S)
    generate(engine, ask(11), ask(12, guidance=1.0))
    assert {ticket.progress.stage for ticket in slow} <= {"queued", "loading"}
    source.gate.set()
    for ticket in slow:
        ticket.result(WAIT_S)


def test_a_request_cancelled_while_its_adapter_loads_lets_others_have_it(make_engine, committed):
    registry, refs = committed
    source = Gated(registry)
    engine = make_engine(source)
    quitter, other = engine.submit(ask(0, refs[0])), engine.submit(ask(1, refs[0]))
    assert source.waiting.wait(WAIT_S)
    quitter.cancel()
    source.gate.set()
    other.result(WAIT_S)
    wait_for(lambda: engine.stats().slots_in_use == 0)


@pytest.mark.parametrize("rank", [8, 2])
def test_adapters_of_any_rank_up_to_the_limit_are_served(make_engine, base, tmp_path, rank):
    registry = Registry(Store(tmp_path / "store"))
    weights = random_weights(base, 0, rank=rank, alpha=3.0, strength=0.3)
    ref = publish(registry, base, weights, tmp_path / "local", "cat")
    (picture,) = generate(make_engine(registry), ask(0, ref))
    assert_same(picture, plain_diffusers(registry, ask(0, ref), tmp_path))


def test_an_adapter_that_does_not_fit_fails_its_own_request_with_the_reason(
    make_engine, base, committed, tmp_path
):
    registry, refs = committed
    big = publish(registry, base, random_weights(base, 9, rank=16), tmp_path / "local", "too-big")
    engine = make_engine(registry)
    bad, text, good = (engine.submit(ask(i, ref)) for i, ref in enumerate((big, refs[4], refs[0])))
    with pytest.raises(AdapterFileError, match="too-big.*rank 16 is above .* 8 .--max-rank"):
        bad.result(WAIT_S)
    with pytest.raises(AdapterFileError, match="text-encoder layers .*text_encoder_modules"):
        text.result(WAIT_S)
    good.result(WAIT_S)
    wait_for(lambda: engine.stats().failed == 2)


def test_an_unknown_adapter_is_not_found(make_engine, committed):
    registry, _ = committed
    ticket = make_engine(registry).submit(ask(0, AdapterRef("f" * 32)))
    with pytest.raises(AdapterNotFound):
        ticket.result(WAIT_S)


def test_an_adapter_committed_while_the_engine_runs_is_generated_with(make_engine, spare, tmp_path):
    registry, _ = published(tmp_path, spare, 0)
    engine = make_engine(registry)
    generate(engine, ask(0))
    ref = publish(registry, spare, random_weights(spare, 1), tmp_path / "local", "new")
    picture, bare = generate(engine, ask(1, ref), ask(1))
    assert np.abs(picture.astype(int) - bare.astype(int)).max() > 2


def test_a_revoked_adapter_is_refused_even_in_mid_generation(make_engine, base, tmp_path):
    registry, (gone, other) = published(tmp_path, base, 2)
    engine = make_engine(registry)
    generating = engine.submit(ask(0, gone, steps=150))
    neighbour = engine.submit(ask(1, other, steps=20))
    wait_for(lambda: generating.progress.step > 0)
    registry.revoke(job_key=gone.key)
    engine.cache.revocations.refresh()
    with pytest.raises(AdapterNotFound):
        generating.result(WAIT_S)
    with pytest.raises(AdapterNotFound):
        engine.submit(ask(2, gone)).result(WAIT_S)
    neighbour.result(WAIT_S)
    wait_for(lambda: engine.stats().slots_filled == 1)
    bank = engine._adapters.bank
    wait_for(lambda: sum(bank.held(slot) is not None for slot in range(9)) == 1)


def test_an_engine_without_a_store_generates_the_bare_base_only(make_engine):
    engine = make_engine()
    generate(engine, ask(0))
    with pytest.raises(AdapterFileError, match="only its base model"):
        engine.submit(ask(1, AdapterRef("f" * 32))).result(WAIT_S)
