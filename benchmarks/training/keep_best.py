"""Early stop with keep-best against training all steps, on real and rendered subjects.

Every subject is trained for all steps in a slot. The trainer's own rules (``should_stop``,
``is_best``) are applied to its evaluation losses, and the weights that they would keep are saved.
Training is identical in both arms up to that step, so it runs once. Both weights are then scored.
Writes a Markdown page and prints one JSON line.

    python benchmarks/training/keep_best.py --photos PATH/dreambooth

``PATH/dreambooth`` contains a folder of photos per subject and ``subjects.csv`` (subject, class,
live), like the DreamBooth paper's data set.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageOps
from torch import Tensor

from farm.base.embedded.world import CLASS_NOUNS, POSES_OF
from farm.base.interface import Base
from farm.base.loading import load_base
from farm.intake.photos.decode import open_photo
from farm.quality.card import Examiner
from farm.quality.intervals import estimate, paired_difference
from farm.quality.protocol import ScoringBudget, rendered_protocol
from farm.quality.scorer import Scorer, embedded_scorer
from farm.quality.study.bench import Bench, Trainee, generate_prior_sets
from farm.quality.study.rendered_subjects import render_photos, sample_subjects
from farm.recipe import WIDE_MODULES, EarlyStop, Recipe
from farm.training.slots.evaluation import is_best, should_stop
from farm.training.slots.job import PriorSet
from farm.training.slots.trainer import SlotTrainer

ARMS = ("all steps", "early stop")


@dataclass(frozen=True)
class Subject:
    """One subject of the comparison."""

    name: str
    group: str
    class_noun: str
    photos: Sequence[Image.Image]


def real_subjects(folder: Path, side_px: int) -> list[Subject]:
    """Subjects of a folder with ``subjects.csv``."""
    with open(folder / "subjects.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    found = []
    for row in rows:
        files = sorted(path for path in (folder / row["subject"]).iterdir() if path.is_file())
        photos = [open_photo(path.read_bytes()) for path in files]
        fitted = [ImageOps.fit(photo, (side_px, side_px)) for photo in photos]
        found.append(Subject(row["subject"], "real", row["class"], fitted))
    return found


def rendered_subjects(num: int) -> list[Subject]:
    """Rendered individuals with five photos each, in several poses and places."""
    found = []
    for sitter in sample_subjects(num, CLASS_NOUNS, seed=7):
        photos = render_photos(sitter, 5, poses=POSES_OF[sitter.class_noun][:3])
        found.append(Subject(sitter.name, "rendered", sitter.class_noun, photos))
    return found


@dataclass
class EarlyArm:
    """The result of early stop with keep-best for one subject."""

    slot: int
    rule: EarlyStop
    curve: list[tuple[int, float]] = field(default_factory=list)
    kept_row_P: Tensor | None = None  # noqa: N815
    kept_step: int = 0
    seconds: float = 0.0
    has_stopped: bool = False

    @property
    def steps(self) -> int:
        """Steps until the stop."""
        return self.curve[-1][0]

    def look(self, step: int, loss: float, trainer: SlotTrainer) -> None:
        """Apply the trainer's rules to an evaluation."""
        self.curve.append((step, loss))
        self.seconds = trainer.seconds(self.slot)
        if is_best(self.curve):
            self.kept_row_P = trainer.bank.flat_ZP[self.slot].clone()
            self.kept_step = step
        self.has_stopped = should_stop(self.curve, self.rule)


def compare(
    base: Base, scorer: Scorer, subjects: Sequence[Subject], options: argparse.Namespace
) -> list[dict[str, Any]]:
    """Train and score every subject; one row each."""
    priors = generate_prior_sets(base, [subject.class_noun for subject in subjects], options.priors)
    recipe = Recipe(
        steps=options.steps,
        rank=8,
        learning_rate=options.learning_rate,
        target_modules=WIDE_MODULES if options.wide else Recipe().target_modules,
        num_prior_images=options.priors,
        checkpoint_every=100_000,
    )
    rows = []
    for start in range(0, len(subjects), options.slots):
        rows += _compare(base, scorer, subjects[start : start + options.slots], priors, recipe,
                         options)  # fmt: skip
        print(f"{len(rows)} of {len(subjects)} subjects", flush=True)
    return rows


def _compare(
    base: Base,
    scorer: Scorer,
    subjects: Sequence[Subject],
    priors: dict[str, PriorSet],
    recipe: Recipe,
    options: argparse.Namespace,
) -> list[dict[str, Any]]:
    rule = EarlyStop(
        every_steps=options.every,
        patience=options.patience,
        min_steps=options.min_steps,
        min_delta=options.min_delta,
    )
    trainees = [Trainee(one.name, one.class_noun, one.photos, recipe) for one in subjects]
    bench = Bench(base, trainees, priors)
    try:
        arms = {name: EarlyArm(slot, rule) for name, slot in bench.slots.items()}
        for step in range(options.every, options.steps + 1, options.every):
            bench.train_to(step)
            going = [arm for arm in arms.values() if not arm.has_stopped]
            losses = bench.trainer.evaluation_loss([arm.slot for arm in going])
            for arm in going:
                arm.look(step, losses[arm.slot], bench.trainer)
        budget = ScoringBudget(options.pictures, 4, 4, steps=12)
        examiner = Examiner(
            base, bench.trainer.bank, scorer, budget, protocol_of=rendered_protocol, batch=64
        )
        scores = {ARMS[0]: _scores(bench, examiner)}
        seconds = {name: bench.trainer.seconds(slot) for name, slot in bench.slots.items()}
        for arm in arms.values():
            assert arm.kept_row_P is not None
            bench.trainer.bank.write_row(arm.slot, arm.kept_row_P)
        scores[ARMS[1]] = _scores(bench, examiner)
    finally:
        bench.close()
    return [
        {
            "subject": subject.name,
            "group": subject.group,
            "steps": arms[subject.name].steps,
            "kept": arms[subject.name].kept_step,
            "fidelity": {arm: scores[arm][subject.name]["clip_i"]["mean"] for arm in ARMS},
            "pres": {arm: scores[arm][subject.name]["pres"]["mean"] for arm in ARMS},
            "seconds": dict(
                zip(ARMS, (seconds[subject.name], arms[subject.name].seconds), strict=True)
            ),
        }
        for subject in subjects
    ]


