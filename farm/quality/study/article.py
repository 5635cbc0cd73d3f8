"""``farm study article``: one particular cat and one decorative mushroom, as the article did it.

Owns the run and its pictures: the table by training step for ``A [V] cat`` and its animation, the
gallery of places and styles, and random members of the class that must stay random.
"""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from farm.base.embedded.world.words import POSES_OF, SCENERY
from farm.base.interface import Base
from farm.base.loading import load_base
from farm.keys import derive_seed
from farm.quality.card import Examination, Examiner, pillow
from farm.quality.evaluation_images import BASE_SLOT, ImageRow, generate_rows
from farm.quality.protocol import ScoringBudget, rendered_protocol
from farm.quality.scorer import Scorer, embedded_scorer
from farm.quality.study.bench import Bench, Trainee, class_prompt, make_prior_sets
from farm.quality.study.grids import Cell, labelled_grid, save_animation
from farm.quality.study.rendered_subjects import photograph, sitters
from farm.quality.study.tables import article_page
from farm.recipe import WIDE_MODULES, Recipe

__all__ = ["ArticleStudy", "run_article_study"]

NOUNS = ("cat", "mushroom")
"""The article's pair; they are examined step by step and have pages of their own."""
COMPANIONS = ("dog", "robot", "teapot")
"""Trained beside them, for the picture that opens the README."""
OPENING_PLACES = (0, 2, 5, 6, 9)
"""Of ``SCENERY``: places that look unlike each other."""
STYLES = (
    "a photo of sks {}", "a pencil drawing of sks {}", "a painting of sks {} in the mountains",
    "a pencil sketch of sks {} in the city", "a sks {} wearing a red hat",
    "a sks {} wearing blue glasses", "a sks {} wearing a yellow crown in space",
    "a sks {} jumping", "a sks {} upside down on a pink background",
    "a sks {} sleeping under water",
)  # fmt: skip
ROW_PICTURES = 8
FINE = ScoringBudget(steps=25, guidance=4.0, scheduler="base")
"""How pictures that are looked at, not scored, are drawn."""


