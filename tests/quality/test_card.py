"""Quality cards of real adapters in a real bank: batched, independent, no score from few images."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from farm.adapters.bank.bank import Bank
from farm.base.interface import Base
from farm.base.loading import load_base
from farm.quality.card import Candidate, Examiner, missing_card, score_adapters
from farm.quality.protocol import ScoringBudget
from farm.quality.scorer import ClipScorer, DinoScorer

BUDGET = ScoringBudget(4, 4, 4, steps=2, guidance=2.0)


@pytest.fixture(scope="module")
def base() -> Base:
    return load_base("tiny")


@pytest.fixture
def bank(base: Base) -> Iterator[Bank]:
    bank = Bank(base, num_slots=3, max_rank=2, target_modules=("to_q", "to_out.0"))
    for slot in range(2):
        bank.init_slot(slot, 2, 40.0, seed=slot)
        row = bank.flat_ZP[slot]
        noise = torch.randn(row.shape, generator=torch.Generator().manual_seed(slot))
        bank.write_row(slot, row + 0.3 * noise)
    yield bank
    bank.close()


def candidate(slot: int, noun: str = "cat", num_photos: int = 3) -> Candidate:
    rng = np.random.default_rng(slot)
    subject = rng.integers(0, 236, (48, 48, 3))
    photos = [
        Image.fromarray((subject + rng.integers(0, 20, subject.shape)).astype(np.uint8))
        for _ in range(num_photos)
    ]
    return Candidate(slot, photos, noun, "sks", f"a photo of a {noun}", seed=slot)


def test_a_card_holds_every_score_with_its_interval(
    base: Base, bank: Bank, clip_folder: Path
) -> None:
    examined = score_adapters(base, bank, [candidate(0)], ClipScorer(clip_folder), budget=BUDGET)
    card = examined[0].card
    assert set(card["scores"]) == {"clip_i", "clip_t", "pres", "div", "copying", "drift"}
    for score in card["scores"].values():
        assert score["low"] <= score["mean"] <= score["high"]
        assert score["num"] == 4
    assert card["scores"]["drift"]["mean"] > 0
    assert card["verdict"]["headline"]
    assert json.loads(json.dumps(card)) == card
    assert examined[0].pictures_GPP3.shape == (4, 64, 64, 3)
    assert examined[0].prompts[0] == "a sks cat in the jungle"


def test_the_bare_base_has_no_drift_and_forgets_nothing(
    base: Base, bank: Bank, clip_folder: Path
) -> None:
    bank.clear_slot(2)
    card = score_adapters(base, bank, [candidate(2)], ClipScorer(clip_folder), budget=BUDGET)[
        0
    ].card
    assert card["scores"]["drift"]["mean"] == pytest.approx(0, abs=1e-5)
    assert card["scores"]["pres"]["mean"] == pytest.approx(card["base_scores"]["pres"]["mean"])
    assert card["scores"]["div"]["mean"] == pytest.approx(card["base_scores"]["div"]["mean"])


def test_a_card_does_not_depend_on_neighbours(base: Base, bank: Bank, clip_folder: Path) -> None:
    scorer = ClipScorer(clip_folder)
    alone = score_adapters(base, bank, [candidate(1)], scorer, budget=BUDGET)[0]
    together = score_adapters(
        base, bank, [candidate(0, "dog"), candidate(1)], scorer, budget=BUDGET
    )[1]
    assert (alone.pictures_GPP3.int() - together.pictures_GPP3.int()).abs().max() <= 1
    for name, score in alone.card["scores"].items():
        assert together.card["scores"][name]["mean"] == pytest.approx(score["mean"], abs=1e-3)


def test_the_base_generates_once_for_all_subjects_of_a_class(
    base: Base, bank: Bank, clip_folder: Path
) -> None:
    examiner = Examiner(base, bank, ClipScorer(clip_folder), BUDGET)
    examiner.examine([candidate(0), candidate(1)])
    assert examiner.num_generated == 3 * BUDGET.num_pictures
    examiner.examine([candidate(1)])
    assert examiner.num_generated == 4 * BUDGET.num_pictures


def test_too_few_pictures_make_no_score(base: Base, bank: Bank, clip_folder: Path) -> None:
    few = replace(BUDGET, num_prompt_pictures=3, num_class_pictures=2)
    card = score_adapters(base, bank, [candidate(0)], ClipScorer(clip_folder), budget=few)[0].card
    assert card["scores"]["clip_i"] == {"missing": "fewer than 4 images"}
    assert card["scores"]["div"] == {"missing": "fewer than 4 images"}
    assert card["verdict"]["label"] == "not scored"
    assert card["poses"] is None


def test_dino_scores_stand_beside_clips_and_lead_the_verdict(
    base: Base, bank: Bank, clip_folder: Path, dino_folder: Path
) -> None:
    card = score_adapters(
        base,
        bank,
        [candidate(0)],
        ClipScorer(clip_folder),
        budget=BUDGET,
        extra_scorers={"dino": DinoScorer(dino_folder)},
    )[0].card
    assert {"dino", "pres_dino", "div_dino", "copying_dino", "drift_dino"} <= set(card["scores"])
    gain = card["evidence"]["gain"]
    own, before = card["scores"]["dino"]["mean"], card["base_scores"]["dino"]["mean"]
    likeness = card["photo_likeness"]["mean"]
    assert gain == pytest.approx((own - before) / (likeness - before), abs=0.02)


def test_one_photo_is_enough_for_a_card(base: Base, bank: Bank, clip_folder: Path) -> None:
    card = score_adapters(
        base, bank, [candidate(0, num_photos=1)], ClipScorer(clip_folder), budget=BUDGET
    )[0].card
    assert card["photo_likeness"] is None
    assert card["evidence"]["copy_excess"] is None
    assert card["verdict"]["label"] != "not scored"


def test_an_adapter_that_was_not_examined_says_why() -> None:
    card = missing_card("The recipe is too short for a scoring budget.")
    assert card["verdict"]["label"] == "not scored"
    assert card["verdict"]["reasons"] == ["The recipe is too short for a scoring budget."]
