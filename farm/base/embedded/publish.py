"""Copy a finished training into the package and its sample sheets into the docs.

`python -m farm.base.embedded.publish WORK [--guidance G]` copies the folders of `farm base train
embedded --out WORK` into the package, measures them, and writes `docs/embedded-base/`. With
`--interim` it uses the averaged weights of the last checkpoint of a training that is still running.
Without WORK, it measures the package's weights and renders their sheets.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import numpy as np
from diffusers import AutoencoderKL
from safetensors import safe_open
from transformers import CLIPModel

from farm.base.embedded.curves import plot_curves
from farm.base.embedded.denoiser import averaged
from farm.base.embedded.folder import load_pipeline, text_tower, write_base, write_scorer
from farm.base.embedded.measure import measure_base, measured_prompts
from farm.base.embedded.samples import GUIDANCE, generate_prompts, tile
from farm.base.embedded.scorer import scorer_folder
from farm.base.embedded.tokenizer import build_tokenizer
from farm.base.embedded.world.render import render_scene
from farm.base.embedded.world.scene import sample_scene
from farm.base.embedded.world.subjects import render_subject

COMBINATIONS = (
    "a red cat wearing a blue hat in space",
    "a pink robot with a yellow star on the beach",
    "a green dog sleeping under water",
    "a blue mushroom wearing a red scarf at night",
    "a purple teapot in the snow",
    "a white bird flying at sunset",
    "a yellow fish in the desert",
    "a black car upside down in a meadow",
    "a pencil drawing of an orange cat in the forest",
    "a brown dog wearing a yellow crown in the city",
    "a grey robot jumping in the mountains",
    "an orange bird in the kitchen",
)
"""Twelve prompts that combine words in ways that training captions rarely or never did."""


def publish(
    work: Path | None, docs: Path, *, guidance: float = GUIDANCE, is_interim: bool = False
) -> None:
    """Copy or assemble the folders, measure, and write the sheets."""
    weights = Path(__file__).parent / "weights"
    docs.mkdir(parents=True, exist_ok=True)
    if work is not None:
        if is_interim:
            _assemble(work, weights)
        else:
            _replace(work / "weights", weights)
            _replace(work / "scorer", scorer_folder())
        shutil.copy(work / "progress.jsonl", docs / "progress.jsonl")
        plot_curves(docs / "progress.jsonl", docs / "curves.png")
    render_sheets(weights, docs, guidance)
    measure_base("embedded", out=docs, guidance=guidance)


def _replace(source: Path, target: Path) -> None:
    for path in source.rglob("*"):
        if path.is_file():
            place = target / path.relative_to(source)
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, place)


def _assemble(work: Path, weights: Path) -> None:
    stages = work / "stages"
    tokenizer = build_tokenizer(work / "tokenizer")
    scorer = CLIPModel.from_pretrained(stages / "scorer").eval()
    refined = stages / "vae-refined"
    vae = AutoencoderKL.from_pretrained(refined if refined.exists() else stages / "vae").eval()
    with safe_open(stages / "denoiser.safetensors", framework="pt") as file:
        names = [name for name in file.keys() if name.startswith("average/")]  # noqa: SIM118
        average = {name.removeprefix("average/"): file.get_tensor(name) for name in names}
    write_base(weights, tokenizer, text_tower(scorer), vae, averaged(average))
    better = stages / "scorer-refined"
    if better.exists():
        scorer = CLIPModel.from_pretrained(better).eval()
    write_scorer(scorer_folder(), scorer, tokenizer)


def render_sheets(weights: Path, docs: Path, guidance: float) -> None:
    """Write the sheets: the world, a subject, 64 samples, twelve combinations, cats."""
    world = np.stack([np.asarray(render_scene(sample_scene(42, index))) for index in range(64)])
    tile(world, 16).save(docs / "world.png")
    subjects = [photo for seed in range(4) for photo in render_subject(seed, 8)]
    tile(np.stack([np.asarray(photo.picture) for photo in subjects]), 8).save(docs / "subjects.png")
    pipeline = load_pipeline(weights)
    prompts = [asked.prompt for asked in measured_prompts(64)]
    tile(generate_prompts(pipeline, prompts, seed=5, guidance=guidance), 8).save(
        docs / "samples.png"
    )
    numbered = [f"{index // 8 + 1}.{index % 8 + 1} {text}" for index, text in enumerate(prompts)]
    (docs / "samples.txt").write_text("\n".join(numbered) + "\n")
    together = generate_prompts(pipeline, list(COMBINATIONS), seed=6, guidance=guidance)
    tile(together, 6, zoom=3).save(docs / "combinations.png")
    (docs / "combinations.txt").write_text("\n".join(COMBINATIONS) + "\n")
    cats = generate_prompts(pipeline, ["a cat"] * 16, seed=7, guidance=guidance)
    tile(cats, 8).save(docs / "cats.png")


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=Path, nargs="?")
    parser.add_argument("--docs", type=Path, default=Path("docs/embedded-base"))
    parser.add_argument("--guidance", type=float, default=GUIDANCE)
    parser.add_argument("--interim", action="store_true")
    options = parser.parse_args()
    publish(options.work, options.docs, guidance=options.guidance, is_interim=options.interim)


if __name__ == "__main__":
    main()
