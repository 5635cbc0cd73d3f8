"""Each saved image gets its purpose from its position."""

from __future__ import annotations

from farm.quality.report.samples import sample_plan

PROMPTS = ["a photo of sks cat", "a sks cat in space"]
CARD = {"gallery": ["a sks cat in the snow", "a sks cat on the beach"], "num_class_pictures": 3}


def test_progress_final_gallery_and_class_images_are_distinguished() -> None:
    plan = sample_plan(4 * 2 + 2 + 3, PROMPTS, 50, CARD)
    assert [(s.index, s.step) for s in plan.progress] == [(0, 50), (2, 100), (4, 150), (6, 200)]
    assert {s.text for s in plan.progress} == {PROMPTS[0]}
    assert [(s.index, s.text) for s in plan.gallery] == [
        (6, PROMPTS[0]),
        (7, PROMPTS[1]),
        (8, "a sks cat in the snow"),
        (9, "a sks cat on the beach"),
    ]
    assert [s.index for s in plan.class_pictures] == [10, 11, 12]


def test_without_progress_pictures_there_is_no_animation() -> None:
    plan = sample_plan(2, PROMPTS, 0, {})
    assert plan.progress == ()
    assert [s.text for s in plan.gallery] == PROMPTS
    assert plan.class_pictures == ()


def test_an_adapter_without_pictures_shows_none() -> None:
    plan = sample_plan(0, PROMPTS, 50, {})
    assert plan == type(plan)((), (), ())


def test_files_that_are_fewer_than_the_card_says_are_not_shown_wrongly() -> None:
    assert sample_plan(2, PROMPTS, 0, CARD).class_pictures == ()
