"""The bank equals peft's LoRA, keeps slots apart, and changes a slot by copying alone."""

from collections.abc import Callable, Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from farm.adapters.bank.bank import Bank
from farm.adapters.bank.layers import BankLayer
from farm.adapters.weights import AdapterWeights, LayerWeights
from farm.base.generate import generate_images
from farm.base.interface import Base, Conditioning
from farm.base.loading import load_base
from farm.errors import AdapterFileError, UserError

PeftTwin = Callable[..., tuple[nn.Module, AdapterWeights]]
ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
CONVOLUTIONS = ("conv1", "conv2", "proj_in", "conv_shortcut", "conv")
TEXT = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1")


def denoiser_input(base: Base, rows: int, seed: int = 1) -> tuple[Tensor, Tensor, Conditioning]:
    generator = torch.Generator().manual_seed(seed)
    latents_RCHW = torch.randn(rows, *base.latent_shape(64, 64), generator=generator)
    timesteps_R = torch.randint(1000, (rows,), generator=generator)
    hidden_RTD = torch.randn(rows, 5, 16, generator=generator)
    return latents_RCHW.to(base.dtype), timesteps_R, Conditioning(hidden_RTD.to(base.dtype), {})


def rows_of(twin: nn.Module, inputs: tuple[Tensor, Tensor, Conditioning], rows: slice) -> Tensor:
    latents_RCHW, timesteps_R, conditioning = inputs
    hidden_RTD = conditioning.hidden_RTD[rows]
    return twin(latents_RCHW[rows], timesteps_R[rows], hidden_RTD, return_dict=False)[0]


def random_adapter(bank: Bank, rank: int, alpha: float, seed: int) -> AdapterWeights:
    bank.init_slot(0, rank, alpha, seed)
    weights = bank.slot_weights(0)
    generator = torch.Generator().manual_seed(seed)
    layers = {
        name: LayerWeights(layer.down, torch.randn(layer.up.shape, generator=generator) / 4)
        for name, layer in weights.layers.items()
    }
    bank.clear_slot(0)
    return AdapterWeights.with_alpha(layers, alpha)


