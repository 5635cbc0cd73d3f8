"""Measure the images that a base generates, with the scorer of the synthetic world.

Owns the protocol: which prompts, how many, and the options among which the scorer chooses. The
scorer is used like any CLIP: `CLIPModel.from_pretrained`, cosine of image and prompt.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor
from transformers import CLIPModel, CLIPTokenizer

from farm.base.embedded.dataset import HELD_OUT_SEED, render_dataset, scenes_of
from farm.base.embedded.folder import load_pipeline
from farm.base.embedded.samples import GUIDANCE, NUM_STEPS, generate_prompts
from farm.base.embedded.scorer import (
    answer,
    article,
    embed_pictures,
    load_scorer,
    measure_scorer,
)
from farm.base.embedded.vae import measure_psnr
from farm.base.embedded.world.subjects import render_class
from farm.base.embedded.world.words import CLASS_NOUNS, COLOURS, SCENERY
from farm.local_files import check_folder, write_file

__all__ = ["measure_base"]

NUM_PICTURES = 528
"""Every class noun with every colour, six times, each time in a different place."""
NUM_CATS = 96
NUM_HELD_OUT = 500


@dataclass(frozen=True)
class Asked:
    """One measured prompt and what it asks for."""

    class_noun: str
    colour: str
    place: str

    @property
    def prompt(self) -> str:
        """`a {colour} {class} {place}`."""
        return f"{article(self.colour)} {self.class_noun} {self.place}"


def measured_prompts(count: int) -> list[Asked]:
    """The first `count` prompts: all classes, colours and places in equal shares."""
    asked = []
    for index in range(count):
        noun = CLASS_NOUNS[index % len(CLASS_NOUNS)]
        colour = list(COLOURS)[(index // len(CLASS_NOUNS)) % len(COLOURS)]
        round_, within = divmod(index, len(CLASS_NOUNS) * len(COLOURS))
        place = SCENERY[(within * 5 + within // len(SCENERY) + round_) % len(SCENERY)]
        asked.append(Asked(noun, colour, place))
    return asked


def measure_base(
    name: str = "embedded",
    *,
    count: int | None = None,
    out: Path | None = None,
    seed: int = 0,
    guidance: float = GUIDANCE,
) -> dict[str, object]:
    """Measure a base with the synthetic world's scorer.

    Args:
        name: any name that `farm.base.loading.resolve_folder` resolves.
        count: images generated for the accuracies; None means 528. Other counts scale with it.
        out: where to write `measurements.md` and `measurements.json`.
        seed: seed of the generated images.
        guidance: classifier-free guidance scale.

    Returns:
        Each measurement with its count, and the conditions.
    """
    from farm.base.loading import resolve_folder

    if out is not None:
        check_folder(out)
    num_pictures = count or NUM_PICTURES
    num_cats, num_held_out = min(NUM_CATS, num_pictures), min(NUM_HELD_OUT, num_pictures)
    started_s = time.monotonic()
    pipeline = load_pipeline(resolve_folder(name))
    load_s = time.monotonic() - started_s
    scorer, tokenizer = load_scorer()
    facts: dict[str, object] = {
        "base": name,
        "guidance": guidance,
        "steps": NUM_STEPS,
        "seed": seed,
    }
    facts |= _accuracies(pipeline, scorer, tokenizer, num_pictures, seed, guidance)
    facts |= _diversity(pipeline, scorer, num_cats, seed, guidance)
    held_out = render_dataset(HELD_OUT_SEED, num_held_out)
    facts |= {
        "vae_psnr_db": round(measure_psnr(pipeline.vae, held_out), 2),
        "vae_psnr_count": num_held_out,
    }
    own = measure_scorer(scorer, tokenizer, held_out, scenes_of(HELD_OUT_SEED, num_held_out))
    facts |= {f"scorer_{fact}_accuracy": round(share, 4) for fact, share in own.items()}
    facts |= {"scorer_count": num_held_out}
    facts |= {"picture_s": round(_time_one(pipeline, guidance), 3), "load_s": round(load_s, 3)}
    if out is not None:
        _write_report(out, facts)
    return facts


def _accuracies(
    pipeline: StableDiffusionPipeline,
    scorer: CLIPModel,
    tokenizer: CLIPTokenizer,
    count: int,
    seed: int,
    guidance: float,
) -> dict[str, object]:
    asked = measured_prompts(count)
    pictures = generate_prompts(pipeline, [a.prompt for a in asked], seed=seed, guidance=guidance)
    embeddings = embed_pictures(scorer, pictures)
    nouns = [a.class_noun for a in asked]
    facts: dict[str, object] = {}
    for fact, wanted in (
        ("class", nouns),
        ("colour", [a.colour for a in asked]),
        ("place", [a.place for a in asked]),
    ):
        given = answer(
            scorer, tokenizer, embeddings, nouns, "class_noun" if fact == "class" else fact
        )
        right = sum(w == g for w, g in zip(wanted, given, strict=True))
        facts |= {f"{fact}_accuracy": round(right / count, 4), f"{fact}_count": count}
    return facts


def _diversity(
    pipeline: StableDiffusionPipeline, scorer: CLIPModel, count: int, seed: int, guidance: float
) -> dict[str, object]:
    generated = generate_prompts(pipeline, ["a cat"] * count, seed=seed + 1, guidance=guidance)
    real = np.stack([np.asarray(photo.picture) for photo in render_class(seed, "cat", count)])
    ratio = spread(embed_pictures(scorer, generated)) / spread(embed_pictures(scorer, real))
    return {"diversity_ratio": round(ratio, 4), "diversity_count": count}


def spread(embeddings_ND: Tensor) -> float:
    """Mean cosine distance over all pairs of unit embeddings."""
    num = len(embeddings_ND)
    cosines = embeddings_ND @ embeddings_ND.T
    return float(1 - (cosines.sum() - num) / (num * (num - 1)))


def _time_one(pipeline: StableDiffusionPipeline, guidance: float) -> float:
    """Seconds for one image, the best of three."""
    times = []
    for _ in range(3):
        started_s = time.monotonic()
        generate_prompts(pipeline, ["a red cat in the snow"], guidance=guidance)
        times.append(time.monotonic() - started_s)
    return min(times)


def _write_report(out: Path, facts: Mapping[str, object]) -> None:
    write_file(out / "measurements.json", json.dumps(dict(facts), indent=2).encode() + b"\n")
    rows = [
        ("right class", "class_accuracy", "class_count", "≥ 0.90"),
        ("right colour", "colour_accuracy", "colour_count", "≥ 0.85"),
        ("right place", "place_accuracy", "place_count", "≥ 0.90"),
        ("diversity of `a cat`", "diversity_ratio", "diversity_count", "≥ 0.80"),
        ("autoencoder, PSNR in dB", "vae_psnr_db", "vae_psnr_count", "≥ 28"),
        ("scorer itself, class", "scorer_class_noun_accuracy", "scorer_count", "≥ 0.97"),
        ("scorer itself, colour", "scorer_colour_accuracy", "scorer_count", "≥ 0.97"),
        ("scorer itself, place", "scorer_place_accuracy", "scorer_count", "≥ 0.97"),
        ("scorer itself, pose", "scorer_pose_accuracy", "scorer_count", ""),
    ]
    lines = [
        f"# Measurements of `{facts['base']}`",
        "",
        f"{facts['steps']} steps, guidance {facts['guidance']}, seed {facts['seed']}.",
        "Prompts: `a {colour} {class} {place}`, judged by the scorer among all classes,",
        "colours or places.",
        "",
        "| measurement | value | images | target |",
        "|---|---|---|---|",
        *(
            f"| {label} | {facts[key]} | {facts[count]} | {wanted} |"
            for label, key, count, wanted in rows
        ),
        "",
        f"One image takes {facts['picture_s']} s on {torch.get_num_threads()} CPU threads;",
        f"loading the folder took {facts['load_s']} s after imports.",
        "",
    ]
    write_file(out / "measurements.md", "\n".join(lines).encode())
