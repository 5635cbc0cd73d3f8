"""``farm study article``: one particular cat and one decorative mushroom, as in the article.

Owns the run and its images: the table by training step for ``A [V] cat`` and its animation, the
gallery of places and styles, and random members of the class, which must stay random.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from farm.base.embedded.world.words import POSES_OF, SCENERY
from farm.base.loading import load_base
from farm.keys import derive_seed
from farm.local_files import check_folder, writing
from farm.quality.card import Examination, pillow
from farm.quality.evaluation_images import BASE_SLOT, ImageRow, generate_rows
from farm.quality.protocol import ScoringBudget
from farm.quality.scorer import Scorer, embedded_scorer
from farm.quality.study.bench import (
    Bench,
    Trainee,
    class_prompt,
    common_results,
    open_bench,
    write_results,
)
from farm.quality.study.grids import Cell, labelled_grid, save_animation
from farm.quality.study.opening import generate_opening
from farm.quality.study.rendered_subjects import render_photos, sample_subjects
from farm.quality.study.tables import article_page
from farm.recipe import WIDE_MODULES, Recipe

__all__ = ["ArticleStudy", "run_article_study"]

NOUNS = ("cat", "mushroom")
"""The article's two subjects, which are scored step by step and shown in detail."""
COMPANIONS = ("dog", "robot", "teapot")
"""Also trained, for the opening image of the README."""
STYLES = (
    "a photo of sks {}", "a pencil drawing of sks {}", "a painting of sks {} in the mountains",
    "a pencil sketch of sks {} in the city", "a sks {} wearing a red hat",
    "a sks {} wearing blue glasses", "a sks {} wearing a yellow crown in space",
    "a sks {} jumping", "a sks {} upside down on a pink background",
    "a sks {} sleeping under water",
)  # fmt: skip
ROW_PICTURES = 8


@dataclass(frozen=True)
class ArticleStudy:
    """The run's settings."""

    steps: int = 500
    every: int = 100
    num_photos: int = 6
    num_prior_images: int = 48
    rank: int = 16
    learning_rate: float = 2e-3
    prior_weight: float = 0.3
    """Enough to keep the class varied on this small base; 1 reduced the subjects' fidelity."""
    opening_candidates: int = 6
    """Images of which each one of the opening image is the best."""
    seed: int = 1
    target_modules: tuple[str, ...] = WIDE_MODULES
    shown: ScoringBudget = field(default_factory=lambda: ScoringBudget(steps=12, guidance=4.0))
    """Sampling settings for images that are shown, not scored."""
    budget: ScoringBudget = field(
        default_factory=lambda: ScoringBudget(8, 12, 4, steps=10, guidance=4.0)
    )

    @property
    def recipe(self) -> Recipe:
        """The recipe, with prior preservation as in the article."""
        return Recipe(
            steps=self.steps,
            rank=self.rank,
            learning_rate=self.learning_rate,
            learning_rate_schedule="cosine",
            prior_weight=self.prior_weight,
            num_prior_images=self.num_prior_images,
            target_modules=self.target_modules,
            checkpoint_every=100_000,
            seed=self.seed,
        )


