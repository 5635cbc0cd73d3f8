#!/usr/bin/env python3
"""Which recipe makes adapters of the embedded base keep their subject? A sweep in slots.

    python benchmarks/training/embedded_recipe.py OUT [--base NAME] [--subjects 8] [VARIANT ...]

Trains one adapter per subject for every variant, four subjects (``--group``) at a time in the slots
of one trainer, and appends one JSON line per subject to OUT/results.jsonl: mark and identity
accuracy, class and place of the prompt, gain and diversity of the quality card, and the verdict.
Subjects that are in the file are skipped, so an interrupted sweep resumes; ``--budget-s`` ends it
between two groups. Class images are kept in OUT and shared by all variants. ``--table`` prints the
means.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import fmean, median
from typing import Any

import numpy as np
from safetensors.torch import load_file, save_file

from farm.base.embedded.samples import tile
from farm.base.embedded.world import CLASS_NOUNS
from farm.base.interface import Base
from farm.base.loading import load_base
from farm.cli.commands.demo import RECIPE, STEPS
from farm.quality.card import Examination
from farm.quality.protocol import ScoringBudget
from farm.quality.scorer import embedded_scorer
from farm.quality.study.bench import Bench, Trainee, class_prompt, generate_prior_sets
from farm.quality.study.identity import SubjectReader, photos_of
from farm.quality.study.rendered_subjects import RenderedSubject, sample_subjects
from farm.recipe import BASE_RECIPES, WIDE_MODULES, Recipe
from farm.training.slots.job import PriorSet

DEMO = {**BASE_RECIPES["embedded"], **RECIPE, "steps": STEPS}
ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
VARIANTS: dict[str, dict[str, Any]] = {
    "demo": {},
    "rate 4e-3": {"learning_rate": 4e-3},
    "text encoder": {"text_encoder_modules": ("q_proj", "k_proj", "v_proj", "out_proj")},
    "min-SNR 5": {"snr_gamma": 5.0},
    "rank 16": {"rank": 16},
    "prior weight 0.25": {"prior_weight": 0.25},
    "prior weight 1": {"prior_weight": 1.0},
    "2 photo rows, 300 steps": {"instance_rows": 2, "steps": 300},
    "attention only": {"target_modules": ATTENTION},
    "attention and feed-forward": {
        "target_modules": tuple(m for m in WIDE_MODULES if not m.startswith("conv"))
    },
    "middle timesteps": {"timestep_sampling": "logit_normal"},
    "beta2 0.99": {"adam_beta2": 0.99},
    "one crop": {"crops_per_photo": 1},
}


def prior_sets(base: Base, nouns: Sequence[str], num: int, folder: Path) -> dict[str, PriorSet]:
    """Class images of the nouns, generated once per base and kept in a folder."""
    sets = {}
    for noun in dict.fromkeys(nouns):
        path = folder / f"{base.fingerprint[:12]}-{noun}-{num}.safetensors"
        if not path.exists():
            folder.mkdir(parents=True, exist_ok=True)
            made = generate_prior_sets(base, [noun], num)[noun]
            save_file({"moments": made.moments}, path)
        prompt = class_prompt(noun)
        moments = load_file(path)["moments"]
        sets[noun] = PriorSet(moments, base.encode_prompts([prompt]), base.tokenize([prompt]))
    return sets


def train_group(
    base: Base, group: Sequence[RenderedSubject], recipe: Recipe, folder: Path
) -> tuple[dict[str, Examination], float]:
    """Train and examine a few subjects at once; their examinations and the training seconds."""
    trainees = [Trainee(one.name, one.class_noun, photos_of(one), recipe) for one in group]
    nouns = [one.class_noun for one in group]
    priors = prior_sets(base, nouns, recipe.num_prior_images, folder)
    bench = Bench(base, trainees, priors, embedded_scorer(), ScoringBudget(12, 6, 4))
    try:
        bench.train_to(recipe.steps)
        return bench.examine(), bench.training_s
    finally:
        bench.close()


def line_of(
    name: str, reader: SubjectReader, subject: RenderedSubject, found: Examination
) -> dict[str, Any]:
    """What OUT keeps of one subject's adapter."""
    values = asdict(reader.examination(subject, found)).items()
    evidence = found.card["evidence"]
    return {
        "variant": name,
        "subject": subject.name,
        **{key: None if math.isnan(value) else round(value, 4) for key, value in values},
        "gain": evidence["gain"],
        "diversity": evidence["diversity_ratio"],
        "prompt": evidence["prompt_ratio"],
        "verdict": found.card["verdict"]["label"],
    }


