"""Fast blocks: the same numbers as diffusers' own, and only where they are supported."""

import pytest
import torch
from support.adapters import weights_on

from farm.adapters.bank.mixed import MixedBank
from farm.adapters.bank.row_weights import RowWeights
from farm.base.fast_blocks import restore, use_fast_blocks
from farm.base.loading import load_base

ROWS = 3
ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")


@pytest.fixture(scope="module", params=["tiny", "embedded"])
def base(request):
    return load_base(request.param)


@pytest.fixture
def denoiser(base):
    denoiser = base.components[base.denoiser_name]
    yield denoiser
    restore(denoiser)


def generated(base, *, like=torch.contiguous_format):
    """A pass of three rows at three timesteps."""
    generator = torch.Generator().manual_seed(0)
    shape = base.latent_shape(base.resolution_px, base.resolution_px)
    latents = torch.randn(ROWS, *shape, generator=generator).to(memory_format=like)
    prompts = base.encode_prompts(["a cat", "a dog in the snow", ""])
    return base.denoise(latents, torch.tensor([900.0, 500.0, 20.0]), prompts)


@torch.no_grad()
@pytest.mark.parametrize("like", [torch.contiguous_format, torch.channels_last])
def test_fast_passes_equal_diffusers(base, denoiser, like):
    plain = generated(base, like=like)
    assert use_fast_blocks(denoiser) > 10
    torch.testing.assert_close(generated(base, like=like), plain, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_adapters_on_every_kind_of_layer_go_on_working(base, denoiser):
    # the gated half of a feed-forward layer among them: its block then runs its own pass
    targets = (*ATTENTION, "conv1", "conv2", "time_emb_proj", "ff.net.0.proj", "ff.net.2")
    bank = MixedBank(base, "unet", num_slots=ROWS)
    for slot in range(ROWS):
        bank.set_slot(slot, weights_on(bank, slot, targets=targets, rank=2))
    rows = RowWeights(bank)
    rows.assign([[0], [1], [2]])
    try:
        bare = generated(base)
        with rows.active():
            plain = generated(base)
            assert use_fast_blocks(denoiser)
            fast = generated(base)
            again = generated(base)
    finally:
        restore(denoiser)
        bank.close()
    assert (plain - bare).abs().max() > 1e-3
    torch.testing.assert_close(fast, plain, rtol=1e-4, atol=1e-4)
    assert torch.equal(again, fast)


def test_a_pass_that_keeps_gradients_is_not_fast(base, denoiser):
    use_fast_blocks(denoiser)
    weight = denoiser.conv_in.weight
    weight.requires_grad_()
    try:
        generated(base).square().sum().backward()
        assert weight.grad is not None
        assert weight.grad.abs().sum() > 0
    finally:
        weight.requires_grad_(False)
        weight.grad = None


def test_blocks_run_as_they_are_written_after_they_are_restored(denoiser):
    num_lean = use_fast_blocks(denoiser)
    assert use_fast_blocks(denoiser) == 0
    restore(denoiser)
    assert not any("forward" in vars(module) for module in denoiser.modules())
    assert use_fast_blocks(denoiser) == num_lean


def test_a_pass_that_others_have_put_on_a_block_stays(denoiser):
    block = denoiser.mid_block.resnets[0]
    hooked = block.forward
    block.forward = lambda *given, **named: hooked(*given, **named)
    theirs = block.forward
    try:
        use_fast_blocks(denoiser)
        restore(denoiser)
        assert block.forward is theirs
    finally:
        del block.forward


@torch.no_grad()
def test_calls_that_fast_blocks_do_not_support_go_to_diffusers(base, denoiser):
    """A mask over tokens changes the image as much with fast blocks as without."""
    shape = base.latent_shape(base.resolution_px, base.resolution_px)
    latents = torch.randn(1, *shape, generator=torch.Generator().manual_seed(0))
    hidden = base.encode_prompts(["a cat on the moon"]).hidden_RTD
    mask = torch.ones(hidden.shape[:2])
    mask[:, 3:] = 0

    def masked():
        return denoiser(latents, 500, hidden, encoder_attention_mask=mask, return_dict=False)[0]

    plain, open_ = masked(), denoiser(latents, 500, hidden, return_dict=False)[0]
    use_fast_blocks(denoiser)
    torch.testing.assert_close(masked(), plain, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(plain, open_)
