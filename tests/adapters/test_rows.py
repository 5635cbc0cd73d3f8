"""Tests of row weights: what was gathered beforehand equals what a route gathers."""

import pytest
import torch

from farm.adapters.bank import Bank
from farm.adapters.rows import RowWeights
from farm.adapters.weights import AdapterWeights, LayerWeights

TARGETS = ("to_q", "to_k", "to_v", "to_out.0", "conv1")


@pytest.fixture
def bank(base):
    bank = Bank(base, num_slots=4, max_rank=4, target_modules=TARGETS, max_per_row=2)
    for slot in (1, 2, 3):
        bank.set_slot(slot, random_weights(bank, slot, rank=slot + 1))
    yield bank
    bank.close()


def random_weights(bank, seed, *, rank=2, alpha=3.0, fill=None):
    generator = torch.Generator().manual_seed(seed)
    bank.init_slot(0, rank, alpha, seed)
    layers = {}
    for name, layer in bank.slot_weights(0).layers.items():
        up = torch.randn(layer.up.shape, generator=generator) * 0.2
        layers[name] = LayerWeights(layer.down, up if fill is None else torch.full_like(up, fill))
    bank.clear_slot(0)
    return AdapterWeights.with_alpha(layers, alpha)


@torch.no_grad()
def predict(base, route, rows=4):
    latents = torch.randn(rows, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    conditioning = base.encode_prompts(["a cat"]).repeat(rows)
    with route:
        return base.denoise(latents, torch.full((rows,), 400.0), conditioning)


def test_it_equals_the_route(base, bank):
    rows = RowWeights(bank)
    rows.assign([[1], [0], [3], [2]])
    expected = predict(base, bank.route(torch.tensor([1, 0, 3, 2])))
    assert torch.allclose(predict(base, rows.active()), expected, atol=1e-6)


def test_several_adapters_with_factors_equal_the_route(base, bank):
    rows = RowWeights(bank)
    rows.assign([[1, 2], [], [3], [2, 1]], [[0.5, -1.0], [], [2.0], [1.0, 0.3]])
    slots = torch.tensor([[1, 2], [-1, -1], [3, -1], [2, 1]])
    factors = torch.tensor([[0.5, -1.0], [1, 1], [2.0, 1], [1.0, 0.3]])
    expected = predict(base, bank.route(slots, factors))
    assert torch.allclose(predict(base, rows.active()), expected, atol=1e-6)


def test_only_what_changed_is_copied(base, bank):
    rows = RowWeights(bank)
    assert rows.assign([[1], [2], [3], [1]]) == 4
    assert rows.assign([[1], [2], [3], [1]]) == 0
    assert rows.assign([[1], [3], [3], [1]]) == 1
    assert rows.assign([[1], [3]]) == 0
    assert rows.assign([[1], [3], [3], [1]]) == 0  # the places beyond were kept
    expected = predict(base, bank.route(torch.tensor([1, 3, 3, 1])))
    assert torch.allclose(predict(base, rows.active()), expected, atol=1e-6)


def test_a_slot_that_was_overwritten_is_copied_again(base, bank):
    rows = RowWeights(bank)
    rows.assign([[1], [2], [3], [1]])
    bank.set_slot(2, random_weights(bank, 99))
    assert rows.assign([[1], [2], [3], [1]]) == 1
    bank.clear_slot(2)
    assert rows.assign([[1], [2], [3], [1]]) == 1
    expected = predict(base, bank.route(torch.tensor([1, -1, 3, 1])))
    assert torch.allclose(predict(base, rows.active()), expected, atol=1e-6)


def test_a_larger_batch_grows_and_a_smaller_one_shrinks(base, bank):
    rows = RowWeights(bank)
    for count in (1, 4, 2, 9):
        rows.assign([[1 + i % 3] for i in range(count)])
        slots = torch.tensor([1 + i % 3 for i in range(count)])
        expected = predict(base, bank.route(slots), count)
        assert torch.allclose(predict(base, rows.active(), count), expected, atol=1e-6)


def test_what_one_row_holds_never_reaches_another(base, bank):
    rows = RowWeights(bank)
    rows.assign([[1], [0], [3], [2]])
    alone = predict(base, rows.active())
    bank.set_slot(2, random_weights(bank, 5, fill=float("nan")))
    rows.assign([[1], [0], [3], [2]])
    spoiled = predict(base, rows.active())
    assert spoiled[3].isnan().any()
    assert torch.equal(spoiled[:3], alone[:3])


def test_rows_without_any_adapter_are_the_bare_base(base, bank):
    rows = RowWeights(bank)
    rows.assign([[], [], [], []])
    bare = predict(base, bank.route(torch.tensor([-1, -1, -1, -1])))
    assert torch.allclose(predict(base, rows.active()), bare, atol=1e-6)


def test_too_many_adapters_on_a_row_are_refused(bank):
    with pytest.raises(ValueError, match="at most 2"):
        RowWeights(bank).assign([[1, 2, 3]])


@torch.no_grad()
def test_prompts_that_come_again_are_remembered_and_never_taken_for_others(base, bank):
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    timesteps = torch.full((2,), 400.0)
    prompts, others = (base.encode_prompts([text, text]) for text in ("a cat", "a dog"))
    rows = RowWeights(bank)

    def draw(conditioning):
        with rows.active():
            return base.denoise(latents, timesteps, conditioning)

    def expected(conditioning, slots):
        with bank.route(torch.tensor(slots)):
            return base.denoise(latents, timesteps, conditioning)

    rows.assign([[1], [2]])
    for _ in range(3):
        assert torch.allclose(draw(prompts), expected(prompts, [1, 2]), atol=1e-6)
    assert torch.allclose(draw(others), expected(others, [1, 2]), atol=1e-6)
    rows.assign([[3], [2]])  # other adapters, the same prompts
    for _ in range(3):
        assert torch.allclose(draw(others), expected(others, [3, 2]), atol=1e-6)
    others.hidden_RTD.mul_(0.5)  # other prompts in the same place
    for _ in range(3):
        assert torch.allclose(draw(others), expected(others, [3, 2]), atol=1e-6)
    bare = base.denoise(latents, timesteps, others)
    assert torch.allclose(bare, expected(others, [-1, -1]), atol=1e-6)