@pytest.mark.parametrize(
    "targets", [ATTENTION, (*ATTENTION, *CONVOLUTIONS, "ff.net.0.proj", "time_emb_proj")]
)
@pytest.mark.parametrize("order", [[0, 1, 2], [2, 0, 1]])
def test_grouped_rows_equal_pefts_model_forward_and_backward(
    peft_twin: PeftTwin, targets: Sequence[str], order: list[int]
) -> None:
    base = load_base("tiny", dtype=torch.float64)
    twins = [
        peft_twin(base.components["unet"], "unet", rank=rank, alpha=alpha, targets=targets, seed=i)
        for i, (rank, alpha) in enumerate([(4, 4.0), (2, 6.0), (3, 1.0)])
    ]
    inputs = denoiser_input(base, 6)
    target_RCHW = torch.randn_like(inputs[0])

    bank = Bank(
        base,
        num_slots=3,
        max_rank=4,
        target_modules=tuple(targets),
        trainable=True,
        dtype=torch.float64,
    )
    for slot, number in enumerate(order):
        bank.set_slot(slot, twins[number][1])
    with bank.route_grouped(2):
        output_RCHW = base.denoise(*inputs)
    bank.backward(((output_RCHW - target_RCHW) ** 2).sum())

    assert bank.grad_SP is not None
    for slot, number in enumerate(order):
        rows = slice(2 * slot, 2 * slot + 2)
        expected = rows_of(twins[number][0], inputs, rows)
        torch.testing.assert_close(output_RCHW[rows], expected, rtol=1e-9, atol=1e-9)
        ((expected - target_RCHW[rows]) ** 2).sum().backward()
        gradients = bank.unpack(slot, bank.grad_SP[slot])
        modules = dict(twins[number][0].base_model.model.named_modules())
        assert set(gradients.layers) == {
            f"unet.{name}" for name, module in modules.items() if hasattr(module, "lora_A")
        }
        for name, layer in gradients.layers.items():
            module = modules[name.removeprefix("unet.")]
            for found, parameter in (
                (layer.down, module.lora_A["default"].weight),
                (layer.up, module.lora_B["default"].weight),
            ):
                torch.testing.assert_close(found, parameter.grad, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("targets", [ATTENTION, (*ATTENTION, *CONVOLUTIONS)])
def test_gathered_rows_equal_pefts_model_in_any_mix(
    base: Base, peft_twin: PeftTwin, targets: Sequence[str]
) -> None:
    unet = base.components["unet"]
    twins = [
        peft_twin(unet, "unet", rank=rank, alpha=8.0, targets=targets, seed=rank) for rank in (1, 4)
    ]
    inputs = denoiser_input(base, 5)
    bare_RCHW = base.denoise(*inputs)
    bank = Bank(base, num_slots=4, max_rank=4, target_modules=tuple(targets))
    bank.set_slot(1, twins[0][1])
    bank.set_slot(3, twins[1][1])
    with torch.no_grad(), bank.route(torch.tensor([3, -1, 1, 0, 3])):
        output_RCHW = base.denoise(*inputs)
    for row, number in ((0, 1), (2, 0), (4, 1)):
        expected = rows_of(twins[number][0], inputs, slice(row, row + 1))
        torch.testing.assert_close(output_RCHW[row : row + 1], expected, rtol=1e-4, atol=2e-4)
        assert (expected - bare_RCHW[row]).abs().max() > 1e-2
    torch.testing.assert_close(output_RCHW[[1, 3]], bare_RCHW[[1, 3]], rtol=1e-5, atol=1e-5)


def test_a_row_mixes_several_adapters_by_weight(base: Base, peft_twin: PeftTwin) -> None:
    unet = base.components["unet"]
    one, first = peft_twin(unet, "unet", rank=2, alpha=4.0, targets=ATTENTION, seed=1)
    _, second = peft_twin(unet, "unet", rank=4, alpha=2.0, targets=ATTENTION, seed=2)
    one.add_adapter(
        "second",
        one.peft_config["default"].__class__(r=4, lora_alpha=2.0, target_modules=list(ATTENTION)),
    )
    for name, module in one.base_model.model.named_modules():
        if hasattr(module, "lora_A"):
            layer = second.layers[f"unet.{name}"]
            module.lora_A["second"].weight.data.copy_(layer.down)
            module.lora_B["second"].weight.data.copy_(layer.up)
            module.scaling["default"] *= 0.7
            module.scaling["second"] *= -0.4
    one.base_model.set_adapter(["default", "second"])
    inputs = denoiser_input(base, 2)
    expected_RCHW = rows_of(one, inputs, slice(0, 2))

    bank = Bank(base, num_slots=3, max_rank=4, target_modules=ATTENTION)
    bank.set_slot(2, first)
    bank.set_slot(1, second)
    slots_RK, weights_RK = torch.tensor([[2, 1], [1, 2]]), torch.tensor([[0.7, -0.4], [-0.4, 0.7]])
    with torch.no_grad(), bank.route(slots_RK, weights_RK):
        output_RCHW = base.denoise(*inputs)
    torch.testing.assert_close(output_RCHW, expected_RCHW, rtol=1e-4, atol=1e-4)


def test_text_encoder_layers_equal_pefts_model(base: Base, peft_twin: PeftTwin) -> None:
    twin, weights = peft_twin(
        base.components["text_encoder"], "text_encoder", rank=3, alpha=9.0, targets=TEXT
    )
    tokens = base.tokenize(["a sks cat", "a dog"])
    tokens_RT = tokens.tensors["text_encoder"]
    bank = Bank(base, num_slots=2, max_rank=4, target_modules=ATTENTION, text_encoder_modules=TEXT)
    bank.set_slot(1, weights)
    bare_RTD = base.encode_tokens(tokens).hidden_RTD
    with bank.route(torch.tensor([1, -1])):
        hidden_RTD = base.encode_tokens(tokens).hidden_RTD
    torch.testing.assert_close(hidden_RTD[0], twin(tokens_RT)[0][0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(hidden_RTD[1], bare_RTD[1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
@pytest.mark.parametrize("targets", [ATTENTION, (*ATTENTION, *CONVOLUTIONS)])
def test_a_poisoned_slot_reaches_no_other_row_bit_for_bit(
    base: Base, poison: float, targets: Sequence[str]
) -> None:
    bank = Bank(base, num_slots=4, max_rank=4, target_modules=tuple(targets), trainable=True)
    for slot, weights in enumerate([random_adapter_for(bank, seed) for seed in range(4)]):
        bank.set_slot(slot, weights)
    inputs = denoiser_input(base, 4)

    def run() -> tuple[Tensor, Tensor, Tensor]:
        assert bank.grad_SP is not None
        bank.grad_SP.zero_()
        with bank.route_grouped(1):
            grouped_RCHW = base.denoise(*inputs)
        bank.backward((grouped_RCHW**2).sum())
        with torch.no_grad(), bank.route(torch.tensor([2, 1, 0, 3])):
            gathered_RCHW = base.denoise(*inputs)
        return grouped_RCHW.detach(), bank.grad_SP.clone(), gathered_RCHW

    healthy = run()
    bank.flat_ZP[1] = poison
    poisoned = run()
    others = [0, 2, 3]
    for before, after in zip(healthy, poisoned, strict=True):
        assert torch.equal(before[others], after[others])
        assert not torch.isfinite(after[1]).all()


def random_adapter_for(bank: Bank, seed: int) -> AdapterWeights:
    return random_adapter(bank, rank=1 + seed, alpha=2.0, seed=seed)


@settings(max_examples=15, deadline=None)
@given(
    rank=st.integers(1, 6),
    alpha=st.floats(0.1, 64),
    slot=st.integers(0, 2),
    seed=st.integers(0, 2**40),
)
def test_a_slot_reads_back_what_was_set(rank: int, alpha: float, slot: int, seed: int) -> None:
    base = load_base("tiny")
    bank = Bank(base, num_slots=3, max_rank=6, target_modules=("to_q", "conv1"))
    weights = random_adapter(bank, rank, alpha, seed)
    others = bank.flat_ZP.clone()
    bank.set_slot(slot, weights)
    found = bank.slot_weights(slot)
    assert found.alphas == weights.alphas
    assert found.rank == rank
    for name, layer in weights.layers.items():
        assert torch.equal(found.layers[name].down, layer.down)
        assert torch.equal(found.layers[name].up, layer.up)
    untouched = [row for row in range(4) if row != slot]
    assert torch.equal(bank.flat_ZP[untouched], others[untouched])
    bank.clear_slot(slot)
    assert not bank.flat_ZP.any()
    assert bank.slot_weights(slot).layers == {}


def test_setting_a_slot_moves_no_storage_and_swaps_no_module(base: Base) -> None:
    bank = Bank(base, num_slots=2, max_rank=4, target_modules=ATTENTION)
    modules = [id(module) for module in base.components["unet"].modules()]
    wrapped = [m for m in base.components["unet"].modules() if isinstance(m, BankLayer)]
    addresses = [m.stacked.all_down_ZIr.data_ptr() for m in wrapped]
    bank.set_slot(1, random_adapter(bank, 2, 4.0, 0))
    bank.clear_slot(1)
    assert [id(module) for module in base.components["unet"].modules()] == modules
    assert [m.stacked.all_down_ZIr.data_ptr() for m in wrapped] == addresses


def test_a_compiled_pass_sees_a_slot_that_changed_later(base: Base) -> None:
    bank = Bank(base, num_slots=2, max_rank=4, target_modules=("to_q", "to_v"))
    weights = random_adapter(bank, 4, 8.0, 3)
    inputs = denoiser_input(base, 2)
    compilations = []

    def counting(graph: torch.fx.GraphModule, _: list[Tensor]) -> torch.fx.GraphModule:
        compilations.append(graph)
        return graph

    compiled = torch.compile(base.denoise, backend=counting)
    slots_R = torch.tensor([1, 0])
    with torch.no_grad(), bank.route(slots_R):
        bare_RCHW = compiled(*inputs)
        graphs = len(compilations)
        bank.set_slot(1, weights)
        set_RCHW = compiled(*inputs)
        torch.testing.assert_close(set_RCHW, base.denoise(*inputs))
        bank.clear_slot(1)
        cleared_RCHW = compiled(*inputs)
    assert graphs >= 1
    assert len(compilations) == graphs, "changing a slot compiled again"
    assert (set_RCHW[0] - bare_RCHW[0]).abs().max() > 1e-3
    assert torch.equal(set_RCHW[1], bare_RCHW[1])
    assert torch.equal(cleared_RCHW, bare_RCHW)


def test_each_image_is_routed_to_its_slot_in_any_batch(base: Base) -> None:
    bank = Bank(base, num_slots=3, max_rank=4, target_modules=ATTENTION)
    for slot, weights in enumerate([random_adapter_for(bank, seed) for seed in (1, 2)]):
        bank.set_slot(1 + slot, weights)
    prompts, seeds, slots = ["a sks cat", "a dog", "a cat"], [5, 6, 7], [2, 0, 1]
    together = generate_images(
        base, prompts, seeds, steps=3, routing=bank.image_routing(slots), batch=2
    )
    for number in range(3):
        alone = generate_images(
            base,
            prompts[number : number + 1],
            seeds[number : number + 1],
            steps=3,
            routing=bank.image_routing(slots[number : number + 1]),
        )
        difference = together[number].int() - alone[0].int()
        assert difference.abs().max() <= 1


def test_closing_puts_the_bases_own_layers_back(base: Base) -> None:
    inputs = denoiser_input(base, 2)
    before = base.denoise(*inputs)
    names = list(base.components["unet"].state_dict())
    bank = Bank(base, num_slots=1, max_rank=2, target_modules=("to_q", "conv1"))
    with pytest.raises(ValueError, match="carries a bank already"):
        Bank(base, num_slots=1, max_rank=2, target_modules=("to_q",))
    assert torch.equal(base.denoise(*inputs), before)
    bank.close()
    bank.close()
    assert list(base.components["unet"].state_dict()) == names
    assert torch.equal(base.denoise(*inputs), before)


def test_a_half_precision_base_keeps_float32_adapters(base: Base) -> None:
    half = load_base("tiny", dtype=torch.bfloat16)
    bank = Bank(half, num_slots=2, max_rank=4, target_modules=ATTENTION, trainable=True)
    weights = random_adapter(bank, 3, 3.0, 0)
    bank.set_slot(1, weights)
    for name, layer in bank.slot_weights(1).layers.items():
        assert torch.equal(layer.down, weights.layers[name].down)
    with bank.route_grouped(1):
        output = half.denoise(*denoiser_input(half, 2))
    assert output.dtype == torch.bfloat16
    bank.backward(output.float().square().sum())
    assert bank.grad_SP is not None
    assert bank.grad_SP[1].abs().sum() > 0
    reference = Bank(base, num_slots=2, max_rank=4, target_modules=ATTENTION, trainable=True)
    reference.set_slot(1, weights)
    with reference.route_grouped(1):
        expected = base.denoise(*denoiser_input(base, 2))
    assert (output.float() - expected).norm() / expected.norm() < 0.05


def test_adapters_that_do_not_fit_are_refused_with_a_remedy(base: Base) -> None:
    bank = Bank(base, num_slots=1, max_rank=2, target_modules=("to_q",))
    name = next(iter(bank.places))
    place = bank.places[name]
    good = LayerWeights(torch.zeros(2, place.num_inputs), torch.zeros(place.num_outputs, 2))
    for layers, message in (
        ({"unet.nowhere.to_q": good}, "lacks"),
        ({name: LayerWeights(good.down[:, :-1], good.up)}, "inputs"),
        (
            {
                name: LayerWeights(
                    torch.zeros(3, place.num_inputs), torch.zeros(place.num_outputs, 3)
                )
            },
            "rank 3",
        ),
    ):
        with pytest.raises(AdapterFileError, match=message) as caught:
            bank.set_slot(0, AdapterWeights.with_alpha(layers, 1.0))
        assert caught.value.remedy


def test_targets_that_match_nothing_are_the_users_mistake(base: Base) -> None:
    with pytest.raises(UserError, match="to_nowhere"):
        Bank(base, num_slots=1, max_rank=2, target_modules=("to_q", "to_nowhere"))
