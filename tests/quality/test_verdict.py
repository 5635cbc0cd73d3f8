"""The verdict is the most serious problem; it lists all problems and what to do."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from farm.quality.verdict import Evidence, judge

GOOD = Evidence(0.8, 0.1, 0.95, 0.1, 0.98, loss_ratio=0.5)


def test_a_good_adapter_is_called_so() -> None:
    verdict = judge(GOOD)
    assert verdict.label == "learned well"
    assert not verdict.remedies
    assert any("95 %" in reason for reason in verdict.reasons)


@pytest.mark.parametrize(
    ("change", "label", "remedy"),
    [
        ({"gain": 0.05}, "never learned", "more steps"),
        ({"gain": 0.3}, "partly learned", "more steps"),
        ({"capture": 0.9, "diversity_ratio": 0.6}, "class forgotten", "prior preservation"),
        ({"capture": 0.9, "diversity_ratio": None}, "class forgotten", "prior preservation"),
        ({"diversity_ratio": 0.3}, "class forgotten", "prior preservation"),
        ({"copy_excess": 0.8, "prompt_ratio": 0.5}, "copies its photos", "early_stop"),
        ({"loss_ratio": 2.0}, "diverged", "learning_rate"),
        ({"loss_ratio": math.nan}, "diverged", "learning_rate"),
    ],
)
def test_each_fault_has_its_name_and_a_remedy(
    change: dict[str, float | None], label: str, remedy: str
) -> None:
    verdict = judge(replace(GOOD, **change))
    assert verdict.label == label
    assert remedy in " ".join(verdict.remedies)
    assert verdict.reasons


def test_a_picture_near_a_photo_that_follows_its_prompt_is_no_copy() -> None:
    assert judge(replace(GOOD, copy_excess=0.8)).label == "learned well"


def test_all_problems_are_reported() -> None:
    verdict = judge(
        replace(GOOD, copy_excess=0.8, prompt_ratio=0.4, capture=0.9, diversity_ratio=0.6)
    )
    assert verdict.label == "copies its photos"
    assert any("Effect on the class" in reason for reason in verdict.reasons)


def test_without_scores_there_is_no_verdict() -> None:
    verdict = judge(Evidence(None, None, None, None, None, missing="Too short."))
    assert verdict.label == "not scored"
    assert verdict.reasons == ("Too short.",)


def test_a_class_that_resembles_the_subject_but_stays_varied_is_not_forgotten() -> None:
    verdict = judge(replace(GOOD, capture=2.7))
    assert verdict.label == "learned well"
    assert any("started to resemble" in reason for reason in verdict.reasons)
