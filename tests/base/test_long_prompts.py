"""Prompts longer than CLIP reads at once: equal to plain diffusers with prompt embeds."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from farm.base.conditioning import MASK, TokenIds
from farm.base.generate import generate_images
from farm.base.interface import Base
from farm.base.loading import load_base
from farm.base.tokens import MAX_WINDOWS, PromptReader

LONG = "a wooden table with a red ball, a blue cup and sks cat"
SHORT = "a photo of sks cat"
STEPS = 3


@pytest.fixture(scope="module", params=["tiny", "tiny-sdxl"])
def base(request: pytest.FixtureRequest) -> Base:
    return load_base(request.param)


def by_hand(base: Base, prompt: str, num_windows: int) -> tuple[Tensor, Tensor | None]:
    """A prompt's states and pooled text as other tools make them, with diffusers' parts alone."""
    pipe = base.pipeline()
    pairs = [(pipe.tokenizer, pipe.text_encoder)]
    if hasattr(pipe, "text_encoder_2"):
        pairs.append((pipe.tokenizer_2, pipe.text_encoder_2))
    columns, pooled = [], None
    for tokenizer, encoder in pairs:
        text = tokenizer(prompt, add_special_tokens=False, verbose=False).input_ids
        windows, room = [], tokenizer.model_max_length - 2
        for number in range(num_windows):
            part = text[room * number : room * (number + 1)]
            ids = [tokenizer.bos_token_id, *part, tokenizer.eos_token_id]
            ids += [tokenizer.pad_token_id] * (room + 2 - len(ids))
            with torch.no_grad():
                output = encoder(torch.tensor([ids]), output_hidden_states=True)
            windows.append(output[0] if len(pairs) == 1 else output.hidden_states[-2])
            if len(pairs) == 2 and encoder is pipe.text_encoder_2 and number == 0:
                pooled = output[0]
        columns.append(torch.cat(windows, dim=1))
    return torch.cat(columns, dim=-1), pooled


def by_diffusers(base: Base, prompt: str, negative: str, num_windows: int, seed: int) -> np.ndarray:
    """The image of the plain pipeline for embeds made by hand."""
    given = {}
    for name, text in (("prompt_embeds", prompt), ("negative_prompt_embeds", negative)):
        states, pooled = by_hand(base, text, num_windows)
        given[name] = states
        if pooled is not None:
            given[name.replace("prompt_embeds", "pooled_prompt_embeds")] = pooled
    pipe = base.pipeline()
    pipe.set_progress_bar_config(disable=True)
    (image,) = pipe(
        **given,
        num_inference_steps=STEPS,
        guidance_scale=4.0,
        height=64,
        width=64,
        generator=torch.Generator("cpu").manual_seed(seed),
        output_type="np",
    ).images
    return image * 255


def images(
    base: Base, prompts: Sequence[str], seeds: Sequence[int], negative: str = ""
) -> np.ndarray:
    return (
        generate_images(
            base,
            prompts,
            seeds,
            negative_prompt=negative,
            chunked=[True] * len(prompts),
            steps=STEPS,
            guidance=4.0,
            width_px=64,
            height_px=64,
        )
        .numpy()
        .astype(float)
    )


def test_a_long_prompt_is_encoded_as_other_tools_encode_it(base: Base) -> None:
    num_windows = base.num_windows(LONG)
    assert num_windows == 2
    found = base.encode_prompts([LONG], [num_windows])
    wanted, _ = by_hand(base, LONG, num_windows)
    assert found.num_tokens == 2 * base.memory.tokens
    assert torch.equal(found.hidden_RTD, wanted)
    assert found.extra[MASK].all()


def test_an_image_equals_the_plain_pipelines_and_differs_from_the_cut_one(base: Base) -> None:
    for negative in ("blurry, dark", LONG):
        (found,) = images(base, [LONG], [3], negative)
        assert np.abs(found - by_diffusers(base, LONG, negative, 2, 3)).max() <= 1.0
    (cut,) = generate_images(base, [LONG], [3], steps=STEPS, width_px=64, height_px=64).numpy()
    assert (cut.astype(float) != images(base, [LONG], [3])[0]).any()


def test_a_long_negative_prompt_gives_a_short_prompt_empty_windows(base: Base) -> None:
    (found,) = images(base, [SHORT], [5], LONG)
    assert np.abs(found - by_diffusers(base, SHORT, LONG, 2, 5)).max() <= 1.0


def test_images_do_not_depend_on_the_lengths_of_others(base: Base) -> None:
    together = images(base, [SHORT, LONG, LONG * 2], [1, 2, 3])
    for i, prompt in enumerate((SHORT, LONG, LONG * 2)):
        (alone,) = images(base, [prompt], [1 + i])
        assert np.abs(together[i] - alone).max() <= 1.0
    (usual,) = generate_images(
        base, [SHORT], [1], steps=STEPS, guidance=4.0, width_px=64, height_px=64
    ).numpy()
    assert np.array_equal(images(base, [SHORT], [1])[0], usual)


def test_a_prompt_that_fits_is_encoded_as_before(base: Base) -> None:
    usual, chunked = base.encode_prompts([SHORT]), base.encode_prompts([SHORT], [1])
    assert torch.equal(usual.hidden_RTD, chunked.hidden_RTD)
    assert MASK not in chunked.extra


def test_rows_of_token_ids_grow_without_changing_what_they_encode(base: Base) -> None:
    length = base.memory.tokens
    short, long = base.tokenize([SHORT]), base.tokenize([LONG], [2])
    both = TokenIds.concatenate([short, long])
    encoded = base.encode_tokens(both)
    assert encoded.extra[MASK].sum(1).tolist() == [length, 2 * length]
    assert torch.equal(encoded.hidden_RTD[:1, :length], base.encode_tokens(short).hidden_RTD)
    assert torch.equal(encoded.hidden_RTD[1:], base.encode_tokens(long).hidden_RTD)
    both.write(1, short)
    assert base.encode_tokens(both).extra[MASK].sum(1).tolist() == [length, length]


def test_text_after_the_last_window_is_named(base: Base) -> None:
    endless = "a " * ((base.memory.tokens - 2) * MAX_WINDOWS + 1)
    assert base.num_windows(endless) == MAX_WINDOWS
    assert base.unread(endless, MAX_WINDOWS).strip() == "a"
    assert base.unread(LONG, 2) == ""
    assert base.unread(LONG) != ""


def test_bases_with_long_text_encoders_read_one_length() -> None:
    flux = load_base("tiny-flux")
    assert not flux.reads_windows
    assert flux.num_windows(LONG * 20) == 1
    (image,) = generate_images(
        flux, [LONG], [1], chunked=[True], steps=1, width_px=32, height_px=32
    )
    (usual,) = generate_images(flux, [LONG], [1], steps=1, width_px=32, height_px=32)
    assert torch.equal(image, usual)


def test_the_reader_counts_windows_as_the_base_does() -> None:
    base = load_base("tiny")
    reader = PromptReader(base.pipeline().tokenizer.backend_tokenizer, base.memory.tokens, "tiny")
    for text in (SHORT, LONG, LONG * 3, "", "é" * 200):
        assert reader.num_windows(text) == base.num_windows(text)
        assert reader.unread(text, reader.num_windows(text)) == ""
