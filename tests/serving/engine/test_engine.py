"""Tests of the engine: a picture depends only on its request, not on the rest of the batch.

Tolerance: the same request alone, in a full batch, and by plain diffusers with the adapter
loaded gives the same uint8 picture but for single levels (matrix products of other shapes round
differently): no value differs by more than 2 of 255, and the mean difference is under 0.05.
"""

import threading
import time
from concurrent.futures import CancelledError

import numpy as np
import pytest
import torch
from diffusers import PNDMScheduler
from support.adapters import ATTENTION, TEXT, publish, published, random_weights

from farm.adapters.registry import Registry
from farm.base.loading import load_base
from farm.base.random_weights import build_pipeline
from farm.errors import (
    AdapterFileError,
    AdapterNotFound,
    Draining,
    FarmError,
    RequestRefused,
    TooBusy,
    UserError,
)
from farm.schedulers import SCHEDULERS
from farm.serving.config import EngineConfig
from farm.serving.engine.engine import Engine
from farm.serving.engine.row import Row
from farm.serving.request import AdapterRef, GenerationRequest
from farm.storage import Store

WAIT_S = 120


@pytest.fixture(scope="module")
def base():
    return load_base("tiny")


@pytest.fixture(scope="module")
def spare():
    """The same base once more, to make adapters with while an engine holds the other."""
    return load_base("tiny")


@pytest.fixture(scope="module")
def committed(tmp_path_factory, base):
    """Six adapters in a store, two of them with text-encoder layers."""
    folder = tmp_path_factory.mktemp("committed")
    registry, refs = published(folder, base, 4)
    for seed in (4, 5):
        weights = random_weights(base, seed, alpha=2.0, text=True)
        refs.append(publish(registry, base, weights, folder / "local", f"cat-{seed}"))
    return registry, refs


@pytest.fixture
def make_engine(tmp_path, base):
    """Opens engines one after another; a base carries one at a time."""
    opened = []

    def make(source=None, *, start=True, **options):
        settings = {"num_slots": 9, "max_rank": 8, "batch_rows": 8, "text_encoder_modules": ()}
        settings |= options
        engine = Engine(base, source, EngineConfig(**settings), cache_folder=tmp_path / "disk")
        opened.append(engine)
        if start:
            engine.start()
        return engine

    yield make
    for engine in opened:
        engine.stop()


def ask(number, *adapters, **fields):
    fields = {"prompt": "a photo of a cat", "seed": number, "steps": 4, **fields}
    return GenerationRequest(
        id=str(number), adapters=tuple((ref, 1.0) for ref in adapters), **fields
    )


def generate(engine, *requests):
    tickets = [engine.submit(request) for request in requests]
    return [ticket.result(WAIT_S).pixels for ticket in tickets]


def assert_same(picture, other):
    difference = np.abs(picture.astype(int) - other.astype(int))
    assert difference.max() <= 2
    assert difference.mean() < 0.05


def wait_for(claim):
    deadline_s = time.monotonic() + WAIT_S
    while not claim():
        assert time.monotonic() < deadline_s, "it did not happen"
        time.sleep(0.002)


def various(refs):
    """Requests that differ in all that a request may differ in, of one size."""
    return [
        ask(
            i,
            *([] if i % 7 == 6 else [refs[i % len(refs)]]),
            prompt=f"a photo of a cat, {'in space ' * (i % 3)}",
            negative_prompt="blurry" if i % 4 == 1 else "",
            steps=3 + i % 5,
            guidance=[1.0, 3.0, 7.5][i % 3],
            scheduler=SCHEDULERS[i % len(SCHEDULERS)],
            tenant=f"tenant-{i % 2}",
        )
        for i in range(14)
    ]


# -- a picture depends on its request alone ----------------------------------------------------


def test_a_picture_is_the_same_alone_and_in_a_full_batch(make_engine, committed):
    registry, refs = committed
    requests = various(refs)
    engine = make_engine(registry, text_encoder_modules=TEXT)
    together = generate(engine, *requests)
    assert engine.stats().rows / engine.stats().passes > 4  # they did share passes
    for request, picture in zip(requests, together, strict=True):
        (alone,) = generate(engine, request)
        assert_same(alone, picture)


def plain_diffusers(registry, request, tmp_path):
    """The picture that a plain pipeline generates with the adapters loaded."""
    base = load_base("tiny")
    pipeline = base.pipeline()
    names, weights = [], []
    for i, (ref, weight) in enumerate(request.adapters):
        registry.fetch(ref.key, tmp_path / ref.key)
        pipeline.load_lora_weights(tmp_path / ref.key, adapter_name=f"a{i}")
        names.append(f"a{i}")
        weights.append(weight)
    if names:
        pipeline.set_adapters(names, weights)
    pipeline.scheduler = base.scheduler(request.scheduler)
    picture = pipeline(
        request.prompt,
        negative_prompt=request.negative_prompt,
        num_inference_steps=request.steps,
        guidance_scale=request.guidance,
        width=request.width_px or base.resolution_px,
        height=request.height_px or base.resolution_px,
        generator=torch.Generator("cpu").manual_seed(request.seed),
        output_type="np",
    ).images[0]
    return (picture * 255).round().astype(np.uint8)


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


