"""Tests of row weights: what was gathered beforehand equals what a training bank's route gathers,
whatever layers and ranks the adapters have."""

import functools

import pytest
import torch
from support.adapters import weights_on

from farm.adapters.bank import row_weights as rows_module
from farm.adapters.bank.bank import Bank
from farm.adapters.bank.mixed import MixedBank
from farm.adapters.bank.mixed_layers import MixedLayer
from farm.adapters.bank.row_weights import RowWeights
from farm.base.loading import load_base
from farm.errors import AdapterFileError

TARGETS = ("to_q", "to_k", "to_v", "to_out.0", "conv1")


class Pair:
    """A serving bank on one base and, as the reference, a training bank on a copy of it."""

    def __init__(self, base):
        self.mixed = MixedBank(base, "unet", num_slots=4, max_per_row=2)
        self.base = load_base("tiny")
        self.plain = Bank(self.base, num_slots=4, max_rank=4, target_modules=TARGETS)

    def set_slot(self, slot, weights):
        self.mixed.set_slot(slot, weights)
        self.plain.set_slot(slot, weights)

    def clear_slot(self, slot):
        self.mixed.clear_slot(slot)
        self.plain.clear_slot(slot)

    def predict(self, slots, rows=4, factors=None):
        return predict(self.base, self.plain.route(torch.tensor(slots), factors), rows)


@pytest.fixture
def bank(base):
    pair = Pair(base)
    for slot in (1, 2, 3):
        pair.set_slot(slot, random_weights(pair, slot, rank=slot + 1))
    yield pair
    pair.mixed.close()
    pair.plain.close()


def random_weights(pair, seed, **options):
    return weights_on(pair.mixed, seed, targets=TARGETS, **options)


