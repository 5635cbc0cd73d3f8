"""AdamW for all slots at once, each with its own rates, moments, clip and bias correction.

Owns the moments [S, P] and the update; the weights belong to the bank. One call runs a few tensor
operations, independent of the number of layers, and never waits for the device.

Legend: S slots, P parameters per slot.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from farm.adapters.bank.bank import Bank
from farm.recipe import Recipe

__all__ = ["SlotAdamW", "SlotUpdate", "learning_rate"]

CLIP_EPSILON = 1e-6
"""As in ``torch.nn.utils.clip_grad_norm_``."""


def learning_rate(recipe: Recipe, step: int) -> float:
    """The learning rate of an update, counted from 0; equals diffusers' ``get_scheduler``."""
    if step < recipe.warmup_steps:
        return recipe.learning_rate * step / recipe.warmup_steps
    progress = (step - recipe.warmup_steps) / max(1, recipe.steps - recipe.warmup_steps)
    if recipe.learning_rate_schedule == "cosine":
        return recipe.learning_rate * max(0.0, 0.5 * (1 + math.cos(math.pi * progress)))
    if recipe.learning_rate_schedule == "linear":
        return recipe.learning_rate * max(0.0, 1 - progress)
    return recipe.learning_rate


@dataclass(frozen=True)
class SlotUpdate:
    """One slot's values for one update; neutral if the slot is not training."""

    active: float = 0.0
    learning_rate: float = 0.0
    decay: float = 1.0
    """Factor on the weights, ``1 - rate · weight_decay``."""
    beta1: float = 1.0
    beta2: float = 1.0
    step_size: float = 0.0
    """Rate over the first moment's bias correction."""
    root_correction2: float = 1.0
    epsilon: float = 1.0
    max_grad_norm: float = 1.0
    text_decay: float = 1.0
    """``decay`` of the text encoders' layers."""
    text_step_size: float = 0.0
    """``step_size`` of the text encoders' layers."""

    @classmethod
    def of(cls, recipe: Recipe, step: int) -> SlotUpdate:
        """The values for the update after ``step`` earlier ones."""
        rate = learning_rate(recipe, step)
        text_rate = rate
        if recipe.text_encoder_learning_rate is not None:
            text_rate = rate * recipe.text_encoder_learning_rate / recipe.learning_rate
        correction1 = 1 - recipe.adam_beta1 ** (step + 1)
        return cls(
            active=1.0,
            learning_rate=rate,
            decay=1 - rate * recipe.weight_decay,
            beta1=recipe.adam_beta1,
            beta2=recipe.adam_beta2,
            step_size=rate / correction1,
            root_correction2=math.sqrt(1 - recipe.adam_beta2 ** (step + 1)),
            epsilon=recipe.adam_epsilon,
            max_grad_norm=recipe.max_grad_norm,
            text_decay=1 - text_rate * recipe.weight_decay,
            text_step_size=text_rate / correction1,
        )

    def row(self) -> tuple[float, ...]:
        """One row of the table that is sent to the device."""
        return (
            self.active,
            self.decay,
            1 - self.beta1,
            self.beta2,
            1 - self.beta2,
            -self.step_size,
            self.root_correction2,
            self.epsilon,
            self.max_grad_norm,
            self.text_decay,
            -self.text_step_size,
        )


class SlotAdamW:
    """Adam's moments of every slot, and the update (Loshchilov & Hutter 2019, as in torch)."""

    def __init__(self, bank: Bank) -> None:
        assert bank.grad_SP is not None, "the bank does not train"
        self.bank = bank
        shape = (bank.num_slots, bank.num_parameters)
        device = bank.flat_ZP.device
        self.first_SP = torch.zeros(shape, dtype=bank.dtype, device=device)
        self.second_SP = torch.zeros(shape, dtype=bank.dtype, device=device)
        self._parts = bank.columns

    def clear_slot(self, slot: int) -> None:
        """Zero a slot's moments."""
        self.first_SP[slot].zero_()
        self.second_SP[slot].zero_()

    @torch.no_grad()
    def step(self, table_SK: Tensor, losses_S: Tensor, loss_scale: float = 1.0) -> Tensor:
        """Clip and apply the bank's gradients, and overwrite them.

        A slot whose loss or gradient is not finite, or that is not active, keeps its weights and
        moments bit for bit.

        Args:
            table_SK: ``SlotUpdate.row`` of every slot, on the device.
            losses_S: this step's losses on the device.
            loss_scale: factor by which the gradients are scaled.

        Returns:
            Gradient norms [S] before clipping, on the device; not finite if a gradient is not.
        """
        gradients = self.bank.grad_SP
        assert gradients is not None
        master = self.first_SP.dtype
        grad_SP = gradients if gradients.dtype == master else gradients.to(master)
        self.bank.unfold_gradients(grad_SP)
        if loss_scale != 1.0:
            grad_SP.mul_(1 / loss_scale)
        norm_S1 = torch.linalg.vector_norm(grad_SP, dim=1, keepdim=True)
        columns = table_SK.to(master).T.unsqueeze(2)  # [K, S, 1]
        active, decay, rest1, beta2, rest2, negative_step, root2, epsilon, max_norm = columns[:9]
        good_S1 = (active > 0) & torch.isfinite(norm_S1) & torch.isfinite(losses_S).unsqueeze(1)
        clip_S1 = (max_norm / (norm_S1 + CLIP_EPSILON)).clamp(max=1.0)

        def where_good(value_S1: Tensor, neutral: float) -> Tensor:
            return torch.where(good_S1, value_S1, neutral)

        moments = (
            where_good(rest1, 0.0),
            where_good(beta2, 1.0),
            where_good(rest2, 0.0),
            root2,
            epsilon,
        )
        weights_SP = self.bank.flat_ZP[: self.bank.num_slots]
        grad_SP.mul_(clip_S1).masked_fill_(~good_S1, 0.0)
        _update_moments(self.first_SP, self.second_SP, grad_SP, moments)
        for part, is_text in self._parts:
            decays, steps = (columns[9], columns[10]) if is_text else (decay, negative_step)
            rates = where_good(decays, 1.0), where_good(steps, 0.0)
            _update_weights(weights_SP[:, part], self.first_SP[:, part], grad_SP[:, part], rates)
        self.bank.refresh()
        norm_S: Tensor = norm_S1.squeeze(1)
        return norm_S


def _update_moments(first: Tensor, second: Tensor, grad: Tensor, factors: Sequence[Tensor]) -> None:
    """Adam's moments without temporaries, which would cost passes over memory.

    Overwrites the gradient with the update's denominator.
    """
    rest1, beta2, rest2, root2, epsilon = factors
    first.lerp_(grad, rest1)
    second.mul_(beta2)
    second.add_(grad.square_().mul_(rest2))
    torch.sqrt(second, out=grad).div_(root2).add_(epsilon)


def _update_weights(
    weights: Tensor, first: Tensor, denominator: Tensor, rates: tuple[Tensor, Tensor]
) -> None:
    """AdamW's step with decoupled decay; overwrites the denominator."""
    decay, negative_step = rates
    weights.mul_(decay)
    weights.add_(torch.div(first, denominator, out=denominator).mul_(negative_step))
