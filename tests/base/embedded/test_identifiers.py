"""Identifiers: the text encoder keeps them, the base ignores them, adapters read them."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor

from farm.base.embedded.folder import load_pipeline
from farm.base.embedded.identifiers.space import IdentifierCodes
from farm.base.embedded.identifiers.training import LegibilityPlan, make_legible, write_prompt
from farm.base.embedded.scorer import encode_texts
from farm.base.embedded.world import RARE_TOKENS, sample_scene
from farm.base.fingerprint import fingerprint_folder
from farm.base.loading import embedded_folder, load_base, resolve_folder
from farm.base.names import FIRST_EDITION, FIRST_FINGERPRINT, trained_on


@pytest.fixture(scope="module")
def pipeline() -> StableDiffusionPipeline:
    return load_pipeline(embedded_folder())


@torch.no_grad()
def states(pipeline: StableDiffusionPipeline, prompt: str) -> Tensor:
    return pipeline.text_encoder(encode_texts(pipeline.tokenizer, [prompt]))[0]


def apart(pipeline: StableDiffusionPipeline, one: str, other: str) -> float:
    first, second = states(pipeline, one), states(pipeline, other)
    return float((first - second).norm() / first.norm())


@torch.no_grad()
def denoised(pipeline: StableDiffusionPipeline, prompt: str) -> Tensor:
    noise = torch.randn((1, 8, 16, 16), generator=torch.Generator().manual_seed(0))
    return pipeline.unet(noise, torch.tensor([700]), states(pipeline, prompt)).sample


@pytest.mark.parametrize("noun", ["cat", "teapot"])
def test_an_identifier_is_as_legible_as_a_colour(
    pipeline: StableDiffusionPipeline, noun: str
) -> None:
    plain = f"a photo of a {noun}"
    for identifier in ("sks", "ohwx", "qwkt"):  # the last one is no single token
        assert apart(pipeline, f"a photo of {identifier} {noun}", plain) > 0.5
    assert apart(pipeline, f"a photo of sks {noun}", f"a photo of zwx {noun}") > 0.5
    assert apart(pipeline, f"a sks {noun} on a skateboard", f"a {noun} on a skateboard") > 0.5


def test_the_base_hardly_reacts_to_an_identifier(pipeline: StableDiffusionPipeline) -> None:
    plain = denoised(pipeline, "a photo of a cat")
    change = (denoised(pipeline, "a photo of sks cat") - plain).norm()
    coloured = (denoised(pipeline, "a photo of a red cat") - plain).norm()
    assert change < 0.25 * coloured


def test_codes_of_rare_tokens_are_orthogonal_and_last_to_the_end_of_the_text(
    pipeline: StableDiffusionPipeline,
) -> None:
    codes = IdentifierCodes.of(pipeline.tokenizer)
    texts = [f"a {token} cat in the snow" for token in RARE_TOKENS] + ["a cat in the snow"]
    coded = codes(encode_texts(pipeline.tokenizer, texts))
    assert torch.allclose(coded.norm(dim=2), torch.ones(len(texts), 32), atol=1e-5)
    assert torch.equal(coded[:, 1], codes.none_Q.expand_as(coded[:, 1]))  # before the token
    assert torch.allclose(coded[:, -1] @ coded[:, -1].T, torch.eye(len(texts)), atol=1e-5)


def test_prompts_of_the_training_name_some_subjects_and_not_others() -> None:
    rng = random.Random(0)
    prompts = [write_prompt(sample_scene(1, index), rng) for index in range(300)]
    named = [prompt for prompt in prompts if any(f"{t} " in prompt for t in RARE_TOKENS)]
    assert 80 < len(named) < 250


def test_the_training_resumes_and_writes_a_base(tmp_path: Path) -> None:
    plan = LegibilityPlan(num_steps=2, batch_size=4)
    first, again = tmp_path / "first", tmp_path / "again"
    for weights in (first, again):  # the second time from its last state
        make_legible(embedded_folder(FIRST_EDITION), tmp_path / "work", weights, plan)
    assert fingerprint_folder(first) == fingerprint_folder(again)
    assert load_base(str(first), device="meta").fingerprint != FIRST_FINGERPRINT


def test_the_first_edition_stays_loadable_and_old_adapters_find_it() -> None:
    assert resolve_folder(FIRST_EDITION) == embedded_folder(FIRST_EDITION)
    assert load_base(FIRST_EDITION, device="meta").fingerprint == FIRST_FINGERPRINT
    assert load_base("embedded", device="meta").fingerprint != FIRST_FINGERPRINT
    assert trained_on("embedded", FIRST_FINGERPRINT) == FIRST_EDITION
    assert trained_on("embedded", "0" * 64) == "embedded"
