"""``farm study prior``: does prior preservation keep the class?

Owns the experiment: the same rendered individuals, with photos in one pose only, trained with and
without prior preservation, with several seeds, all in the slots of one trainer; their scores by
step with intervals over individuals; and the conclusions. Figures are in ``figures.py``.

The claims of DreamBooth (Ruiz et al. 2023, §3.2, §4.3, Table 3): without the prior loss the class
drifts to the subject (PRES rises), its diversity is lost (DIV falls, poses collapse to that of the
photos), and the loss costs almost no fidelity.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

from farm.base.embedded.world.words import POSES_OF
from farm.base.loading import load_base
from farm.base.names import EMBEDDED
from farm.local_files import check_folder, writing
from farm.quality.card import Examination
from farm.quality.intervals import estimate, paired_difference
from farm.quality.protocol import ScoringBudget
from farm.quality.scorer import Scorer
from farm.quality.study.bench import (
    Bench,
    Trainee,
    common_results,
    open_bench,
    write_results,
)
from farm.quality.study.figures import plot_by_step
from farm.quality.study.grids import arms_grid, steps_grid
from farm.quality.study.pose_reader import PoseReader
from farm.quality.study.rendered_subjects import (
    RenderedSubject,
    render_photos,
    sample_subjects,
)
from farm.quality.study.tables import prior_page
from farm.recipe import WIDE_MODULES, Recipe

__all__ = ["ARMS", "PriorStudy", "run_prior_study"]

ARMS = ("without", "with")
"""Without prior preservation, and with it."""
METRICS: Mapping[str, str] = {
    "fidelity": "Subject fidelity (CLIP-I)",
    "prompt": "Prompt fidelity (CLIP-T)",
    "pres": "PRES (class drifts to subject)",
    "div": "DIV (diversity of the class)",
    "poses": "Poses of the class",
    "drift": "Drift on other prompts",
}
PHOTO_POSE = "sitting"
NOUNS = ("dog", "cat", "robot", "bird")
"""Classes with a sitting pose, in the order in which individuals are assigned to them."""


@dataclass(frozen=True)
class PriorStudy:
    """The experiment's settings; all fields are written to ``results.json``."""

    num_subjects: int = 12
    num_seeds: int = 2
    steps: int = 300
    num_checks: int = 3
    """Number of evenly spaced evaluations; the base counts as step 0."""
    num_photos: int = 5
    num_prior_images: int = 96
    prior_weight: float = 0.5
    rank: int = 8
    learning_rate: float = 1e-3
    seed: int = 0
    budget: ScoringBudget = field(
        default_factory=lambda: ScoringBudget(4, 12, 4, steps=10, guidance=4.0)
    )
    nouns: tuple[str, ...] = NOUNS
    target_modules: tuple[str, ...] = WIDE_MODULES

    def recipe(self, arm: str, seed: int) -> Recipe:
        """One arm's recipe."""
        prior = arm == "with"
        return Recipe(
            steps=self.steps,
            prior_rows=1 if prior else 0,
            prior_weight=self.prior_weight,
            num_prior_images=self.num_prior_images if prior else 0,
            rank=self.rank,
            learning_rate=self.learning_rate,
            target_modules=self.target_modules,
            checkpoint_every=100_000,
            seed=seed,
        )

    @property
    def check_steps(self) -> list[int]:
        """Steps after which all adapters are scored."""
        return [
            round(self.steps * (index + 1) / self.num_checks) for index in range(self.num_checks)
        ]


@dataclass
class _Records:
    """Scores of all trainees by (arm, subject, seed) at every evaluated step."""

    values: dict[int, dict[tuple[str, str, int], dict[str, float]]] = field(default_factory=dict)
    base: dict[str, dict[str, float]] = field(default_factory=dict)
    """The untouched base's scores by subject."""

    def over_subjects(self, step: int, arm: str, metric: str) -> list[float]:
        """One number per subject: the mean over its seeds."""
        if step == 0:
            return [scores[metric] for scores in self.base.values()]
        by_subject: dict[str, list[float]] = {}
        for (own_arm, subject, _), scores in self.values[step].items():
            if own_arm == arm:
                by_subject.setdefault(subject, []).append(scores[metric])
        return [fmean(numbers) for numbers in by_subject.values()]