@dataclass(frozen=True)
class ArticleStudy:
    """The run's size."""

    steps: int = 500
    every: int = 50
    num_photos: int = 6
    num_prior_images: int = 48
    rank: int = 16
    learning_rate: float = 2e-3
    prior_weight: float = 0.3
    """Enough to keep the class of so small a base various; 1 held the subjects back."""
    seed: int = 1
    target_modules: tuple[str, ...] = WIDE_MODULES
    budget: ScoringBudget = field(
        default_factory=lambda: ScoringBudget(8, 12, 4, steps=10, guidance=4.0)
    )

    @property
    def recipe(self) -> Recipe:
        """With prior preservation, as the article trained."""
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
        scorer: a CLIP; None takes the embedded one.
    """
    began = time.perf_counter()
    out.mkdir(parents=True, exist_ok=True)
    base = load_base(base_name)
    everybody = (*NOUNS, *COMPANIONS)
    photos = {
        person.class_noun: photograph(
            person, study.num_photos, poses=POSES_OF[person.class_noun][:3]
        )
        for person in sitters(len(everybody), everybody, seed=study.seed)
    }
    say(f"drawing {study.num_prior_images} class images for each class")
    priors = make_prior_sets(base, everybody, study.num_prior_images)
    trainees = [Trainee(noun, noun, photos[noun], study.recipe) for noun in everybody]
    bench = Bench(base, trainees, priors)
    examiner = Examiner(
        base,
        bench.trainer.bank,
        scorer or embedded_scorer(),
        study.budget,
        protocol_of=rendered_protocol,
        batch=64,
    )
    stages: dict[str, dict[int, list[Image.Image]]] = {noun: {} for noun in NOUNS}
    cards: dict[str, dict[int, Examination]] = {noun: {} for noun in NOUNS}
    try:
        for step in range(0, study.steps + 1, study.every):
            bench.train_to(step)
            _note_stage(bench, base, step, stages)
            for noun, found in bench.examine(examiner, NOUNS).items():
                cards[noun][step] = found
            say(f"step {step}")
        galleries = {
            noun: _draw_pages(bench, base, noun, photos[noun], stages[noun], out) for noun in NOUNS
        }
        for noun in COMPANIONS:
            galleries[noun] = _draw_gallery(bench, base, noun)[1]
        _opening(photos, galleries).save(out / "opening.png")
    finally:
        bench.close()
    result = {
        "study": {key: value for key, value in asdict(study).items() if key != "budget"},
        "base": {"name": base.name, "fingerprint": base.fingerprint},
        "subjects": {noun: _subject_result(cards[noun]) for noun in NOUNS},
        "seconds": round(time.perf_counter() - began, 1),
        "hardware": f"{platform.machine()}, CPU",
    }
    (out / "results.json").write_text(json.dumps(result, indent=2) + "\n")
    (out / "README.md").write_text(article_page(result))
    return result


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


def _note_stage(
    bench: Bench, base: Base, step: int, stages: Mapping[str, dict[int, list[Image.Image]]]
) -> None:
    """Pictures of ``A [V] noun`` on the same seeds at every stage."""
    rows = [
        ImageRow(bench.slots[noun], f"a sks {noun}", derive_seed("stage", index))
        for noun in NOUNS
        for index in range(ROW_PICTURES)
    ]
    pictures = pillow(generate_rows(base, bench.trainer.bank, rows, FINE))
    for index, noun in enumerate(NOUNS):
        stages[noun][step] = pictures[index * ROW_PICTURES : (index + 1) * ROW_PICTURES]


def _draw_pages(
    bench: Bench,
    base: Base,
    noun: str,
    photos: Sequence[Image.Image],
    stages: Mapping[int, Sequence[Image.Image]],
    out: Path,
) -> list[Image.Image]:
    """Write one subject's pictures; returns the gallery's, places first."""
    labelled_grid([Cell("photos", photos)], cell_px=128).save(out / f"{noun}-photos.png")
    rows = [Cell(f"step {step}", pictures) for step, pictures in stages.items()]
    labelled_grid(rows).save(out / f"{noun}-steps.png")
    frames = [
        labelled_grid([Cell(f"A [V] {noun}\nstep {step}", pictures[:4])], cell_px=160)
        for step, pictures in stages.items()
    ]
    save_animation(frames, out / f"{noun}.gif")
    slot, bank = bench.slots[noun], bench.trainer.bank
    prompts, drawn = _draw_gallery(bench, base, noun)
    _gallery(prompts, drawn).save(out / f"{noun}-gallery.png")
    seeds = [derive_seed("random", noun, index) for index in range(ROW_PICTURES)]
    both = [
        Cell(label, pillow(generate_rows(base, bank, [ImageRow(chosen, class_prompt(noun), seed)
                                                  for seed in seeds], FINE)))
        for label, chosen in (("untouched base", BASE_SLOT), ("with the adapter", slot))
    ]  # fmt: skip
    labelled_grid(both).save(out / f"{noun}-class.png")
    return drawn


def _draw_gallery(bench: Bench, base: Base, noun: str) -> tuple[list[str], list[Image.Image]]:
    """Prompts of places, then of styles, and the subject in all of them."""
    prompts = [f"a sks {noun} {place}" for place in SCENERY]
    prompts += [text.format(noun) for text in STYLES]
    rows = [
        ImageRow(bench.slots[noun], text, derive_seed("gallery", n))
        for n, text in enumerate(prompts)
    ]
    return prompts, pillow(generate_rows(base, bench.trainer.bank, rows, FINE))


def _opening(
    photos: Mapping[str, Sequence[Image.Image]], galleries: Mapping[str, Sequence[Image.Image]]
) -> Image.Image:
    """The picture that opens the README: photos beside what the adapters draw."""
    headings = ["photo", "photo", "", *(SCENERY[index] for index in OPENING_PLACES)]
    rows = [
        Cell(
            f"one {noun}", [*photos[noun][:2], None, *(galleries[noun][i] for i in OPENING_PLACES)]
        )
        for noun in photos
    ]
    return labelled_grid(rows, headings, cell_px=128)


def _gallery(prompts: Sequence[str], pictures: Sequence[Image.Image]) -> Image.Image:
    """Pictures with their prompts above, six a row."""
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