@torch.no_grad()
def predict(base, route, rows=4):
    latents = torch.randn(rows, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    conditioning = base.encode_prompts(["a cat"]).repeat(rows)
    with route:
        return base.denoise(latents, torch.full((rows,), 400.0), conditioning)


def test_it_equals_the_route(base, bank):
    rows = RowWeights(bank.mixed)
    rows.assign([[1], [0], [3], [2]])
    expected = bank.predict([1, 0, 3, 2])
    assert torch.allclose(predict(base, rows.active()), expected, atol=1e-6)


def test_several_adapters_with_factors_equal_the_route(base, bank):
    rows = RowWeights(bank.mixed)
    rows.assign([[1, 2], [], [3], [2, 1]], [[0.5, -1.0], [], [2.0], [1.0, 0.3]])
    slots = torch.tensor([[1, 2], [-1, -1], [3, -1], [2, 1]])
    factors = torch.tensor([[0.5, -1.0], [1, 1], [2.0, 1], [1.0, 0.3]])
    expected = bank.predict(slots.tolist(), factors=factors)
    assert torch.allclose(predict(base, rows.active()), expected, atol=1e-6)


def test_only_what_changed_is_copied(base, bank):
    rows = RowWeights(bank.mixed)
    assert rows.assign([[1], [2], [3], [1]]) == 4
    assert rows.assign([[1], [2], [3], [1]]) == 0
    assert rows.assign([[1], [3], [3], [1]]) == 1
    assert rows.assign([[1], [3]]) == 0
    assert rows.assign([[1], [3], [3], [1]]) == 0  # the places beyond were kept
    expected = bank.predict([1, 3, 3, 1])
    assert torch.allclose(predict(base, rows.active()), expected, atol=1e-6)


def test_a_slot_that_was_overwritten_is_copied_again(base, bank):
    rows = RowWeights(bank.mixed)
    rows.assign([[1], [2], [3], [1]])
    bank.set_slot(2, random_weights(bank, 99))
    assert rows.assign([[1], [2], [3], [1]]) == 1
    bank.clear_slot(2)
    rows.assign([[1], [2], [3], [1]])
    expected = bank.predict([1, -1, 3, 1])
    assert torch.allclose(predict(base, rows.active()), expected, atol=1e-6)


def test_a_larger_batch_grows_and_a_smaller_one_shrinks(base, bank):
    rows = RowWeights(bank.mixed)
    for count in (1, 4, 2, 9):
        rows.assign([[1 + i % 3] for i in range(count)])
        expected = bank.predict([1 + i % 3 for i in range(count)], count)
        assert torch.allclose(predict(base, rows.active(), count), expected, atol=1e-6)


def test_what_one_row_holds_never_reaches_another(base, bank):
    rows = RowWeights(bank.mixed)
    rows.assign([[1], [0], [3], [2]])
    alone = predict(base, rows.active())
    bank.set_slot(2, random_weights(bank, 5, fill=float("nan")))
    rows.assign([[1], [0], [3], [2]])
    spoiled = predict(base, rows.active())
    assert spoiled[3].isnan().any()
    assert torch.equal(spoiled[:3], alone[:3])


def test_rows_without_any_adapter_are_the_bare_base(base, bank):
    rows = RowWeights(bank.mixed)
    rows.assign([[], [], [], []])
    bare = bank.predict([-1, -1, -1, -1])
    assert torch.allclose(predict(base, rows.active()), bare, atol=1e-6)


def test_too_many_adapters_on_a_row_are_refused(bank):
    with pytest.raises(ValueError, match="at most 2"):
        RowWeights(bank.mixed).assign([[1, 2, 3]])


@torch.no_grad()
def test_prompts_that_come_again_are_remembered_and_never_taken_for_others(base, bank):
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    timesteps = torch.full((2,), 400.0)
    prompts, others = (base.encode_prompts([text, text]) for text in ("a cat", "a dog"))
    rows = RowWeights(bank.mixed)

    def generated(conditioning):
        with rows.active():
            return base.denoise(latents, timesteps, conditioning)

    def expected(conditioning, slots):
        with bank.plain.route(torch.tensor(slots)):
            return bank.base.denoise(latents, timesteps, conditioning)

    rows.assign([[1], [2]])
    for _ in range(3):
        assert torch.allclose(generated(prompts), expected(prompts, [1, 2]), atol=1e-6)
    assert torch.allclose(generated(others), expected(others, [1, 2]), atol=1e-6)
    rows.assign([[3], [2]])  # other adapters, the same prompts
    for _ in range(3):
        assert torch.allclose(generated(others), expected(others, [3, 2]), atol=1e-6)
    others.hidden_RTD.mul_(0.5)  # other prompts in the same place
    for _ in range(3):
        assert torch.allclose(generated(others), expected(others, [3, 2]), atol=1e-6)
    bare = base.denoise(latents, timesteps, others)
    assert torch.allclose(bare, expected(others, [-1, -1]), atol=1e-6)


# -- adapters of any layers and ranks --------------------------------------------------------------

KINDS = [
    {"targets": ("to_q", "to_v"), "rank": 1},
    {"targets": ("to_q", "to_k", "to_v", "to_out.0"), "rank": 4},
    {"targets": ("to_q", "ff.net.0.proj", "ff.net.2", "proj_in"), "rank": 9},
    {"targets": ("conv1", "conv2", "conv", "conv_shortcut", "conv_in", "conv_out"), "rank": 40},
    {"targets": ("time_emb_proj", "linear_1", "to_out.0", "proj_out", "conv1"), "rank": 3},
    {"targets": ("to_k", "conv2"), "rank": 256},
]


@pytest.fixture
def mixed(base):
    bank = MixedBank(base, "unet", num_slots=1 + len(KINDS), max_per_row=3)
    for slot, kind in enumerate(KINDS, 1):
        bank.set_slot(slot, weights_on(bank, slot, alpha=0.7 * kind["rank"], **kind))
    yield bank
    bank.close()


@functools.cache
def alone(row, slot, factor):
    """The prediction of one row with one adapter, by a training bank on a copy of the base."""
    base = load_base("tiny")
    kind = KINDS[slot - 1]
    source = MixedBank(base, "unet", num_slots=1)
    weights = weights_on(source, slot, alpha=0.7 * kind["rank"], **kind)
    bank = Bank(base, num_slots=1, max_rank=kind["rank"], target_modules=kind["targets"])
    bank.set_slot(0, weights)
    route = bank.route(torch.zeros(6, dtype=torch.int64), torch.full((6,), factor))
    return predict(base, route, 6)[row]


@pytest.mark.parametrize("most_bytes", [1 << 30, 100_000, 0])
@pytest.mark.parametrize("order", [[1, 2, 3, 4, 5, 6], [6, 1, 6, 2, 1, 3], [3, 3, 3, 4, 4, 5]])
def test_rows_of_any_layers_and_ranks_equal_each_alone(base, mixed, order, most_bytes, monkeypatch):
    monkeypatch.setattr(rows_module, "MAX_COPIED_BYTES", most_bytes)
    rows = RowWeights(mixed)
    factors = [1.0, 0.5, -1.0, 2.0, 1.0, 0.25]
    rows.assign([[slot] for slot in order], [[factor] for factor in factors])
    together = predict(base, rows.active(), 6)
    for row, (slot, factor) in enumerate(zip(order, factors, strict=True)):
        expected = alone(row, slot, factor)
        torch.testing.assert_close(together[row], expected, rtol=1e-4, atol=1e-5)


def test_neighbours_of_one_shape_share_their_products_and_others_take_no_part(base, mixed):
    rows = RowWeights(mixed)
    rows.assign([[2], [2], [], [4], [1]])
    spans = [(part.start, part.stop) for part in rows._parts]
    assert spans == [(0, 2), (3, 4), (4, 5)]
    rank = {part.start: next(iter(part.layers.values()))[0].shape[2] for part in rows._parts}
    assert rank == {0: 16, 3: 64, 4: 16}  # a neighbour of rank 40 makes no other row slower


def test_a_layer_that_no_adapter_changes_is_the_base_s_own(base):
    before = dict(base.components["unet"].named_modules())
    bank = MixedBank(base, "unet", num_slots=2)
    rows = RowWeights(bank)
    bank.set_slot(1, weights_on(bank, 1, targets=("to_q",), rank=4))
    rows.assign([[1]])
    wrapped = {
        name
        for name, module in base.components["unet"].named_modules()
        if isinstance(module, MixedLayer)
    }
    assert wrapped
    assert all(name.endswith("to_q") for name in wrapped)
    bank.set_slot(1, weights_on(bank, 1, targets=("conv2",), rank=4))  # seen for the first time
    rows.assign([[1]])
    torch.testing.assert_close(
        predict(base, rows.active(), 1)[0],
        _alone_on("conv2"),
        rtol=1e-4,
        atol=1e-5,
    )
    bank.close()
    assert dict(base.components["unet"].named_modules()) == before


def _alone_on(target):
    base = load_base("tiny")
    source = MixedBank(base, "unet", num_slots=1)
    weights = weights_on(source, 1, targets=(target,), rank=4)
    bank = Bank(base, num_slots=1, max_rank=4, target_modules=(target,))
    bank.set_slot(0, weights)
    return predict(base, bank.route(torch.tensor([0])), 1)[0]


def test_a_slot_takes_the_memory_of_its_own_adapter(mixed):
    for slot, kind in enumerate(KINDS, 1):
        held = mixed.held(slot)
        weights = weights_on(mixed, slot, **kind)
        assert held.flat_P.numel() * 4 == mixed.num_bytes(weights)
        # a room is the next power of two, so never twice the rank, but for ranks under 16
        assert weights.num_parameters <= held.flat_P.numel()
        assert held.flat_P.numel() < 2 * weights.num_parameters * max(1, 16 / kind["rank"])


def test_an_adapter_of_another_base_is_refused(mixed):
    weights = weights_on(mixed, 0, targets=("to_q",), rank=2)
    name = next(iter(weights.layers))
    layers = {**weights.layers, f"{name}.more": weights.layers[name]}
    with pytest.raises(AdapterFileError, match="cannot carry"):
        mixed.set_slot(1, type(weights).with_alpha(layers, 1.0))
