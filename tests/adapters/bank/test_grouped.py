"""Grouped products: one input read once, scales folded, and a Triton kernel equal to the products.

The kernel runs in Triton's interpreter where there is no GPU; without Triton its test is skipped.
"""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch import Tensor

from farm.adapters.bank.bank import Bank
from farm.adapters.bank.grouped import LinearParts, grouped_linear
from farm.adapters.bank.kernels import why_unavailable
from farm.adapters.weights import AdapterWeights, LayerWeights
from farm.base.conditioning import Conditioning
from farm.base.interface import Base
from farm.base.loading import load_base

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
SLOTS, POSITIONS, INPUTS, RANK = 3, 5, 24, 4


def randn(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_layers_of_one_input_equal_layers_computed_one_by_one() -> None:
    widths = (16, 8, 32)
    x = randn(SLOTS * POSITIONS, INPUTS, seed=0).requires_grad_()
    down = randn(SLOTS, INPUTS, 3 * RANK, seed=1).requires_grad_()
    factor = randn(SLOTS, 1, 1, seed=2)
    parts = [
        LinearParts(
            randn(width, INPUTS, seed=10 + i),
            randn(width, seed=20 + i) if i else None,
            randn(SLOTS, RANK, width, seed=30 + i).requires_grad_(),
        )
        for i, width in enumerate(widths)
    ]
    leaves = [x, down, *(part.up_SrO for part in parts)]
    outputs = grouped_linear(x, parts, down, factor)
    found = torch.autograd.grad(sum((y**2).sum() for y in outputs), leaves)

    x_SNI = x.view(SLOTS, POSITIONS, INPUTS)
    expected = [
        torch.nn.functional.linear(x_SNI, part.weight_OI, part.bias_O)
        + (x_SNI @ down[:, :, i * RANK : (i + 1) * RANK] * factor) @ part.up_SrO
        for i, part in enumerate(parts)
    ]
    wanted = torch.autograd.grad(sum((y**2).sum() for y in expected), leaves)
    for ours, theirs in zip((*outputs, *found), (*expected, *wanted), strict=True):
        torch.testing.assert_close(ours.reshape(theirs.shape), theirs)


def adapter(bank: Bank, seed: int, alpha: float, *, uneven: bool = False) -> AdapterWeights:
    bank.init_slot(0, RANK, alpha, seed)
    layers = bank.slot_weights(0).layers
    bank.clear_slot(0)
    generator = torch.Generator().manual_seed(seed)
    filled = {
        name: LayerWeights(one.down, torch.randn(one.up.shape, generator=generator) / 8)
        for name, one in layers.items()
    }
    alphas = {name: alpha * (1 + i % 3 * uneven) for i, name in enumerate(filled)}
    return AdapterWeights(filled, alphas)


@pytest.fixture
def shared(monkeypatch: pytest.MonkeyPatch) -> None:
    """The layout of GPUs: the projections of one input share a block."""
    monkeypatch.setattr("farm.adapters.bank.bank.shares_inputs", lambda device: True)


@pytest.mark.usefixtures("shared")
@pytest.mark.parametrize("uneven", [False, True])
def test_a_scale_that_is_part_of_the_weights_gives_the_gradients_of_one_that_is_not(
    uneven: bool,
) -> None:
    """Layers that read a copy in another dtype read it scaled; others multiply hidden values."""
    base = load_base("tiny", dtype=torch.float64)
    generator = torch.Generator().manual_seed(3)
    latents = torch.randn(2, 4, 8, 8, generator=generator, dtype=base.dtype)
    hidden = torch.randn(2, 5, 16, generator=generator, dtype=base.dtype)
    found = []
    for dtype in (torch.float64, torch.float32):
        bank = Bank(
            base, num_slots=2, max_rank=RANK, target_modules=ATTENTION, trainable=True, dtype=dtype
        )  # fmt: skip
        weights = [adapter(bank, 0, 12.0, uneven=uneven), adapter(bank, 1, 4.0)]
        for slot, one in enumerate(weights):
            bank.set_slot(slot, one)
        assert bank.scale_kinds[0] == (dtype == base.dtype)
        for refreshed in (False, True):
            if refreshed:  # as after an update
                bank.refresh()
            with bank.route_grouped(1):
                output = base.denoise(latents, torch.tensor([10, 500]), Conditioning(hidden, {}))
            bank.backward(output.square().sum())
            with torch.no_grad(), bank.route(torch.tensor([0, 1])):
                gathered = base.denoise(latents, torch.tensor([10, 500]), Conditioning(hidden, {}))
            torch.testing.assert_close(gathered, output, rtol=1e-9, atol=1e-9)
            assert bank.grad_SP is not None
            gradients = bank.grad_SP.clone()
            bank.unfold_gradients(gradients)
            found.append((output.detach(), gradients))
        bank.close()
    for other in found[1:]:
        for ours, theirs in zip(other, found[0], strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_attentions_that_read_an_input_once_train_like_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also with only some of the projections, with uneven scales, and after the bank is closed."""
    base = load_base("tiny", dtype=torch.float64)
    attentions = [m for m in base.components["unet"].modules() if hasattr(m, "processor")]
    before = [attention.processor for attention in attentions]
    for targets in (ATTENTION, ("to_q", "to_v")):
        found = []
        for shares in (False, True):
            monkeypatch.setattr("farm.adapters.bank.bank.shares_inputs", lambda _, it=shares: it)
            bank = Bank(
                base, num_slots=2, max_rank=RANK, target_modules=targets, trainable=True,
                dtype=torch.float64,
            )  # fmt: skip
            weights = [adapter(bank, 0, 12.0, uneven=True), adapter(bank, 1, 4.0)]
            for slot, one in enumerate(weights):
                bank.set_slot(slot, one)
            replaced = [m.processor for m in attentions] != before
            assert replaced == (shares and targets == ATTENTION)
            generator = torch.Generator().manual_seed(3)
            latents = torch.randn(2, 4, 8, 8, generator=generator, dtype=base.dtype)
            hidden = torch.randn(2, 5, 16, generator=generator, dtype=base.dtype)
            with bank.route_grouped(1):
                output = base.denoise(latents, torch.tensor([10, 500]), Conditioning(hidden, {}))
            bank.backward(output.square().sum())
            assert bank.grad_SP is not None
            gradients = [bank.unpack(slot, bank.grad_SP[slot]) for slot in range(2)]
            found.append((output.detach(), gradients))
            bank.close()
            assert [attention.processor for attention in attentions] == before
        (output, wanted), (other, gradients) = found
        torch.testing.assert_close(other, output, rtol=1e-9, atol=1e-9)
        for ours, theirs in zip(gradients, wanted, strict=True):
            for name, layer in theirs.layers.items():
                torch.testing.assert_close(ours.layers[name].down, layer.down)
                torch.testing.assert_close(ours.layers[name].up, layer.up)


def test_default_recipes_multiply_by_no_scale(base: Base) -> None:
    bank = Bank(base, num_slots=2, max_rank=RANK, target_modules=ATTENTION, trainable=True)
    bank.init_slot(0, RANK, float(RANK), 0)
    assert not bank.scale_kinds[0]
    bank.init_slot(1, RANK, 2.0 * RANK, 0)
    assert bank.scale_kinds[0]
    bank.clear_slot(1)
    assert not bank.scale_kinds[0]


def test_without_triton_or_a_gpu_the_reason_is_given() -> None:
    reason = why_unavailable(torch.device("cpu"))
    assert reason is None or "Triton" in reason


KERNEL_CHECK = """
import torch
from farm.adapters.bank import kernels
from farm.adapters.bank.grouped import LinearParts, grouped_linear
DTYPE_LINE
assert kernels.why_unavailable(torch.device("cpu")) is None
generator = torch.Generator().manual_seed(0)
def randn(*shape):
    return (torch.randn(shape, generator=generator) / 3).to(dtype).requires_grad_()
# not multiples of the kernel's blocks; one slot's rows are more than one block
for slots, positions, inputs, outputs, rank in ((2, 70, 40, 100, 4), (1, 3, 130, 16, 20)):
    x, down = randn(slots * positions, inputs), randn(slots, inputs, rank)
    up = randn(slots, rank, outputs)
    weight, bias = randn(outputs, inputs).detach(), randn(outputs).detach()
    grad = randn(slots * positions, outputs).detach()
    found = {}
    for kernel in ("products", "triton"):
        (y,) = grouped_linear(x, [LinearParts(weight, bias, up)], down, None, kernel)
        found[kernel] = (y.detach(), *torch.autograd.grad(y, (x, down, up), grad))
    for ours, theirs in zip(found["triton"], found["products"]):
        difference = (ours.float() - theirs.float()).abs().max() / theirs.float().abs().max()
        assert difference < bound, (rank, difference)
print("equal")
"""


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "bound"), [("float32", 1e-5), ("bfloat16", 0.02)])
def test_the_triton_kernel_equals_the_products_forward_and_backward(
    dtype: str, bound: float
) -> None:
    """In a process of its own, because Triton reads its interpreter's switch at import."""
    if find_spec("triton") is None:
        pytest.skip("Triton is not installed (extra `gpu`)")
    script = KERNEL_CHECK.replace("DTYPE_LINE", f"dtype, bound = torch.{dtype}, {bound}")
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    environment["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parents[3]), *sys.path])
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True
    )
    assert done.stdout.strip() == "equal", done.stderr
