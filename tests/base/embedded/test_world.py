"""The synthetic world: endless, seeded, and consistent with its captions."""

import random

import numpy as np
import pytest

from farm.base.embedded.world import (
    CLASS_NOUNS,
    COLOURS,
    PLACES,
    POSES_OF,
    RARE_TOKENS,
    SCENERY,
    render_class,
    render_scene,
    render_subject,
    sample_individual,
    sample_scene,
    write_caption,
    write_short_caption,
)
from farm.base.embedded.world.captions import FACTS, fact_vector, stated_vector
from farm.base.embedded.world.words import ACCESSORIES, MARKS, STYLES


def test_the_world_has_the_promised_variety():
    assert len(CLASS_NOUNS) >= 8
    assert {"cat", "dog", "mushroom"} <= set(CLASS_NOUNS)
    assert len(COLOURS) >= 10
    assert len(SCENERY) >= 10
    assert all(len(set(poses)) == 4 for poses in POSES_OF.values())
    assert len(STYLES) >= 2


def test_the_same_seed_and_index_render_the_same_image():
    first, again = (np.asarray(render_scene(sample_scene(7, 3))) for _ in range(2))
    assert np.array_equal(first, again)


def test_another_index_and_another_seed_render_other_images():
    pictures = [np.asarray(render_scene(sample_scene(s, i))) for s, i in ((7, 3), (7, 4), (8, 3))]
    assert not np.array_equal(pictures[0], pictures[1])
    assert not np.array_equal(pictures[0], pictures[2])


@pytest.mark.parametrize("class_noun", CLASS_NOUNS)
def test_every_pose_of_a_class_looks_different(class_noun):
    individual = sample_individual(1, class_noun=class_noun)
    poses = POSES_OF[class_noun]
    photos = render_subject(
        1, len(poses), individual=individual, poses=poses, places=["on a white background"]
    )
    assert [photo.scene.pose for photo in photos] == list(poses)
    pictures = [np.asarray(photo.picture).astype(int) for photo in photos]
    for one in range(len(pictures)):
        for other in range(one):
            assert np.abs(pictures[one] - pictures[other]).mean() > 5


@pytest.mark.parametrize("place", PLACES)
def test_a_picture_is_64_px_of_rgb_in_every_place(place):
    photo = render_subject(2, 1, class_noun="dog", places=[place])[0]
    assert photo.picture.size == (64, 64)
    assert photo.picture.mode == "RGB"
    assert photo.scene.place == place


def test_a_caption_states_only_what_the_image_shows():
    rng = random.Random(0)
    for index in range(400):
        scene = sample_scene(0, index)
        for write in (write_caption, write_short_caption):
            caption = write(scene, rng)
            stated, facts = stated_vector(scene, caption), fact_vector(scene)
            assert all(c in (-1, f) for c, f in zip(stated, facts, strict=True))
            for fact in caption.stated - {"style"}:
                assert getattr(scene, fact) in caption.text
            for fact in set(FACTS) - caption.stated - {"style", "colour", "class_noun"}:
                value = getattr(scene, fact)
                shown = {getattr(scene, other) for other in caption.stated} | {scene.place}
                if value and value not in shown and not fact.endswith("colour"):
                    assert f" {value}" not in caption.text


def test_captions_are_varied_and_single_words_appear_alone():
    rng = random.Random(0)
    texts = {write_short_caption(sample_scene(0, index), rng).text for index in range(3000)}
    assert {"a cat", "a photo of a cat"} <= texts
    assert len(texts) > 500


def test_no_caption_uses_a_rare_token():
    rng = random.Random(0)
    for index in range(2000):
        words = set(write_caption(sample_scene(0, index), rng).text.replace(",", "").split())
        assert not words & set(RARE_TOKENS)


def test_a_subject_is_one_individual_in_every_photo():
    photos = render_subject(11, 8)
    assert (
        len({(p.scene.look, p.scene.colour, p.scene.mark, p.scene.class_noun) for p in photos}) == 1
    )
    assert photos[0].scene.look.detail is not None
    assert len({photo.scene.pose for photo in photos}) == 4
    assert len({photo.scene.place for photo in photos}) > 2


def test_a_subject_can_be_photographed_in_one_pose_alone():
    photos = render_subject(3, 6, class_noun="cat", poses=["sitting"])
    assert {photo.scene.pose for photo in photos} == {"sitting"}


def test_pictures_of_a_class_show_different_individuals():
    photos = render_class(0, "cat", 24)
    assert {photo.scene.class_noun for photo in photos} == {"cat"}
    assert len({photo.scene.look for photo in photos}) == 24
    assert len({photo.scene.colour for photo in photos}) > 5


def test_what_is_worn_stands_out_from_the_wearer():
    scenes = [sample_scene(1, index) for index in range(1500)]
    worn = [s for s in scenes if s.accessory]
    assert {s.accessory for s in worn} == set(ACCESSORIES)
    assert {s.mark for s in scenes if s.mark} == set(MARKS)
    assert all(s.accessory_colour != s.colour for s in worn if s.accessory != "crown")
