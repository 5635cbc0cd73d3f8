"""Tests of what an engine accepts, and how it ends."""

import asyncio
import threading

import pytest
from support.adapters import ATTENTION, TEXT
from support.engine import WAIT_S, ask, generate, wait_for

from farm.errors import (
    Draining,
    RequestRefused,
    TooBusy,
    UserError,
)
from farm.serving.client import generate_with
from farm.serving.config import EngineConfig
from farm.serving.engine.engine import Engine

# -- admission ---------------------------------------------------------------------------------


@pytest.mark.parametrize("fields", [{"width_px": 65}, {"steps": 0}, {"guidance": float("nan")}])
def test_what_cannot_be_generated_is_refused_before_it_queues(make_engine, fields):
    engine = make_engine()
    with pytest.raises(RequestRefused):
        engine.submit(ask(0, **fields))
    assert engine.stats().submitted == 0


def test_a_full_queue_refuses_with_a_time_to_come_back(make_engine):
    engine = make_engine(batch_rows=2, max_waiting=4, lookahead=1)
    tickets = []
    with pytest.raises(TooBusy) as refusal:  # noqa: PT012
        for i in range(100):
            tickets.append(engine.submit(ask(i, steps=50, tenant="greedy")))
    assert refusal.value.retry_after_s >= 1
    tickets.append(engine.submit(ask(200, tenant="modest")))  # below its share
    assert engine.stats().refused == 1
    for ticket in tickets:
        ticket.cancel()


def test_a_deadline_that_cannot_be_met_is_refused_at_once(make_engine):
    engine = make_engine()
    with pytest.raises(TooBusy, match="deadline"):
        engine.submit(ask(0, steps=100, deadline_s=0.001))


def test_images_that_wait_too_long_for_each_other_are_refused_for_good(make_engine):
    engine = make_engine(max_wait_s=1e-9)

    async def first_event():
        requests = [ask(i, steps=150) for i in range(3)]
        await anext(generate_with(engine, requests, listen=True))

    with pytest.raises(RequestRefused, match="3 images would take") as refusal:
        asyncio.run(first_event())
    assert (refusal.value.param, "fewer images" in refusal.value.remedy) == ("n", True)


def test_a_deadline_that_passes_in_the_queue_costs_no_generation(make_engine, monkeypatch):
    engine = make_engine(batch_rows=2, lookahead=1)
    running = [engine.submit(ask(i, steps=150)) for i in range(3)]
    wait_for(lambda: running[0].progress.step > 0)
    # let it in, as if the estimate had been wrong
    monkeypatch.setattr(engine._admission, "_refuse_if_busy", lambda *given: None)
    ticket = engine.submit(ask(9, deadline_s=0.05))
    with pytest.raises(TooBusy, match="deadline passed"):
        ticket.result(WAIT_S)
    for other in running:
        other.cancel()


def test_tenants_take_turns_however_much_one_of_them_asks(make_engine):
    engine = make_engine(batch_rows=2, lookahead=1, quantum=8.0)
    blockers = [engine.submit(ask(i, steps=150)) for i in range(2)]
    wait_for(lambda: engine.stats().preparing + engine._batch.num_ready == 1)
    flood = [engine.submit(ask(i, tenant="flood")) for i in range(12)]
    modest = [engine.submit(ask(i, tenant="modest")) for i in range(3)]
    done = []
    for ticket in flood + modest:
        ticket.future.add_done_callback(lambda _, ticket=ticket: done.append(ticket))
    for ticket in blockers:
        ticket.cancel()
    for ticket in flood + modest:
        ticket.result(WAIT_S)
    assert all(ticket in done[:8] for ticket in modest)


def test_the_backlog_is_told_in_seconds_and_empties(make_engine):
    engine = make_engine()
    tickets = [engine.submit(ask(i, steps=8)) for i in range(8)]
    assert engine.backlog_s > 0
    for ticket in tickets:
        ticket.result(WAIT_S)
    wait_for(lambda: engine.stats().running == 0)
    assert engine.backlog_s == pytest.approx(0, abs=1e-3)


# -- life --------------------------------------------------------------------------------------


def test_the_knee_is_measured_while_it_serves_and_remembered(make_engine, committed):
    registry, _ = committed
    engine = make_engine(registry, batch_rows=None, max_batch_rows=8)
    generate(engine, ask(0))
    assert engine.wait_until_measured(WAIT_S)
    wait_for(lambda: len(engine.capacity.seconds_by_rows) > 1)
    assert 2 <= engine.capacity.rows <= 8
    assert "rows a pass" in engine.capacity.reason
    measured = engine.capacity.seconds_by_rows
    engine.stop()
    again = make_engine(registry, batch_rows=None, max_batch_rows=8)
    assert again.wait_until_measured(0)
    assert again.capacity.seconds_by_rows == measured
    generate(again, ask(0))


def test_draining_finishes_what_was_taken_on_and_refuses_the_rest(make_engine):
    engine = make_engine()
    tickets = [engine.submit(ask(i, steps=10)) for i in range(6)]
    stopper = threading.Thread(target=engine.stop, args=(WAIT_S,))
    stopper.start()
    wait_for(lambda: engine._is_draining)
    with pytest.raises(Draining):
        engine.submit(ask(9))
    stopper.join()
    assert all(ticket.result(0).pixels.shape == (64, 64, 3) for ticket in tickets)


def test_stopping_at_once_ends_every_request(make_engine, committed):
    registry, refs = committed
    engine = make_engine(registry, batch_rows=2)
    tickets = [engine.submit(ask(i, refs[i % 4], steps=150)) for i in range(12)]
    wait_for(lambda: tickets[0].progress.step > 0)
    engine.stop()
    assert all(ticket.ended for ticket in tickets)
    errors = [ticket.future.exception() for ticket in tickets]
    assert all(error is None or isinstance(error, Draining) for error in errors)
    assert any(errors)
    assert not engine.healthy


def test_after_it_stops_the_base_is_as_it_was(make_engine, committed, base):
    registry, refs = committed
    before = [type(module) for module in base.components["unet"].modules()]
    engine = make_engine(registry, text_encoder_modules=TEXT)
    generate(engine, ask(0, refs[4]))
    engine.stop()
    assert [type(module) for module in base.components["unet"].modules()] == before
    with pytest.raises(Draining):
        engine.submit(ask(1))


def test_a_source_without_a_cache_folder_is_refused(base, committed):
    registry, _ = committed
    with pytest.raises(UserError, match="cache folder"):
        Engine(base, registry, EngineConfig(target_modules=ATTENTION))
    Engine(base, None).stop()
