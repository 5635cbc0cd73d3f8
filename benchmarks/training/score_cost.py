"""The cost of a run's quality cards relative to its training, at the default budget.

Trains rendered subjects in slots as a lane does, scores them with the judge's examiner, and times
both. Writes a Markdown page and prints one JSON line.

    python benchmarks/training/score_cost.py --subjects 100 --steps 800
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from farm.base.embedded.world import CLASS_NOUNS, POSES_OF
from farm.base.loading import load_base
from farm.intake.scoring import DEFAULT_SHARE
from farm.quality.card import Examiner
from farm.quality.protocol import ScoringBudget
from farm.quality.scorer import embedded_scorer
from farm.quality.study.bench import Bench, Trainee, generate_prior_sets
from farm.quality.study.rendered_subjects import render_photos, sample_subjects
from farm.recipe import Recipe


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Train and score; seconds of both."""
    base, scorer = load_base(options.base), embedded_scorer()
    recipe = Recipe(steps=options.steps, rank=4, learning_rate=1e-3, num_prior_images=32,
                    checkpoint_every=100_000)  # fmt: skip
    budget = ScoringBudget.within(recipe, DEFAULT_SHARE)
    if budget is None:
        raise SystemExit(f"{options.steps} steps are too few for a scoring budget")
    people = sample_subjects(options.subjects, CLASS_NOUNS, seed=11)
    priors = generate_prior_sets(base, CLASS_NOUNS, 32)
    training_s = scoring_s = 0.0
    examiner: Examiner | None = None
    for start in range(0, len(people), options.slots):
        chunk = people[start : start + options.slots]
        trainees = [
            Trainee(f"{start + n}", one.class_noun,
                    render_photos(one, 5, poses=POSES_OF[one.class_noun]), recipe)
            for n, one in enumerate(chunk)
        ]  # fmt: skip
        bench = Bench(base, trainees, priors)
        try:
            bench.train_to(options.timed_steps or options.steps)
            if examiner is None:  # one for all chunks, as in a lane's judge
                examiner = Examiner(base, bench.trainer.bank, scorer, budget)
            examiner.bank = bench.trainer.bank
            bench.examine(examiner)
        finally:
            bench.close()
        training_s += bench.training_s
        scoring_s += bench.examining_s
        print(f"{start + len(chunk)} of {len(people)}: training {training_s:.0f} s, "
              f"scoring {scoring_s:.0f} s", flush=True)  # fmt: skip
    assert examiner is not None
    training_s *= options.steps / (options.timed_steps or options.steps)
    return {
        "subjects": len(people),
        "steps": options.steps,
        "timed_steps": options.timed_steps or options.steps,
        "slots": options.slots,
        "budget": asdict(budget),
        "training_s": round(training_s, 1),
        "scoring_s": round(scoring_s, 1),
        "share": round(scoring_s / training_s, 4),
        "pictures": examiner.num_generated,
    }


def page(result: dict[str, Any]) -> str:
    """The result as Markdown."""
    budget = result["budget"]
    return "\n".join(
        [
            "# The cost of quality cards",
            "",
            f"{result['when']}, {result['hardware']}, base `{result['base']}`: "
            f"{result['subjects']} rendered subjects, {result['steps']} steps with prior "
            f"preservation, {result['slots']} slots. {_how(result)}",
            "",
            "| | seconds |",
            "|---|---|",
            f"| training | {result['training_s']:.1f} |",
            f"| generating and scoring {result['pictures']} images | {result['scoring_s']:.1f} |",
            f"| share of training | **{100 * result['share']:.1f} %** |",
            "",
            f"The default budget for this recipe: {budget['num_prompt_pictures']} images of the "
            f"subject, {budget['num_class_pictures']} of its class and "
            f"{budget['num_drift_pictures']} of other prompts, {budget['steps']} denoising steps "
            "each; the base's own are generated once per class.",
            "",
            "```",
            f"python benchmarks/training/score_cost.py --subjects {result['subjects']} "
            f"--steps {result['steps']} --slots {result['slots']} "
            f"--timed-steps {result['timed_steps']}",
            "```",
            "",
        ]
    )


def _how(result: dict[str, Any]) -> str:
    if result["timed_steps"] == result["steps"]:
        return "All steps were run."
    return (
        f"{result['timed_steps']} of each subject's steps were run and their time scaled to "
        f"{result['steps']}, because every step does the same work."
    )


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--subjects", type=int, default=100)
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--slots", type=int, default=25)
    parser.add_argument("--timed-steps", type=int, help="run only these, and scale their time")
    parser.add_argument("--base", default="embedded")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    began = time.perf_counter()
    today = datetime.now(UTC).date().isoformat()
    result = measure(options) | {
        "base": options.base,
        "when": today,
        "hardware": f"{os.cpu_count()} CPU cores ({platform.machine()}), "
        f"{torch.get_num_threads()} threads",
        "seconds": round(time.perf_counter() - began, 1),
    }
    out = options.out or Path(__file__).parents[1] / f"score_cost-cpu-{today}.md"
    out.write_text(page(result))
    print(json.dumps(result))


if __name__ == "__main__":
    main()
