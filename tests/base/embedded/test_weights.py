"""The shipped folders: plain, small, and usable for generation."""

import importlib

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from transformers import CLIPModel, CLIPProcessor

from farm.base.embedded.dataset import HELD_OUT_SEED, render_dataset, scenes_of
from farm.base.embedded.measure import measured_prompts
from farm.base.embedded.samples import generate_prompts
from farm.base.embedded.scorer import (
    answer,
    embed_pictures,
    load_scorer,
    measure_scorer,
    scorer_folder,
)
from farm.base.embedded.vae import measure_psnr
from farm.base.embedded.world import RARE_TOKENS
from farm.base.loading import embedded_folder

MIB = 2**20


def size_of(folder) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


@pytest.fixture(scope="module")
def pipeline() -> StableDiffusionPipeline:
    pipeline = StableDiffusionPipeline.from_pretrained(embedded_folder())
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def test_the_base_takes_at_most_12_mb_and_the_scorer_3():
    assert size_of(embedded_folder()) <= 12_000_000
    assert size_of(scorer_folder()) <= 3_000_000


def test_there_are_no_pickles_and_no_code_of_ours_is_needed():
    for folder in (embedded_folder(), scorer_folder()):
        suffixes = {path.suffix for path in folder.rglob("*") if path.is_file()}
        assert suffixes <= {".json", ".txt", ".safetensors", ".md", ""}
    assert importlib.util.find_spec("diffusers") is not None


def test_plain_diffusers_generates_a_64_px_image(pipeline):
    picture = pipeline(
        "a red cat in the snow", num_inference_steps=4, generator=torch.Generator().manual_seed(0)
    ).images[0]
    assert picture.size == (64, 64)
    assert np.asarray(picture).std() > 10


def test_a_picture_is_the_same_in_any_batch(pipeline):
    together = generate_prompts(pipeline, ["a red cat", "a blue dog"], num_steps=3)
    alone = generate_prompts(pipeline, ["a red cat"], num_steps=3)
    assert np.abs(together[0].astype(int) - alone[0].astype(int)).max() <= 2


def test_rare_tokens_are_single_tokens_of_the_shipped_tokenizer(pipeline):
    for token in RARE_TOKENS:
        assert len(pipeline.tokenizer(token).input_ids) == 3


def test_the_noise_schedule_leaves_nothing_of_the_picture_and_never_clips(pipeline):
    config = pipeline.scheduler.config
    assert config.clip_sample is False
    assert config.timestep_spacing == "trailing"
    assert config.prediction_type == "v_prediction"
    assert pipeline.scheduler.alphas_cumprod[-1] < 5e-4


def test_the_autoencoder_gives_back_what_it_was_given(pipeline):
    assert measure_psnr(pipeline.vae.float(), render_dataset(HELD_OUT_SEED, 48)) > 28


def test_the_scorer_loads_as_any_clip_and_classifies_held_out_images():
    folder = scorer_folder()
    model = CLIPModel.from_pretrained(folder, dtype=torch.float32).eval()
    processor = CLIPProcessor.from_pretrained(folder)
    album = render_dataset(HELD_OUT_SEED, 64)
    inputs = processor(images=list(album), text=["a cat"], return_tensors="pt", padding=True)
    with torch.no_grad():
        by_processor = model(**inputs).image_embeds
    scorer, tokenizer = load_scorer()
    assert torch.allclose(by_processor, embed_pictures(scorer, album), atol=2e-2)
    shares = measure_scorer(scorer, tokenizer, album, scenes_of(HELD_OUT_SEED, 64))
    assert min(shares["class_noun"], shares["colour"], shares["place"]) > 0.93


def test_generated_images_follow_their_prompts(pipeline):
    asked = measured_prompts(24)
    pictures = generate_prompts(pipeline, [a.prompt for a in asked], batch_size=24, num_steps=10)
    scorer, tokenizer = load_scorer()
    embeddings = embed_pictures(scorer, pictures)
    nouns = [a.class_noun for a in asked]
    places = answer(scorer, tokenizer, embeddings, nouns, "place")
    assert sum(p == a.place for p, a in zip(places, asked, strict=True)) >= 22
    classes = answer(scorer, tokenizer, embeddings, nouns, "class_noun")
    assert sum(c == n for c, n in zip(classes, nouns, strict=True)) >= 21
