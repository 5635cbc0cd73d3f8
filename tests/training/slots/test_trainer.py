"""Slots train independently of other slots, including their failures and refills."""

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
import torch
from support.jobs import assert_close, assert_same_bits, open_trainer, train_all, train_alone

from farm.base.interface import Base, Conditioning
from farm.base.loading import load_base
from farm.recipe import Recipe
from farm.training.slots.job import TrainingJob

MakeJob = Callable[..., TrainingJob]
WIDE = ("to_q", "to_v", "conv1", "proj_in")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_job_among_seven_others_ends_as_it_does_alone_in_any_slot_and_through_a_refill(
    make_job: MakeJob, dtype: torch.dtype
) -> None:
    base = load_base("tiny", dtype=dtype)
    jobs = [
        make_job(base, 0, steps=9, rank=4, alpha=8.0),
        make_job(base, 1, steps=14, rank=1, learning_rate=3e-3),
        make_job(base, 2, steps=5, rank=2, prior_rows=0, num_prior_images=0),
        make_job(base, 3, steps=11, rank=3, snr_gamma=5.0, learning_rate_schedule="cosine"),
        make_job(base, 4, steps=7, instance_rows=1, prior_weight=0.3, noise_offset=0.1),
        make_job(base, 5, steps=12, instance_rows=2, warmup_steps=3, photos=3),
        make_job(base, 6, steps=6, learning_rate_schedule="linear", max_grad_norm=0.05),
        make_job(base, 7, steps=8, weight_decay=0.3, adam_beta1=0.5),
        make_job(base, 8, steps=9, rank=4),
        make_job(base, 9, steps=5, rank=2),
    ]
    # at least one early step differs between the jobs, so a mix-up would show
    alone = {job.key: train_alone(base, job) for job in jobs}
    shape = {"num_slots": 8, "max_rank": 6, "instance_rows": 2, "prior_rows": 1}
    tolerance = 1e-5 if dtype == torch.float64 else 5e-3
    for order in (jobs, jobs[::-1]):
        trainer = open_trainer(base, **shape)
        together = train_all(trainer, order)
        trainer.close()
        assert together.keys() == alone.keys()
        for key, weights in together.items():
            assert_close(weights, alone[key], tolerance)
    first, last = alone["job-0"], alone["job-8"]
    name = next(iter(first.layers))
    assert (first.layers[name].up - last.layers[name].up).abs().max() > 100 * tolerance / 5


def test_a_job_that_turns_nan_fails_alone_and_its_neighbours_end_bit_equal(
    base: Base, make_job: MakeJob
) -> None:
    healthy = [make_job(base, number, steps=8) for number in range(4)]
    for poison in (float("nan"), float("inf")):
        ends = []
        for sick in (False, True):
            trainer = open_trainer(base, num_slots=5, max_rank=4)
            for job in healthy[:2]:
                trainer.admit(job)
            if sick:
                bad = make_job(base, 9, steps=8)
                bad.instance_moments[2, 0, 0, 0, 0] = poison  # first used after some steps
                trainer.admit(bad, slot=2)
            for slot, job in ((3, healthy[2]), (4, healthy[3])):
                trainer.admit(job, slot=slot)
            failures = []
            while trainer.active_slots:
                failures += trainer.step().failed
            if sick:
                assert [(slot, key) for slot, key, _ in failures] == [(2, "job-9")]
                assert "not finite at step" in failures[0][2]
                assert all(np.isfinite(trainer.loss_curve(2)))
                with pytest.raises(ValueError, match="has failed"):
                    trainer.state(2)
                trainer.release(2)
                assert trainer.free_slots == (2,)
            else:
                assert failures == []
            ends.append([trainer.weights(slot) for slot in (0, 1, 3, 4)])
            curves = [trainer.loss_curve(slot) for slot in (0, 1, 3, 4)]
            ends[-1].append(curves)
            trainer.close()
        for clean, beside in zip(ends[0][:4], ends[1][:4], strict=True):
            assert_same_bits(beside, clean)
        assert ends[0][4] == ends[1][4]


def test_a_failed_slot_trains_its_next_job_as_if_nothing_had_happened(
    base: Base, make_job: MakeJob
) -> None:
    trainer = open_trainer(base, num_slots=2, max_rank=4)
    bad = make_job(base, 9)
    bad.instance_moments[:] = float("nan")
    slot = trainer.admit(bad)
    neighbour = trainer.admit(make_job(base, 1, steps=30))
    assert trainer.step().failed[0][:2] == (slot, "job-9")
    trainer.release(slot)
    job = make_job(base, 2, steps=6)
    assert trainer.admit(job) == slot
    while slot in trainer.active_slots:
        trainer.step()
    after = trainer.weights(slot)
    assert neighbour in trainer.active_slots
    trainer.close()
    assert_close(after, train_alone(base, job), 5e-3)