def _scores(bench: Bench, examiner: Examiner) -> dict[str, Any]:
    return {key: found.card["scores"] for key, found in bench.examine(examiner).items()}


def summarise(rows: Sequence[dict[str, Any]], steps: int) -> dict[str, Any]:
    """Steps saved, and fidelity compared, over one group."""
    before = [row["fidelity"][ARMS[0]] for row in rows]
    after = [row["fidelity"][ARMS[1]] for row in rows]
    pres = paired_difference(
        [row["pres"][ARMS[1]] for row in rows], [row["pres"][ARMS[0]] for row in rows], min_num=2
    )
    difference = paired_difference(after, before, min_num=2)
    all_steps = estimate(before, unit="subjects", min_num=2)
    early = estimate(after, unit="subjects", min_num=2)
    assert difference is not None
    assert all_steps is not None
    assert early is not None
    assert pres is not None
    saved = 1 - sum(row["steps"] for row in rows) / (steps * len(rows))
    return {
        "subjects": len(rows),
        "steps_saved": round(saved, 4),
        "mean_steps": round(sum(row["steps"] for row in rows) / len(rows), 1),
        "mean_kept_step": round(sum(row["kept"] for row in rows) / len(rows), 1),
        "fidelity_all_steps": all_steps.to_json(),
        "fidelity_early_stop": early.to_json(),
        "fidelity_difference": difference.to_json(),
        "pres_difference": pres.to_json(),
        "equal_or_better": difference.high >= 0,
    }


def page(result: dict[str, Any]) -> str:
    """The result as Markdown."""
    options = result["options"]
    lines = [
        "# Early stop with keep-best against all steps",
        "",
        f"{result['when']}, {result['hardware']}, base `{options['base']}`, "
        f"{options['steps']} steps at most, learning rate {options['learning_rate']:g}, rank 8"
        f"{' on attention, feed-forward layers and convolutions' if options['wide'] else ''}, "
        f"evaluation every {options['every']} steps, patience {options['patience']}, not before "
        f"step {options['min_steps']}, minimum decrease {options['min_delta']:g}. Fidelity is "
        f"CLIP-I with the embedded scorer over {options['pictures']} images per subject; intervals "
        "are 95 %, over subjects. Real photos at 64 px differ from the training data of base "
        "and scorer; their rows show how the rule behaves, not how good the images are.",
        "",
        "| subjects | steps saved | mean steps | fidelity, all steps | early stop | difference "
        "| PRES difference |",
        "|---|---|---|---|---|---|---|",
    ]
    for group, found in result["groups"].items():
        cells = [
            _interval(found[key])
            for key in ("fidelity_all_steps", "fidelity_early_stop", "fidelity_difference",
                        "pres_difference")
        ]  # fmt: skip
        lines.append(
            f"| {found['subjects']} {group} | {100 * found['steps_saved']:.0f} % | "
            f"{found['mean_steps']:.0f} | {' | '.join(cells)} |"
        )
    lines += ["", f"{result['seconds']:.0f} s in total.", "", "```", result["command"], "```", ""]
    return "\n".join(lines)


def _interval(value: dict[str, Any]) -> str:
    return f"{value['mean']:.3f} [{value['low']:.3f}, {value['high']:.3f}]"


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--photos", type=Path, help="folder of real subjects with subjects.csv")
    parser.add_argument("--rendered", type=int, default=50)
    parser.add_argument("--base", default="embedded")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--wide", action=argparse.BooleanOptionalAction, default=True,
                        help="adapters on convolutions and feed-forward layers too")  # fmt: skip
    parser.add_argument("--every", type=int, default=25)
    parser.add_argument("--patience", type=int, default=4)
    parser.add_argument("--min-steps", type=int, default=100)
    parser.add_argument("--min-delta", type=float, default=0.01)
    parser.add_argument("--priors", type=int, default=32)
    parser.add_argument("--pictures", type=int, default=12)
    parser.add_argument("--slots", type=int, default=25)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    began = time.perf_counter()
    base, scorer = load_base(options.base), embedded_scorer()
    subjects = rendered_subjects(options.rendered)
    if options.photos is not None:
        subjects = real_subjects(options.photos, base.resolution_px) + subjects
    rows = compare(base, scorer, subjects, options)
    groups = {
        group: summarise([row for row in rows if row["group"] == group], options.steps)
        for group in dict.fromkeys(row["group"] for row in rows)
    }
    today = datetime.now(UTC).date().isoformat()
    shown = {key: value for key, value in vars(options).items() if key not in ("photos", "out")}
    result = {
        "when": today,
        "hardware": f"{os.cpu_count()} CPU cores ({platform.machine()}), "
        f"{torch.get_num_threads()} threads",
        "options": shown,
        "groups": groups,
        "rows": rows,
        "seconds": round(time.perf_counter() - began, 1),
        "command": "python benchmarks/training/keep_best.py --photos dreambooth "
        f"--steps {options.steps}",
    }
    out = options.out or Path(__file__).parents[1] / f"keep_best-cpu-{today}.md"
    out.write_text(page(result))
    out.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps({"groups": groups, "seconds": result["seconds"], "page": str(out)}))


if __name__ == "__main__":
    main()