def keep(folder: Path, name: str, subject: RenderedSubject, found: Examination) -> None:
    """A sheet: the subject's photos, its images, and images of its class with the adapter."""
    photos = np.stack([np.asarray(photo) for photo in photos_of(subject)[:4]])
    images = found.pictures_GPP3.numpy()[:8], found.class_pictures_GPP3.numpy()[:4]
    stem = re.sub(r"\W+", "-", f"{name} {subject.name}")
    folder.mkdir(parents=True, exist_ok=True)
    tile(np.concatenate([photos, *images]), 16, zoom=1).save(folder / f"{stem}.png")


def table(lines: list[dict[str, Any]]) -> str:
    """The means of every variant, as a Markdown table."""
    heads = "recipe | subjects | mark | kind | identity | class | place | gain | variety | verdicts"
    rows = [f"| {heads} |", "|---" * 10 + "|"]
    for name in dict.fromkeys(one["variant"] for one in lines):
        own = [one for one in lines if one["variant"] == name]
        shares = [
            f"{100 * fmean(one[key] for one in own):.1f} %"
            for key in ("mark", "mark_kind", "identity", "class_noun", "place")
        ]
        gain = median(one["gain"] for one in own if one["gain"] is not None)
        verdicts = Counter(one["verdict"] for one in own)
        told = ", ".join(f"{num} {label}" for label, num in verdicts.most_common())
        variety = f"{100 * fmean(one['diversity'] for one in own):.0f} %"
        rows.append(
            f"| {name} | {len(own)} | {' | '.join(shares)} | {gain:.2f} | {variety} | {told} |"
        )
    return "\n".join(rows)


def sweep(options: argparse.Namespace) -> None:
    """Train the groups that are still missing, until the budget ends."""
    began = time.monotonic()
    results = options.out / "results.jsonl"
    subjects = sample_subjects(options.subjects, CLASS_NOUNS, seed=options.seed)
    reader = None
    base = load_base(options.base)
    for name in options.variants:
        change = VARIANTS[name] if name in VARIANTS else json.loads(name)
        fields = {**DEMO, "steps": options.steps, "checkpoint_every": 100_000, **change}
        recipe = Recipe(**fields)
        done = {(one["variant"], one["subject"]) for one in lines_of(results)}
        wanted = subjects[: options.first] if options.first else subjects
        missing = [one for one in wanted if (name, one.name) not in done]
        for first in range(0, len(missing), options.group):
            if time.monotonic() - began > options.budget_s:
                return
            group = missing[first : first + options.group]
            found, training_s = train_group(base, group, recipe, options.out / "priors")
            reader = reader or SubjectReader(embedded_scorer(), subjects)
            with results.open("a") as file:
                for one in group:
                    keep(options.out / "sheets", name, one, found[one.name])
                    line = line_of(name, reader, one, found[one.name])
                    file.write(json.dumps(line) + "\n")
            print(name, [one.name for one in group], f"{training_s:.0f} s", flush=True)
    if reader:
        print("readers on rendered images:", asdict(reader.held_out))


def lines_of(path: Path) -> list[dict[str, Any]]:
    """The lines of a results file; none if there is no file."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="folder of results, class images and sheets")
    parser.add_argument("variants", nargs="*", default=list(VARIANTS), help="names, or JSON")
    parser.add_argument("--base", default="embedded", help="name or folder of the base")
    parser.add_argument("--subjects", type=int, default=8)
    parser.add_argument("--first", type=int, help="train only the first N of the subjects")
    parser.add_argument("--group", type=int, default=4, help="subjects that train at once")
    parser.add_argument("--seed", type=int, default=77)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--budget-s", type=float, default=math.inf)
    parser.add_argument("--table", action="store_true", help="print the means, and train nothing")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    if not options.table:
        sweep(options)
    print(table(lines_of(options.out / "results.jsonl")))


if __name__ == "__main__":
    main()
