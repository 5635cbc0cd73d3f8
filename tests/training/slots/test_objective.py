"""The slot trainer equals an independent DreamBooth loop of plain diffusers and peft.

The loop below follows the diffusers example script: one subject at a time, with diffusers'
scheduler objects, peft's layers and torch's AdamW, clip and learning-rate schedules. It shares only
the documented random streams with the trainer, and derives them independently.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import DDPMScheduler
from diffusers.optimization import get_scheduler
from hypothesis import given
from hypothesis import strategies as st
from support.jobs import open_trainer
from support.training.plain_dreambooth import (
    add_peft,
    latents_and_noise,
    loss_of,
    optimizer_of,
    peft_weights,
)
from torch import Tensor
from torch.nn.functional import mse_loss

from farm.adapters.weights import AdapterWeights
from farm.base.interface import Base
from farm.base.loading import load_base
from farm.base.schedules import NoiseSchedule
from farm.recipe import Recipe
from farm.training.slots.job import TrainingJob
from farm.training.slots.objective import min_snr_weights, row_weights, slot_losses
from farm.training.slots.optimizer import learning_rate
from farm.training.slots.random import visit_order

MakeJob = Callable[..., TrainingJob]


def adapted_modules(pipeline: Any, job: TrainingJob) -> dict[str, torch.nn.Module]:
    recipe = job.recipe
    adapted = {"unet": pipeline.unet}
    add_peft(pipeline.unet, "unet", recipe.target_modules, job)
    if recipe.text_encoder_modules:
        adapted["text_encoder"] = pipeline.text_encoder
        add_peft(pipeline.text_encoder, "text_encoder", recipe.text_encoder_modules, job)
    return adapted


def plain_loop(base: Base, job: TrainingJob) -> tuple[AdapterWeights, list[float]]:
    recipe, pipeline = job.recipe, base.pipeline()
    adapted = adapted_modules(pipeline, job)
    scheduler = DDPMScheduler.from_config(pipeline.scheduler.config)
    parameters = [p for module in adapted.values() for p in module.parameters() if p.requires_grad]
    optimizer, rates = optimizer_of(parameters, recipe)
    losses = []
    for step in range(recipe.steps):
        latents, noise, timesteps = latents_and_noise(job, step)
        latents, noise = latents.to(base.dtype), noise.to(base.dtype)
        prompts = [job.instance_tokens.tensors["text_encoder"].expand(recipe.instance_rows, -1)]
        if job.prior is not None:
            tokens = job.prior.tokens.tensors["text_encoder"]
            prompts.append(tokens.expand(recipe.prior_rows, -1))
        hidden = pipeline.text_encoder(torch.cat(prompts))[0]
        noisy = scheduler.add_noise(latents, noise, timesteps)
        prediction = pipeline.unet(
            noisy, timesteps, encoder_hidden_states=hidden, return_dict=False
        )[0]
        if scheduler.config.prediction_type == "epsilon":
            target = noise
        else:
            target = scheduler.get_velocity(latents, noise, timesteps)
        error = mse_loss(prediction, target, reduction="none").mean((1, 2, 3))
        loss = loss_of(error, timesteps, scheduler, job)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, recipe.max_grad_norm)
        optimizer.step()
        rates.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return peft_weights(adapted, recipe), losses


CASES: dict[str, dict[str, object]] = {
    "prior": {"prior_weight": 0.7},
    "no prior": {"prior_rows": 0, "num_prior_images": 0},
    "min-SNR": {"snr_gamma": 5.0},
    "min-SNR, no prior": {"snr_gamma": 5.0, "prior_rows": 0, "num_prior_images": 0},
    "several rows": {"instance_rows": 3, "prior_rows": 2, "noise_offset": 0.1, "rank": 2},
    "cosine, warm-up, tight clip": {
        "learning_rate_schedule": "cosine",
        "warmup_steps": 4,
        "max_grad_norm": 0.05,
    },
    "linear, convolutions": {
        "learning_rate_schedule": "linear",
        "target_modules": ("to_q", "conv1", "proj_in", "ff.net.2"),
    },
    "text encoder": {"text_encoder_modules": ("q_proj", "out_proj")},
}


@pytest.mark.proves("Stable Diffusion 1.x and 2.x", "train")
@pytest.mark.proves("Stable Diffusion 1.x and 2.x", "train text encoders")
@pytest.mark.parametrize("name", ["tiny", "tiny-v"])
@pytest.mark.parametrize("case", CASES)
def test_training_equals_an_independent_diffusers_and_peft_loop(
    make_job: MakeJob, name: str, case: str
) -> None:
    base = load_base(name, dtype=torch.float64)
    job = make_job(base, 4, steps=10, alpha=6.0, weight_decay=0.1, **CASES[case])
    neighbour = make_job(base, 5, steps=40, **CASES[case])
    trainer = open_trainer(
        base,
        num_slots=2,
        max_rank=5,
        instance_rows=job.instance_rows,
        prior_rows=job.prior_rows,
        target_modules=job.recipe.target_modules,
        text_encoder_modules=job.recipe.text_encoder_modules,
    )
    trainer.admit(neighbour)
    slot = trainer.admit(job)
    start = trainer.weights(slot)
    while slot in trainer.active_slots:
        trainer.step()
    found, curve = trainer.weights(slot), trainer.loss_curve(slot)
    trainer.close()

    wanted, losses = plain_loop(load_base(name, dtype=torch.float64), job)
    torch.testing.assert_close(torch.tensor(curve), torch.tensor(losses), rtol=1e-5, atol=1e-6)
    assert found.layers.keys() == wanted.layers.keys()
    for layer_name, layer in wanted.layers.items():
        ours = found.layers[layer_name]
        torch.testing.assert_close(ours.down, layer.down, rtol=1e-4, atol=2e-5)
        torch.testing.assert_close(ours.up, layer.up, rtol=1e-4, atol=2e-5)
        assert (layer.down - start.layers[layer_name].down).abs().max() > 1e-3
        assert layer.up.abs().max() > 1e-3


def schedule(prediction: str, zero_terminal: bool = False) -> NoiseSchedule:
    alphas = torch.linspace(0.9999, 0.0 if zero_terminal else 0.005, 1000)
    return NoiseSchedule.from_alphas(alphas, prediction)  # type: ignore[arg-type]


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_min_snr_weights_are_finite_even_without_any_signal(prediction: str) -> None:
    timesteps = torch.tensor([0, 500, 999])
    weights = min_snr_weights(schedule(prediction, zero_terminal=True), timesteps, 5.0)
    assert torch.isfinite(weights).all()
    assert weights[2] == (1.0 if prediction == "epsilon" else 0.0)
    assert (weights <= 1).all()


def test_min_snr_weights_of_all_predictions_weigh_the_clean_latent_alike() -> None:
    """The same error of the clean latent has the same loss for every prediction type."""
    timesteps = torch.arange(50, 950, 100)
    epsilon, velocity = schedule("epsilon"), schedule("v_prediction")
    signal, sigma = epsilon.signal_N[timesteps], epsilon.sigma_N[timesteps]
    of_epsilon = min_snr_weights(epsilon, timesteps, 5.0) * (signal / sigma) ** 2
    of_velocity = min_snr_weights(velocity, timesteps, 5.0) / sigma**2
    torch.testing.assert_close(of_epsilon, of_velocity)
    flow = NoiseSchedule("flow", 1 - torch.linspace(0, 1, 1000), torch.linspace(0, 1, 1000))
    sigma = flow.sigma_N[timesteps]
    of_flow = min_snr_weights(flow, timesteps, 5.0) / sigma**2
    torch.testing.assert_close(of_flow, flow.snr(timesteps).clamp(max=5.0))


def test_rows_weigh_as_two_means_with_the_priors_lambda() -> None:
    recipe = Recipe(prior_weight=0.5, instance_rows=2, prior_rows=4)
    weights = row_weights(schedule("epsilon"), recipe, torch.zeros(6, dtype=torch.int64), 2)
    assert weights.tolist() == [0.5, 0.5, 0.125, 0.125, 0.125, 0.125]


def test_a_blank_rows_nan_reaches_neither_loss_nor_gradient_of_any_slot() -> None:
    prediction = torch.randn(4, 2, 3, 3, requires_grad=True)
    target, weights = torch.zeros(4, 2, 3, 3), torch.tensor([1.0, 0.0, 0.5, 0.5])
    with torch.no_grad():
        prediction[1] = float("nan")
    losses = slot_losses(prediction, target, weights, 2)
    assert torch.isfinite(losses).all()
    losses.sum().backward()
    assert isinstance(prediction.grad, Tensor)
    assert torch.isfinite(prediction.grad[[0, 2, 3]]).all()


@given(
    seed=st.integers(0, 2**62),
    rows=st.integers(1, 5),
    count=st.integers(1, 12),
    epochs=st.integers(1, 3),
)
def test_every_sample_is_visited_once_an_epoch(
    seed: int, rows: int, count: int, epochs: int
) -> None:
    steps = -(-epochs * count // rows)
    order = [
        index for step in range(steps) for index in visit_order(seed, "photos", step, rows, count)
    ]
    for epoch in range(epochs):
        assert sorted(order[epoch * count : (epoch + 1) * count]) == list(range(count))


@pytest.mark.parametrize("name", ["constant", "cosine", "linear"])
@pytest.mark.parametrize("warmup", [0, 5])
def test_learning_rates_equal_diffusers_schedules(name: str, warmup: int) -> None:
    recipe = Recipe(steps=30, warmup_steps=warmup, learning_rate_schedule=name)
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=recipe.learning_rate)
    rates = get_scheduler(
        "constant_with_warmup" if name == "constant" else name,
        optimizer,
        num_warmup_steps=warmup,
        num_training_steps=30,
    )
    for step in range(30):
        assert learning_rate(recipe, step) == pytest.approx(optimizer.param_groups[0]["lr"])
        optimizer.step()
        rates.step()
