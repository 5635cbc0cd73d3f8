"""The second edition's training: one command without Ray, resumable, the same for the same plan."""

import random
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file
from transformers import CLIPModel

from farm.base.embedded.second.album import Album, WordEncoder, edition_scene, with_identifier
from farm.base.embedded.second.edition import EDITION_128, tiny_edition
from farm.base.embedded.second.losses import QUESTIONS, Identifiers, sample_timesteps
from farm.base.embedded.second.models import build_scorer, build_unet, build_vae
from farm.base.embedded.second.train import train_edition
from farm.base.embedded.tokenizer import build_tokenizer
from farm.base.embedded.world import RARE_TOKENS, write_caption, write_short_caption

UNET = Path("weights/unet/diffusion_pytorch_model.safetensors")
BARE = """
import runpy, sys
sys.modules["ray"] = sys.modules["pydantic"] = None  # a borrowed machine has neither
sys.argv = ["second", sys.argv[1], "--tiny", "--workers", "1"]
runpy.run_module("farm.base.embedded.second", run_name="__main__")
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("second")
    subprocess.run([sys.executable, "-c", BARE, str(out)], check=True, capture_output=True)
    return out


@pytest.mark.slow
def test_one_command_trains_a_base_and_a_scorer_that_load_anywhere(trained: Path) -> None:
    result = trained / "result"
    pipeline = StableDiffusionPipeline.from_pretrained(result / "weights")
    pipeline.set_progress_bar_config(disable=True)
    assert pipeline("a red cat", num_inference_steps=2).images[0].size == (32, 32)
    scorer = CLIPModel.from_pretrained(result / "scorer")
    assert scorer.config.vision_config.image_size == 32
    assert (result / "summary.json").exists()


@pytest.mark.slow
def test_a_training_that_its_budget_ended_resumes_and_gives_the_same_weights(
    trained: Path, tmp_path: Path
) -> None:
    for part in ("cache", "tokenizer", "plan.json"):
        copy = shutil.copytree if (trained / part).is_dir() else shutil.copy
        copy(trained / part, tmp_path / part)
    train_edition(tmp_path, tiny_edition(), budget_s=0.0, num_workers=1)
    assert (tmp_path / "stages" / "vae.safetensors").exists()
    assert not (tmp_path / "result").exists()
    train_edition(tmp_path, tiny_edition(), num_workers=1)
    whole, resumed = load_file(trained / "result" / UNET), load_file(tmp_path / "result" / UNET)
    assert all(torch.allclose(whole[name], resumed[name], atol=1e-3) for name in whole)


def test_an_album_is_the_same_however_many_processes_fill_it(tmp_path: Path) -> None:
    build_tokenizer(tmp_path)
    albums = [Album(tmp_path / str(number), tiny_edition().scaled(1.5), 5) for number in (1, 2)]
    albums[0].prepare()
    albums[0].fill(tmp_path / "vocab.json")
    albums[1].prepare()
    assert albums[1].num_ready() == 0
    albums[1].fill(tmp_path / "vocab.json", 1, 2)
    assert albums[1].num_ready() == 0  # the second part alone leaves a gap
    albums[1].fill(tmp_path / "vocab.json", 0, 2)
    assert albums[1].wait_for(10**6, until_s=0.0) == albums[1].edition.num_pictures
    for name in ("pictures", "ids", "stated", "facts"):
        assert np.array_equal(getattr(albums[0], name), getattr(albums[1], name))


def test_captions_are_encoded_as_the_tokenizer_does(tmp_path: Path) -> None:
    tokenizer = build_tokenizer(tmp_path)
    encode = WordEncoder(tmp_path / "vocab.json")
    rng = random.Random(1)
    scenes = [edition_scene(EDITION_128, 3, index) for index in range(60)]
    captions = [write(scene, rng).text for scene in scenes for write in
                (write_caption, write_short_caption)]  # fmt: skip
    for text in [*captions, *QUESTIONS]:
        ids = tokenizer(text, padding="max_length", max_length=32).input_ids
        assert encode(text).tolist() == ids


def test_the_edition_stays_within_its_size() -> None:
    num_bytes = [
        2 * sum(part.numel() for part in build(EDITION_128).parameters())
        for build in (build_vae, build_unet)
    ]
    assert max(num_bytes) <= 16_000_000  # what one result file of a borrowed machine may hold
    assert sum(num_bytes) <= 25_000_000
    assert EDITION_128.latent_px == 16
    rows = EDITION_128.denoiser.num_steps * EDITION_128.denoiser.batch_size
    assert rows >= 10 * 45_000 * 32  # ten times the first edition's images


def test_identifiers_that_the_text_encoder_drops_cost_and_training_makes_them_legible(
    tmp_path: Path,
) -> None:
    tokenizer = build_tokenizer(tmp_path)
    torch.manual_seed(0)
    scorer = build_scorer(tiny_edition(), tokenizer)
    identifiers = Identifiers.of(tokenizer, torch.device("cpu"))
    optimizer = torch.optim.Adam(scorer.text_model.parameters(), lr=3e-3)

    def loss(step: int) -> torch.Tensor:
        return identifiers.loss(scorer.text_model, 0.9, torch.Generator().manual_seed(step))

    before = loss(0).item()
    for step in range(20):
        optimizer.zero_grad()
        loss(step).backward()
        optimizer.step()
    assert before > 0.1
    assert loss(0).item() < 0.5 * before


def test_some_captions_name_an_identifier_and_state_the_same_facts() -> None:
    scene = edition_scene(EDITION_128, 3, 1)
    rng = random.Random(0)
    plain = write_caption(scene, rng).text
    named = with_identifier(plain, scene, rng)
    assert len(named.split()) == len(plain.split())
    changed = [
        pair for pair in zip(plain.split(), named.split(), strict=True) if len(set(pair)) > 1
    ]
    assert len(changed) == 1
    assert changed[0][0] in ("a", "an", "the")
    assert changed[0][1] in RARE_TOKENS


def test_timesteps_are_spread_with_a_share_in_the_middle() -> None:
    steps = sample_timesteps(1000, 0.5, torch.Generator().manual_seed(0))
    middle = ((steps >= 200) & (steps < 800)).float().mean()
    assert 0.78 <= middle <= 0.82
    assert steps.min() < 10
    assert steps.max() > 990
