"""Training the base: resumable, deterministic, and ending in plain folders."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file

from farm.base.embedded.checkpoint import load_checkpoint, save_checkpoint
from farm.base.embedded.dataset import batch_at, render_dataset, scenes_of
from farm.base.embedded.denoiser import (
    MIDDLE_TIMESTEPS,
    NUM_TRAIN_TIMESTEPS,
    DenoiserPlan,
    LatentSet,
    build_schedule,
    sample_timesteps,
)
from farm.base.embedded.folder import text_tower
from farm.base.embedded.identifiers.training import LegibilityPlan
from farm.base.embedded.scorer import build_scorer, contrastive_loss
from farm.base.embedded.tokenizer import build_tokenizer
from farm.base.embedded.train import DOCUMENTED_MINUTES, TrainingPlan, train_embedded
from farm.base.embedded.vae import build_vae, measure_psnr, one_cycle, standardize

SMALL = TrainingPlan(
    num_pictures=32,
    num_held_out=8,
    num_scorer_steps=1,
    num_more_scorer_steps=1,
    num_vae_steps=1,
    num_decoder_steps=1,
    denoiser=DenoiserPlan(num_steps=2, batch_size=4, checkpoint_every=1),
    identifiers=LegibilityPlan(num_steps=1, batch_size=2),
    num_sampling_steps=1,
)


@pytest.mark.slow
def test_an_interrupted_training_resumes_and_ends_like_an_uninterrupted_one(tmp_path):
    whole = train_embedded(tmp_path / "whole", plan=SMALL)
    halted = tmp_path / "halted"
    shutil.copytree(tmp_path / "whole", halted, ignore=shutil.ignore_patterns("weights"))
    (halted / "stages" / "denoiser.safetensors").unlink()
    for stage in ("scorer-refined", "vae-refined"):
        (halted / "stages" / stage / "config.json").unlink()
    again = train_embedded(halted, plan=SMALL)
    name = Path("unet/diffusion_pytorch_model.safetensors")
    first, second = load_file(whole / name), load_file(again / name)
    assert all(torch.allclose(first[key], second[key], atol=1e-3) for key in first)
    StableDiffusionPipeline.from_pretrained(again)


def test_a_checkpoint_gives_weights_moments_average_and_step_back(tmp_path):
    def parts():
        module = torch.nn.Linear(3, 2)
        optimizer = torch.optim.AdamW(module.parameters())
        module(torch.ones(1, 3)).sum().backward()
        optimizer.step()
        return module, optimizer, {"weight": torch.randn(2, 3)}

    module, optimizer, average = parts()
    other, other_optimizer, other_average = parts()
    path = tmp_path / "state.safetensors"
    assert load_checkpoint(path, other, other_optimizer) == 0
    save_checkpoint(path, 17, module, optimizer, average)
    assert load_checkpoint(path, other, other_optimizer, other_average) == 17
    assert torch.equal(other.weight, module.weight)
    assert torch.equal(other_average["weight"], average["weight"])
    mine, theirs = optimizer.state[module.weight], other_optimizer.state[other.weight]
    assert all(torch.equal(mine[key], theirs[key]) for key in ("step", "exp_avg", "exp_avg_sq"))
    assert not path.with_suffix(".partial").exists()


def test_a_batch_depends_only_on_its_seed_and_step():
    album = np.arange(20, dtype=np.uint8)[:, None, None, None] * np.ones((1, 2, 2, 3), np.uint8)
    assert np.array_equal(batch_at(album, 1, 5, 4), batch_at(album, 1, 5, 4))
    assert not np.array_equal(batch_at(album, 1, 5, 4), batch_at(album, 1, 6, 4))


def test_no_true_pair_is_pushed_apart():
    logits = torch.zeros(3, 3, requires_grad=True)
    is_true = torch.tensor([[1, 1, 0], [1, 1, 0], [0, 0, 1]], dtype=torch.bool)
    contrastive_loss(logits, is_true).backward()
    assert (logits.grad[is_true] < 0).all()
    assert (logits.grad[~is_true] > 0).all()


def test_standardizing_changes_latents_and_no_picture():
    torch.manual_seed(0)
    vae = build_vae().eval()
    album = render_dataset(5, 128)
    before = measure_psnr(vae, album[:16])
    with torch.no_grad():
        standardize(vae, album)
        assert measure_psnr(vae, album[:16]) == pytest.approx(before, abs=0.05)
        latents = torch.cat([encode(vae, album[:64]), encode(vae, album[64:])])
    assert latents.mean((0, 2, 3)).abs().max() < 1e-3
    assert (latents.std((0, 2, 3)) - 1).abs().max() < 1e-3


def encode(vae, album):
    from farm.base.embedded.vae import to_unit

    return vae.encode(to_unit(album)).latent_dist.mean


def test_the_rates_rise_stay_and_fall():
    plan = DenoiserPlan(num_steps=1000, num_warmup_steps=100, decay_share=0.3, learning_rate=1.0)
    assert plan.rate_at(0) < plan.rate_at(50) < plan.rate_at(100) == 1.0
    assert plan.rate_at(699) == 1.0
    assert plan.rate_at(850) == pytest.approx(0.5)
    assert plan.rate_at(999) < 0.01
    assert one_cycle(5, 100) > one_cycle(0, 100)
    assert one_cycle(99, 100) == pytest.approx(0.01, abs=1e-3)


def test_the_end_of_the_noise_schedule_is_noise():
    assert build_schedule().alphas_cumprod[-1].sqrt() < 0.02


def test_half_of_the_rows_learn_in_the_middle_and_half_cover_the_schedule():
    timesteps = sample_timesteps(32, torch.Generator().manual_seed(1))
    start, end = MIDDLE_TIMESTEPS
    for part, low, high in ((timesteps[:16], 0, NUM_TRAIN_TIMESTEPS), (timesteps[16:], start, end)):
        edges = torch.linspace(low, high, 17)
        assert all(edges[i] - 1 <= part[i] < edges[i + 1] for i in range(16))
    (alone,) = sample_timesteps(1, torch.Generator().manual_seed(1)).tolist()
    assert 0 <= alone < NUM_TRAIN_TIMESTEPS


def test_hard_classes_are_shown_more_often(tmp_path):
    scenes = scenes_of(3, 200)
    tokenizer = build_tokenizer(tmp_path)
    places = torch.arange(200.0)[:, None, None, None]
    data = LatentSet(places, scenes, tokenizer, text_tower(build_scorer(tokenizer)))
    plan = DenoiserPlan(batch_size=400, hard_nouns=("fish",), hard_share=0.5)
    hard = data.places_of(("fish",))
    assert hard
    assert all(scenes[place].class_noun == "fish" for place in hard)
    rows, _ = data.sample(plan, hard, 7)
    share = np.mean([scenes[int(place)].class_noun == "fish" for place in rows.flatten()])
    assert 0.5 < share < 0.65
    again, _ = data.sample(plan, hard, 7)
    assert torch.equal(rows, again)


def test_a_budget_scales_the_steps():
    plan = TrainingPlan().scaled(DOCUMENTED_MINUTES / 10)
    assert plan.denoiser.num_steps == round(TrainingPlan().denoiser.num_steps / 10)