def test_slots_end_at_their_own_step_counts_and_report_what_is_due(
    base: Base, make_job: MakeJob
) -> None:
    trainer = open_trainer(base, num_slots=3, max_rank=4)
    trainer.admit(make_job(base, 0, steps=3, checkpoint_every=2))
    trainer.admit(make_job(base, 1, steps=6, checkpoint_every=4, sample_every=3))
    reports = [trainer.step() for _ in range(6)]
    assert [report.finished for report in reports] == [
        (), (), ((0, "job-0"),), (), (), ((1, "job-1"),)
    ]  # fmt: skip
    assert [report.due_checkpoint for report in reports] == [(), (0,), (), (1,), (), ()]
    assert [report.due_sample for report in reports] == [(), (), (1,), (), (), ()]
    assert [report.num_active for report in reports] == [2, 2, 2, 1, 1, 1]
    assert len(trainer.loss_curve(0)) == 3
    assert len(trainer.loss_curve(1)) == 6
    assert trainer.seconds(1) > trainer.seconds(0) > 0
    assert trainer.step().num_active == 0


def test_reading_the_device_rarely_changes_only_when_the_host_learns_the_losses(
    base: Base, make_job: MakeJob
) -> None:
    ends = []
    for sync_every in (1, 4):
        trainer = open_trainer(base, num_slots=2, max_rank=4, sync_every=sync_every)
        trainer.admit(make_job(base, 0, steps=7))
        bad = make_job(base, 1, steps=7)
        bad.instance_moments[3] = float("nan")
        trainer.admit(bad)
        reports = []
        while trainer.active_slots:
            reports.append(trainer.step())
        assert sum(len(report.failed) for report in reports) == 1
        ends.append((trainer.weights(0), trainer.loss_curve(0), trainer.loss_curve(1)))
        trainer.close()
    assert_same_bits(ends[0][0], ends[1][0])
    assert ends[0][1:] == ends[1][1:]


def test_a_half_precision_base_trains_float32_adapters_nearly_as_well(make_job: MakeJob) -> None:
    curves = {}
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        base = load_base("tiny", dtype=dtype)
        job = make_job(base, 1, steps=6)
        trainer = open_trainer(base, num_slots=2, max_rank=4)
        slot = trainer.admit(job)
        trainer.admit(make_job(base, 2, steps=6))
        while trainer.active_slots:
            assert not trainer.step().failed
        layer = next(iter(trainer.weights(slot).layers.values()))
        assert layer.up.dtype == torch.float32
        assert layer.up.abs().max() > 1e-3
        curves[dtype] = torch.tensor(trainer.loss_curve(slot))
        trainer.close()
    for dtype in (torch.bfloat16, torch.float16):
        torch.testing.assert_close(curves[dtype], curves[torch.float32], rtol=0.05, atol=0.02)


def test_gradient_checkpointing_gives_the_same_adapter(base: Base, make_job: MakeJob) -> None:
    job = make_job(base, 0, steps=5, target_modules=WIDE)
    plain = train_alone(base, job)
    assert_close(train_alone(base, job, checkpointing=True), plain, 1e-6)
    assert not base.components["unet"].is_gradient_checkpointing


def test_text_encoder_adapters_train_beside_the_denoisers(base: Base, make_job: MakeJob) -> None:
    modules = ("q_proj", "v_proj")
    jobs = [
        make_job(base, number, steps=5 + number, text_encoder_modules=modules, alpha=3.0)
        for number in range(3)
    ]
    alone = {job.key: train_alone(base, job) for job in jobs}
    trainer = open_trainer(
        base, num_slots=3, max_rank=4, text_encoder_modules=modules, instance_rows=2
    )
    before = base.encode_prompts(["a photo of sks thing 0"]).hidden_RTD
    for key, weights in train_all(trainer, jobs).items():
        assert_close(weights, alone[key], 5e-3)
        moved = [
            layer.up.abs().max()
            for name, layer in weights.layers.items()
            if name.startswith("text_encoder.")
        ]
        assert len(moved) == 4
        assert min(moved) > 1e-3
    trainer.close()
    assert torch.equal(base.encode_prompts(["a photo of sks thing 0"]).hidden_RTD, before)


def test_each_photo_trains_on_its_own_caption(base: Base, make_job: MakeJob) -> None:
    plain = make_job(base, 0, steps=6)
    captions = base.encode_prompts([f"sks, place {number}" for number in range(5)])
    captioned = dataclasses.replace(plain, instance_conditioning=captions)
    same = Conditioning(plain.instance_conditioning.hidden_RTD.repeat(5, 1, 1), {})
    repeated = dataclasses.replace(plain, instance_conditioning=same)
    end = train_alone(base, plain)
    assert_same_bits(train_alone(base, repeated), end)
    other = train_alone(base, captioned)
    name = next(name for name in end.layers if "attn2.to_k" in name)
    assert (other.layers[name].up - end.layers[name].up).abs().max() > 1e-4