# -- the running batch -------------------------------------------------------------------------


def test_requests_join_and_leave_while_others_run(make_engine):
    engine = make_engine()
    long = engine.submit(ask(0, steps=150))
    wait_for(lambda: long.progress.step > 0)
    generate(engine, ask(1, steps=2))
    assert not long.ended
    metadata = long.result(WAIT_S).metadata
    assert metadata["batch"]["largest"] == 4
    assert 2 < metadata["batch"]["mean_rows"] < 4


def test_no_pass_is_larger_than_the_limit(make_engine):
    engine = make_engine(batch_rows=4)
    tickets = [engine.submit(ask(i, guidance=[1.0, 5.0][i % 2])) for i in range(9)]
    assert max(t.result(WAIT_S).metadata["batch"]["largest"] for t in tickets) <= 4


def test_guidance_of_one_costs_no_unconditional_row(make_engine):
    engine = make_engine()
    ticket = engine.submit(ask(0, guidance=1.0))
    assert ticket.result(WAIT_S).metadata["batch"]["largest"] == 1
    assert engine.stats().prompts_encoded == 1


def test_a_cancelled_request_leaves_within_a_step_and_others_go_on(make_engine):
    engine = make_engine()
    doomed, other = engine.submit(ask(0, steps=150)), engine.submit(ask(1, steps=20))
    wait_for(lambda: doomed.progress.step > 0)
    row = next(row for row in engine._batch if row.ticket is doomed)
    assert doomed.cancel()
    step = row.sampler.step
    with pytest.raises(CancelledError):
        doomed.result(WAIT_S)
    other.result(WAIT_S)
    wait_for(lambda: engine.stats().cancelled == 1)
    assert row.sampler.step <= step + 1
    wait_for(lambda: engine.stats().generated == 1)


def test_a_request_cancelled_while_it_waits_never_begins(make_engine):
    engine = make_engine(batch_rows=2)
    running = engine.submit(ask(0, steps=30))
    waiting = [engine.submit(ask(i)) for i in range(1, 8)]
    for ticket in waiting:
        ticket.cancel()
    running.result(WAIT_S)
    wait_for(lambda: engine.stats().cancelled == 7)
    wait_for(lambda: engine.stats().generated == 1)


def test_progress_and_previews_are_told(make_engine):
    engine = make_engine()
    ticket, heard = engine.submit(ask(0, steps=20, preview_every=4)), []
    ticket.listen(heard.append)
    picture = ticket.result(WAIT_S).pixels
    stages = [progress.stage for progress in heard]
    assert stages.index("decoding") > stages.index("denoising")
    assert stages[-1] == "done"
    previews = [progress.preview for progress in heard if progress.preview is not None]
    assert previews
    assert all(preview.shape == picture.shape for preview in previews)


def test_a_base_with_stable_diffusion_1_s_own_scheduler_generates_what_diffusers_generates(
    tmp_path,
):
    pipeline = build_pipeline("tiny", seed=3)
    pipeline.scheduler = PNDMScheduler.from_config(pipeline.scheduler.config, skip_prk_steps=True)
    pipeline.save_pretrained(tmp_path / "base")
    previews = []
    with Engine(load_base(str(tmp_path / "base")), None, EngineConfig(batch_rows=8)) as engine:
        ticket = engine.submit(ask(0, steps=12, preview_every=3))
        ticket.listen(lambda progress: previews.append(progress.preview))
        other = engine.submit(ask(1, steps=5))
        picture, _ = ticket.result(WAIT_S).pixels, other.result(WAIT_S)
    image = pipeline(
        "a photo of a cat",
        num_inference_steps=12,
        guidance_scale=ask(0).guidance,
        generator=torch.Generator("cpu").manual_seed(0),
        output_type="np",
    ).images[0]
    assert_same(picture, (image * 255).round().astype(np.uint8))
    last = [preview for preview in previews if preview is not None][-1]
    # what is believed of the picture near the end is nearly the picture
    assert np.abs(last.astype(int) - picture.astype(int)).mean() < 8