def run_article_study(
    base_name: str,
    study: ArticleStudy,
    out: Path,
    *,
    scorer: Scorer | None = None,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Run it and write its page, grids, animations and ``results.json`` to ``out``.

    Args:
        scorer: a CLIP; None uses the embedded one.
    """
    began = time.perf_counter()
    check_folder(out)
    base = load_base(base_name)
    nouns = (*NOUNS, *COMPANIONS)
    individuals = sample_subjects(len(nouns), nouns, seed=study.seed)
    photos = {
        subject.class_noun: render_photos(
            subject, study.num_photos, poses=POSES_OF[subject.class_noun][:3]
        )
        for subject in individuals
    }
    bench = open_bench(
        base,
        [Trainee(noun, noun, photos[noun], study.recipe) for noun in nouns],
        study.num_prior_images,
        scorer=scorer or embedded_scorer(),
        budget=study.budget,
        say=say,
    )
    try:
        stages, cards = _train(bench, study, say)
        opening = generate_opening(
            bench, individuals, photos, candidates=study.opening_candidates, budget=study.shown
        )
        with writing(out):
            out.mkdir(parents=True, exist_ok=True)
            opening.sheet.save(out / "opening.png")
            for noun in NOUNS:
                _write_images(bench, study, noun, photos[noun], stages[noun], out)
    finally:
        bench.close()
    subjects = {noun: _subject_result(cards[noun]) for noun in NOUNS}
    result = {
        **common_results(study, bench, began),
        "subjects": subjects,
        "opening": opening.numbers(),
    }
    write_results(out, result, article_page(result))
    return result


def _train(
    bench: Bench, study: ArticleStudy, say: Callable[[str], None]
) -> tuple[dict[str, dict[int, list[Image.Image]]], dict[str, dict[int, Examination]]]:
    """Images and cards of each noun by training step."""
    stages: dict[str, dict[int, list[Image.Image]]] = {noun: {} for noun in NOUNS}
    cards: dict[str, dict[int, Examination]] = {noun: {} for noun in NOUNS}
    for step in range(0, study.steps + 1, study.every):
        bench.train_to(step)
        _add_stage(bench, study, step, stages)
        for noun, found in bench.examine(NOUNS).items():
            cards[noun][step] = found
        say(f"step {step}")
    return stages, cards


def _subject_result(cards: Mapping[int, Examination]) -> dict[str, Any]:
    last = cards[max(cards)].card
    return {
        "by_step": [
            {"step": step, "scores": found.card["scores"]} for step, found in cards.items()
        ],
        "base_scores": last["base_scores"],
        "poses": last["poses"],
        "verdict": last["verdict"],
        "evidence": last["evidence"],
    }


def _add_stage(
    bench: Bench, study: ArticleStudy, step: int, stages: Mapping[str, dict[int, list[Image.Image]]]
) -> None:
    """Generate images of ``A [V] noun`` with the same seeds at every stage."""
    rows = [
        ImageRow(bench.slots[noun], f"a sks {noun}", derive_seed("stage", index))
        for noun in NOUNS
        for index in range(ROW_PICTURES)
    ]
    pictures = pillow(generate_rows(bench.base, bench.trainer.bank, rows, study.shown))
    for index, noun in enumerate(NOUNS):
        stages[noun][step] = pictures[index * ROW_PICTURES : (index + 1) * ROW_PICTURES]


def _write_images(
    bench: Bench,
    study: ArticleStudy,
    noun: str,
    photos: Sequence[Image.Image],
    stages: Mapping[int, Sequence[Image.Image]],
    out: Path,
) -> None:
    """Write one subject's images."""
    labelled_grid([Cell("photos", photos)], cell_px=128).save(out / f"{noun}-photos.png")
    steps = [Cell(f"step {step}", pictures) for step, pictures in stages.items()]
    labelled_grid(steps).save(out / f"{noun}-steps.png")
    frames = [
        labelled_grid([Cell(f"A [V] {noun}\nstep {step}", pictures[:4])], cell_px=160)
        for step, pictures in stages.items()
    ]
    save_animation(frames, out / f"{noun}.gif")
    slot, bank = bench.slots[noun], bench.trainer.bank
    prompts, gallery = _generate_gallery(bench, study, noun)
    _gallery_sheet(prompts, gallery).save(out / f"{noun}-gallery.png")
    seeds = [derive_seed("random", noun, index) for index in range(ROW_PICTURES)]
    both = []
    for label, chosen in (("untouched base", BASE_SLOT), ("with the adapter", slot)):
        rows = [ImageRow(chosen, class_prompt(noun), seed) for seed in seeds]
        both.append(Cell(label, pillow(generate_rows(bench.base, bank, rows, study.shown))))
    labelled_grid(both).save(out / f"{noun}-class.png")


def _generate_gallery(
    bench: Bench, study: ArticleStudy, noun: str
) -> tuple[list[str], list[Image.Image]]:
    """The prompts, places then styles, and an image of the subject for each."""
    prompts = [f"a sks {noun} {place}" for place in SCENERY]
    prompts += [text.format(noun) for text in STYLES]
    rows = [
        ImageRow(bench.slots[noun], text, derive_seed("gallery", n))
        for n, text in enumerate(prompts)
    ]
    return prompts, pillow(generate_rows(bench.base, bench.trainer.bank, rows, study.shown))


def _gallery_sheet(prompts: Sequence[str], pictures: Sequence[Image.Image]) -> Image.Image:
    """Images with their prompts above, six per row."""
    columns, strips = 6, []
    for start in range(0, len(prompts), columns):
        row = slice(start, start + columns)
        headings = [text.replace("sks", "[V]") + "\n" for text in prompts[row]]
        strips.append(labelled_grid([Cell("", pictures[row])], headings, cell_px=128))
    sheet = Image.new(
        "RGB", (strips[0].width, sum(strip.height for strip in strips)), (251, 250, 247)
    )
    top = 0
    for strip in strips:
        sheet.paste(strip, (0, top))
        top += strip.height
    return sheet