def test_priors_may_be_read_only_views_of_shared_memory(base: Base, make_job: MakeJob) -> None:
    job = make_job(base, 0, steps=4)
    assert job.prior is not None
    shared = np.asarray(job.prior.moments).copy()
    shared.flags.writeable = False
    from_view = dataclasses.replace(job, prior=dataclasses.replace(job.prior, moments=shared))
    assert_same_bits(train_alone(base, from_view), train_alone(base, job))


def test_a_pass_that_runs_out_of_memory_halfway_leaves_no_trace(
    base: Base, make_job: MakeJob
) -> None:
    job = make_job(base, 0, steps=4)
    calm = train_alone(base, job)
    trainer = open_trainer(base, num_slots=1, max_rank=4)
    trainer.admit(job)
    trainer.step()

    def interrupt(_: object) -> None:
        raise torch.OutOfMemoryError("halfway through the backward pass")

    def hook(_: torch.nn.Module, __: object, output: torch.Tensor) -> None:
        output.register_hook(interrupt)

    handle = base.components["unet"].mid_block.register_forward_hook(hook)
    with pytest.raises(torch.OutOfMemoryError):
        trainer.step()
    handle.remove()
    assert trainer.steps_done(0) == 1
    while trainer.active_slots:
        trainer.step()
    assert_same_bits(trainer.weights(0), calm)


def test_samples_are_generated_for_all_slots_together(base: Base, make_job: MakeJob) -> None:
    trainer = open_trainer(base, num_slots=3, max_rank=4)
    for number in range(2):
        trainer.admit(make_job(base, number, steps=20, learning_rate=0.1))
    for _ in range(5):
        trainer.step()
    images = trainer.sample({0: ["a sks cat", "a dog"], 1: ["a sks cat"]}, [7, 8], steps=3)
    assert {slot: tuple(found.shape) for slot, found in images.items()} == {
        0: (2, 64, 64, 3),
        1: (1, 64, 64, 3),
    }
    alone = trainer.sample({1: ["a sks cat"]}, [7], steps=3)
    assert (alone[1].int() - images[1].int()).abs().max() <= 1
    assert (images[0][0].int() - images[1][0].int()).abs().max() > 3


def test_jobs_that_do_not_fit_the_trainers_shape_are_refused(base: Base, make_job: MakeJob) -> None:
    trainer = open_trainer(base, num_slots=1, max_rank=4)
    for wrong, message in (
        (make_job(base, 0, rank=8), "rank 8"),
        (make_job(base, 0, instance_rows=2), "instance_rows 2"),
        (make_job(base, 0, target_modules=("to_q",)), "other modules"),
    ):
        with pytest.raises(ValueError, match=message):
            trainer.admit(wrong)
    good = make_job(base, 0)
    small = dataclasses.replace(good, instance_moments=good.instance_moments[..., :4])
    with pytest.raises(ValueError, match="latents of shape"):
        trainer.admit(small)
    with pytest.raises(ValueError, match="no prior set"):
        dataclasses.replace(good, prior=None)
    trainer.admit(good)
    with pytest.raises(ValueError, match="no free slot"):
        trainer.admit(make_job(base, 1))


def test_every_recipe_field_that_the_trainer_uses_changes_the_adapter(
    base: Base, make_job: MakeJob
) -> None:
    plain = make_job(base, 0, steps=6)
    end = train_alone(base, plain)
    changes: list[dict[str, object]] = [
        {"steps": 5},
        {"instance_rows": 2},
        {"prior_rows": 2},
        {"prior_weight": 3.0},
        {"alpha": 2.0},
        {"learning_rate": 2e-2},
        {"learning_rate_schedule": "cosine"},
        {"learning_rate_schedule": "linear"},
        {"warmup_steps": 2},
        {"adam_beta1": 0.5},
        {"adam_beta2": 0.9},
        {"adam_epsilon": 1e-2},
        {"weight_decay": 0.5},
        {"max_grad_norm": 1e-3},
        {"snr_gamma": 1.0},
        {"noise_offset": 0.3},
        {"seed": 77},
    ]
    name = next(iter(end.layers))
    for change in changes:
        recipe = Recipe.model_validate({**plain.recipe.model_dump(), **change})
        job = dataclasses.replace(plain, recipe=recipe, seed=recipe.seed)
        moved = train_alone(base, job).layers[name].up - end.layers[name].up
        assert moved.abs().max() > 1e-6, change
