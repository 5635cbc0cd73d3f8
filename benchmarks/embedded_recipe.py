#!/usr/bin/env python3
"""Which recipe makes adapters of the embedded base keep their subject? A sweep in slots.

    python benchmarks/embedded_recipe.py OUT [--subjects 8] [--seed 77] [VARIANT ...]

Trains one adapter per subject for every variant, all subjects of a variant in the slots of one
trainer, and appends one JSON line per variant to OUT: mark and identity accuracy, class and place
of the prompt, gain and diversity of the quality card, verdicts, and training seconds. Variants that
OUT already holds are skipped, so an interrupted sweep resumes.
"""

from __future__ import annotations

import argparse
import json
import math
import re
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from statistics import fmean, median
from typing import Any

import numpy as np

from farm.base.embedded.samples import tile
from farm.base.embedded.world import CLASS_NOUNS
from farm.base.loading import load_base
from farm.cli.commands.demo import RECIPE, STEPS
from farm.quality.protocol import ScoringBudget
from farm.quality.scorer import embedded_scorer
from farm.quality.study.bench import Bench, Trainee, generate_prior_sets
from farm.quality.study.identity import IdentityScores, SubjectReader, mean_scores, photos_of
from farm.quality.study.rendered_subjects import sample_subjects
from farm.recipe import BASE_RECIPES, WIDE_MODULES, Recipe

TODAY = {**BASE_RECIPES["embedded"], **RECIPE, "steps": STEPS}
TEXT = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")
VARIANTS: dict[str, dict[str, Any]] = {
    "today": {},
    "rate 4e-3": {"learning_rate": 4e-3},
    "text encoder": {"text_encoder_modules": TEXT},
    "min-SNR 5": {"snr_gamma": 5.0},
    "rank 16": {"rank": 16},
    "prior weight 0.25": {"prior_weight": 0.25},
    "2 photo rows, 300 steps": {"instance_rows": 2, "steps": 300},
    "attention only": {"target_modules": ("to_q", "to_k", "to_v", "to_out.0")},
    "samplers too": {"target_modules": (*WIDE_MODULES, "conv", "conv_shortcut", "conv_out")},
    "beta2 0.99": {"adam_beta2": 0.99},
    "96 class images": {"num_prior_images": 96},
}


def run_variant(name: str, change: dict[str, Any], options: argparse.Namespace) -> dict[str, Any]:
    """Train and score one variant on all subjects."""
    base, scorer = load_base("embedded"), embedded_scorer()
    recipe = Recipe(**{**TODAY, "checkpoint_every": 100_000, **change})
    subjects = sample_subjects(options.subjects, CLASS_NOUNS, seed=options.seed)
    reader = SubjectReader(scorer, subjects)
    trainees = [
        Trainee(subject.name, subject.class_noun, photos_of(subject), recipe)
        for subject in subjects
    ]
    nouns = [subject.class_noun for subject in subjects]
    priors = generate_prior_sets(base, nouns, recipe.num_prior_images)
    bench = Bench(base, trainees, priors, scorer, ScoringBudget(12, 12, 4))
    try:
        bench.train_to(recipe.steps)
        found = bench.examine()
    finally:
        bench.close()
    if options.pictures:
        _keep(options.pictures, name, trainees, found)
    scores = mean_scores([reader.examination(one, found[one.name]) for one in subjects])
    cards = [one.card for one in found.values()]
    evidence = [card["evidence"] for card in cards]
    gains = [one["gain"] for one in evidence if one["gain"] is not None]
    return {
        "variant": name,
        "change": change,
        "subjects": options.subjects,
        "seed": options.seed,
        **_rounded(scores),
        "gain_median": round(median(gains), 3),
        "diversity": round(fmean(one["diversity_ratio"] for one in evidence), 3),
        "prompt": round(fmean(one["prompt_ratio"] for one in evidence), 3),
        "verdicts": dict(Counter(card["verdict"]["label"] for card in cards)),
        "training_s": round(bench.training_s, 1),
        "readers": _rounded(reader.held_out),
    }


def _rounded(scores: IdentityScores) -> dict[str, float | None]:
    """Plain values; None where nothing was measured."""
    values = asdict(scores).items()
    return {key: None if math.isnan(value) else round(value, 4) for key, value in values}


def _keep(folder: Path, name: str, trainees: list[Trainee], found: dict[str, Any]) -> None:
    """All images as arrays, and a sheet: each subject's photos, then its images."""
    rows = []
    for one in trainees:
        rows += [np.asarray(photo) for photo in list(one.photos)[:4]]
        rows += list(found[one.key].pictures_GPP3.numpy()[:8])
    folder.mkdir(parents=True, exist_ok=True)
    stem = re.sub(r"\W+", "-", name)
    tile(np.stack(rows), 12, zoom=1).save(folder / f"{stem}.png")
    arrays = {key: one.pictures_GPP3.numpy() for key, one in found.items()}
    np.savez(folder / f"{stem}.npz", **arrays)


def main() -> None:
    """Run the variants that are still missing."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="file of JSON lines")
    parser.add_argument("variants", nargs="*", default=list(VARIANTS))
    parser.add_argument("--subjects", type=int, default=8)
    parser.add_argument("--seed", type=int, default=77)
    parser.add_argument("--pictures", type=Path, help="folder for contact sheets")
    options = parser.parse_args()
    done = set()
    if options.out.exists():
        done = {json.loads(line)["variant"] for line in options.out.read_text().splitlines()}
    for name in options.variants:
        change = VARIANTS[name] if name in VARIANTS else json.loads(name)
        if name in done:
            continue
        result = run_variant(name, change, options)
        with options.out.open("a") as file:
            file.write(json.dumps(result) + "\n")
        print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