def test_the_receipt_notes_the_end_of_a_prompt_that_is_not_read(make_engine, base):
    engine = make_engine()
    long = "a red ball on a blue table, " * 3 + "a cat"
    receipts = [
        engine.submit(ask(1, prompt=prompt, steps=1, negative_prompt="blurry"))
        .result(WAIT_S)
        .metadata
        for prompt in ("a cat", long)
    ]
    assert receipts[0]["notes"] == []
    (note,) = receipts[1]["notes"]
    assert note.startswith(f"prompt: the model reads {base.memory.tokens} tokens")
    assert note.endswith(base.unread(long))
    assert base.unread(long).endswith("a cat")


def test_the_receipt_says_what_made_the_picture(make_engine, committed, base):
    registry, refs = committed
    engine = make_engine(registry)
    for tier in ("store", "model"):
        metadata = engine.submit(ask(7, refs[2], steps=3)).result(WAIT_S).metadata
        (adapter,) = metadata["adapters"]
        assert adapter["found_in"] == tier
    assert adapter["key"] == refs[2].key
    assert adapter["sha256"] == refs[2].sha256
    assert metadata["base_fingerprint"] == base.fingerprint
    assert (metadata["seed"], metadata["steps"], metadata["width_px"]) == (7, 3, 64)
    assert metadata["seconds"]["total"] >= metadata["seconds"]["denoise"] > 0


# -- slots and loads ---------------------------------------------------------------------------


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


# -- faults ------------------------------------------------------------------------------------


def test_running_out_of_memory_halves_the_pass_and_loses_no_picture(make_engine, monkeypatch):
    engine = make_engine(batch_rows=16)
    (expected,) = generate(engine, ask(3))
    original = engine.base.denoise

    def small_device(latents, timesteps, conditioning):
        if len(latents) > 4:
            raise torch.OutOfMemoryError("pretend")
        return original(latents, timesteps, conditioning)

    monkeypatch.setattr(engine.base, "denoise", small_device)
    pictures = generate(engine, *(ask(i, steps=10 if i != 3 else 4) for i in range(8)))
    assert_same(pictures[3], expected)
    assert engine.stats().out_of_memory >= 1


def test_a_picture_that_fits_not_even_alone_is_given_up(make_engine, monkeypatch):
    engine = make_engine()

    def no_device(*given):
        raise torch.OutOfMemoryError("pretend")

    monkeypatch.setattr(engine.base, "denoise", no_device)
    with pytest.raises(TooBusy, match="memory"):
        engine.submit(ask(0)).result(WAIT_S)


def test_a_pass_that_fails_takes_down_only_the_row_at_fault(make_engine, monkeypatch):
    engine = make_engine()
    original = engine.base.denoise

    def picky(latents, timesteps, conditioning):
        if bool((timesteps < 300).any()) and len(latents) % 2:
            raise RuntimeError("an odd pass")
        return original(latents, timesteps, conditioning)

    monkeypatch.setattr(engine.base, "denoise", picky)
    odd, even = engine.submit(ask(0, guidance=1.0, steps=12)), engine.submit(ask(1, steps=12))
    with pytest.raises(FarmError, match="could not be generated"):
        odd.result(WAIT_S)
    assert even.result(WAIT_S).pixels.shape == (64, 64, 3)


def test_a_lost_device_is_told_so_that_another_engine_is_started(make_engine, monkeypatch):
    engine = make_engine()
    generate(engine, ask(0))
    assert engine.healthy

    def lost(*_):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(engine.base, "denoise", lost)
    with pytest.raises(FarmError, match="could not be generated"):
        engine.submit(ask(1)).result(WAIT_S)
    assert not engine.healthy


def test_a_device_lost_while_prompts_are_encoded_is_told_too(make_engine, monkeypatch):
    engine = make_engine()

    def lost(*_):
        raise RuntimeError("CUDA error: unspecified launch failure")

    monkeypatch.setattr(engine.base, "encode_prompts", lost)
    with pytest.raises(FarmError, match="could not be prepared"):
        engine.submit(ask(0, prompt="never asked before")).result(WAIT_S)
    wait_for(lambda: not engine.healthy)


def test_a_picture_that_cannot_be_delivered_fails_alone(make_engine, monkeypatch):
    engine = make_engine()
    whole = Row.metadata

    def broken(row, *arguments):
        if row.request.seed == 13:
            raise KeyError("a fault of ours")
        return whole(row, *arguments)

    monkeypatch.setattr(Row, "metadata", broken)
    tickets = [
        engine.submit(GenerationRequest(id=str(seed), prompt="a cat", steps=2, seed=seed))
        for seed in (12, 13, 14)
    ]
    for ticket in (tickets[0], tickets[2]):
        assert ticket.result(WAIT_S).pixels.shape == (64, 64, 3)
    with pytest.raises(FarmError, match="could not be delivered"):
        tickets[1].result(WAIT_S)
    assert engine.healthy
    wait_for(lambda: engine.stats().generated == 2 and engine.stats().failed == 1)
