"""Tests of the running batch: requests join, leave and end while others run."""

from concurrent.futures import CancelledError

import numpy as np
import pytest
import torch
from diffusers import PNDMScheduler
from support.engine import WAIT_S, ask, assert_same, generate, wait_for

from farm.base.loading import load_base
from farm.base.random_weights import build_pipeline
from farm.serving.config import EngineConfig
from farm.serving.engine.engine import Engine


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


def test_a_newcomer_joins_a_full_batch_at_once_and_images_that_pause_meanwhile_do_not_change(
    make_engine,
):
    engine = make_engine(batch_rows=2)
    flood = [ask(i, steps=80, guidance=1.0, tenant="flood") for i in range(2)]
    newcomer = ask(9, steps=8, guidance=1.0, tenant="newcomer")
    alone = [generate(engine, request)[0] for request in (*flood, newcomer)]
    engine._shares.count([("flood", 1e6)])
    tickets = [engine.submit(request) for request in flood]
    wait_for(lambda: all(ticket.progress.step > 0 for ticket in tickets))
    ticket = engine.submit(newcomer)
    picture = ticket.result(WAIT_S)
    assert not any(other.ended for other in tickets)
    assert picture.metadata["batch"] == {"mean_rows": 2.0, "largest": 2}  # one of them its own
    steps = sorted(other.progress.step for other in tickets)
    assert steps[1] - steps[0] >= 8  # one of the two has paused
    for one, other in zip([*tickets, ticket], alone, strict=True):
        assert_same(one.result(WAIT_S).pixels, other)


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