def run_prior_study(
    base_name: str,
    study: PriorStudy,
    out: Path,
    *,
    scorer: Scorer | None = None,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Run the experiment and write its page, plots, grids and ``results.json`` to ``out``.

    Args:
        scorer: a CLIP; None uses the embedded one.
    """
    began = time.perf_counter()
    check_folder(out)
    subjects = sample_subjects(study.num_subjects, study.nouns, seed=study.seed)
    photos = {
        subject.name: render_photos(subject, study.num_photos, poses=[PHOTO_POSE], seed=study.seed)
        for subject in subjects
    }
    with open_bench(
        load_base(base_name),
        _trainees(study, subjects, photos),
        study.num_prior_images,
        scorer=scorer,
        budget=study.budget,
        say=say,
    ) as bench:
        reader = PoseReader(bench.scorer, [subject.class_noun for subject in subjects])
        records, shown = _measure(bench, study, reader, say)
    names = [subject.name for subject in subjects]
    result = {**common_results(study, bench, began), **_result(study, records), "subjects": names}
    result["pose_accuracy"] = {"accuracy": reader.accuracy, "num": reader.num_held_out}
    write_results(out, result, prior_page(result, METRICS, _command(result)))
    with writing(out):
        _write_figures(out, result, shown, photos, names)
    say(f"done in {result['seconds']['total']:.0f} s")
    return result


def _trainees(
    study: PriorStudy, subjects: Sequence[RenderedSubject], photos: Mapping[str, Any]
) -> list[Trainee]:
    return [
        Trainee(
            key=f"{arm}/{subject.name}/{seed}",
            class_noun=subject.class_noun,
            photos=photos[subject.name],
            recipe=study.recipe(arm, study.seed + seed),
        )
        for arm in ARMS
        for subject in subjects
        for seed in range(study.num_seeds)
    ]


def _measure(
    bench: Bench,
    study: PriorStudy,
    reader: PoseReader,
    say: Callable[[str], None],
) -> tuple[_Records, dict[int, dict[str, Examination]]]:
    records, shown = _Records(), {}
    first = {trainee.class_noun: trainee.key for trainee in bench.trainees}
    nouns = {trainee.key: trainee.class_noun for trainee in bench.trainees}
    # an untrained adapter generates the same images as the base
    untouched = bench.examine(list(first.values()))
    base_poses = {
        noun: reader.read(noun, untouched[key].class_pictures_GPP3).effective
        for noun, key in first.items()
    }
    for step in study.check_steps:
        bench.train_to(step)
        examined = bench.examine()
        shown[step] = examined
        records.values[step] = {}
        for key, found in examined.items():
            arm, subject, seed = key.split("/")
            own_poses = reader.read(nouns[key], found.class_pictures_GPP3).effective
            records.values[step][(arm, subject, int(seed))] = _numbers(
                found.card, "adapter", own_poses
            )
            base_numbers = _numbers(found.card, "base", base_poses[nouns[key]])
            records.base.setdefault(subject, base_numbers)
        say(f"step {step}: trained {bench.training_s:.0f} s, scored {bench.examining_s:.0f} s")
    return records, shown


def _numbers(card: Mapping[str, Any], whose: str, num_poses: float) -> dict[str, float]:
    scores = card["scores" if whose == "adapter" else "base_scores"]
    return {
        "fidelity": scores["clip_i"]["mean"],
        "prompt": scores["clip_t"]["mean"],
        "pres": scores["pres"]["mean"],
        "div": scores["div"]["mean"],
        "poses": num_poses,
        "drift": scores["drift"]["mean"] if whose == "adapter" else 0.0,
    }


def _result(study: PriorStudy, records: _Records) -> dict[str, Any]:
    steps = [0, *study.check_steps]
    curves = {
        arm: {
            metric: [_estimated(records.over_subjects(step, arm, metric)) for step in steps]
            for metric in METRICS
        }
        for arm in ARMS
    }
    last = study.check_steps[-1]
    contrasts = {metric: _contrast(records, last, metric) for metric in METRICS}
    return {
        "steps": steps,
        "curves": curves,
        "contrasts": contrasts,
        "claims": _claims(contrasts, curves),
        "max_poses": len(POSES_OF[study.nouns[0]]),
    }


def _estimated(values: Sequence[float]) -> dict[str, Any]:
    found = estimate(values, unit="subjects", min_num=2)
    return found.to_json() if found else {"mean": fmean(values), "num": len(values)}


def _contrast(records: _Records, step: int, metric: str) -> dict[str, Any]:
    """Both arms after the last step, and the paired difference with − without."""
    without, with_ = (records.over_subjects(step, arm, metric) for arm in ARMS)
    first = estimate(without, unit="subjects", min_num=2)
    second = estimate(with_, unit="subjects", min_num=2)
    difference = paired_difference(with_, without, min_num=2)
    if first is None or second is None or difference is None:
        return {"without": fmean(without), "with": fmean(with_)}
    return {
        "without": first.to_json(),
        "with": second.to_json(),
        "difference": difference.to_json(),
        "intervals_overlap": first.overlaps(second),
    }


def _claims(contrasts: Mapping[str, Any], curves: Mapping[str, Any]) -> dict[str, Any]:
    """The article's three claims, each with its result."""

    def differs(metric: str, sign: int) -> bool | None:
        found = contrasts[metric]
        if "difference" not in found:
            return None
        return bool(sign * found["difference"]["mean"] > 0 and not found["intervals_overlap"])

    fidelity = contrasts["fidelity"]
    lost = None
    if "difference" in fidelity:
        lost = -fidelity["difference"]["mean"] / fidelity["without"]["mean"]
    return {
        "prior preservation lowers PRES, intervals apart": differs("pres", -1),
        "prior preservation keeps more poses, intervals apart": differs("poses", 1),
        "prior preservation keeps DIV higher, intervals apart": differs("div", 1),
        "fidelity lost, as a share": None if lost is None else round(lost, 4),
    }


def _write_figures(
    out: Path,
    result: Mapping[str, Any],
    shown: Mapping[int, Mapping[str, Examination]],
    photos: Mapping[str, Any],
    names: Sequence[str],
) -> None:
    plot_by_step(result, METRICS, out / "by-step.png")
    arms_grid(shown[max(shown)], names[:4], photos).save(out / "arms.png")
    steps_grid(shown, names[0]).save(out / "steps.png")


def _command(result: Mapping[str, Any]) -> str:
    """The command that repeats the study, with the options that differ from the defaults."""
    own, study, base = PriorStudy(), result["study"], result["base"]["name"]
    options = [
        f" --{name.removeprefix('num_')} {study[name]}"
        for name in ("num_subjects", "num_seeds", "steps")
        if study[name] != getattr(own, name)
    ]
    return "".join(["farm study prior", f" --base {base}" if base != EMBEDDED else "", *options])
