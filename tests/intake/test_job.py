from __future__ import annotations

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from farm.intake.job import JobSpec, PriorSpec, job_spec
from farm.intake.subject import Photo, PriorSettings, Subject
from farm.recipe import Recipe

DIGESTS = ("d1", "d2", "d3")


def subject(**fields: object) -> Subject:
    photos = tuple(Photo(f"/{digest}.png") for digest in DIGESTS)
    values = {"id": "tom", "class_noun": "cat", "photos": photos}
    return Subject.model_validate({**values, **fields})


def job(digests: tuple[str, ...] = DIGESTS, base: str = "base", side: int = 64, **fields: object):
    return job_spec(subject(**fields), digests, base_fingerprint=base, resolution_px=side)


@pytest.mark.parametrize(
    "fields",
    [
        {"id": "felix"},
        {"name": "felix"},
        {"namespace": "studio"},
        {"priority": 9},
        {"sample_prompts": ("a [V] cat at sea",)},
        {"recipe": Recipe(checkpoint_every=7, sample_every=9)},
        {"recipe": Recipe(alpha=4.0)},
        {"recipe": Recipe(resolution_px=64)},
        {"instance_prompt": "a photo of sks cat"},
    ],
    ids=str,
)
def test_what_does_not_change_the_adapter_does_not_change_the_key(fields: dict[str, object]):
    assert job(**fields).key == job().key


@pytest.mark.parametrize(
    "change",
    [
        {"base": "other"},
        {"side": 128},
        {"digests": ("d1", "d2", "d4")},
        {"identifier": "zwx"},
        {"instance_prompt": "[V]"},
        {"class_prompt": "a cat"},
        {"class_noun": "dog"},
        {"recipe": Recipe(steps=799)},
        {"recipe": Recipe(seed=1)},
        {"recipe": Recipe(prior_rows=0)},
        {"recipe": Recipe(num_prior_images=100)},
        {"recipe": Recipe(keep_best=True)},
        {"prior": PriorSettings(seed=1)},
        {"photos": tuple(Photo(f"/{digest}.png", "[V] asleep") for digest in DIGESTS)},
    ],
    ids=str,
)
def test_what_changes_the_adapter_changes_the_key(change: dict[str, object]):
    assert job(**change).key != job().key


@given(st.permutations(range(3)))
def test_neither_file_names_nor_their_order_change_a_job(order: list[int]):
    photos = tuple(
        Photo(f"/{chr(97 + place)}.png", f"[V] {number}") for place, number in enumerate(order)
    )
    digests = tuple(DIGESTS[number] for number in order)
    plain = tuple(Photo(f"/{number}.png", f"[V] {number}") for number in range(3))
    shuffled = job(digests, photos=photos)
    assert shuffled.key == job(photos=plain).key
    assert shuffled.photo_digests == DIGESTS
    assert shuffled.photo_prompts == ("sks 0", "sks 1", "sks 2")


def test_copies_of_a_photo_are_taken_once():
    photos = tuple(Photo(f"/{name}.png") for name in ("a", "b", "copy-of-a"))
    made = job(("d1", "d2", "d1"), photos=photos)
    assert made.photo_digests == ("d1", "d2")
    assert len(made.subject.photos) == 2


def test_the_prior_settings_do_not_matter_without_a_prior():
    without = Recipe(prior_rows=0)
    one = job(recipe=without, prior=PriorSettings(seed=1), class_prompt="a feline")
    assert one.prior is None
    assert one.prior_key is None
    assert one.key == job(recipe=without).key
    assert one.key == job(recipe=Recipe(prior_rows=0, prior_weight=0.3)).key


def test_subjects_of_a_class_share_a_prior_set():
    tom, felix = job(), job(("e1", "e2", "e3"), id="felix")
    assert tom.key != felix.key
    assert tom.prior_key == felix.prior_key


def test_how_images_would_be_drawn_does_not_matter_to_images_that_were_brought():
    brought = {"base_fingerprint": "b", "class_prompt": "a cat", "num_images": 2}
    brought |= {"resolution_px": 64, "image_digests": ("x", "y"), "image_uris": ("/x", "/y")}
    one = PriorSpec(**brought)
    assert one.is_brought
    assert one.key == PriorSpec(**{**brought, "seed": 4, "image_uris": ("/1", "/2")}).key
    assert one.key != PriorSpec(**{**brought, "image_digests": ("x", "z")}).key


def test_brought_class_images_make_the_prior():
    tom = subject(class_images=("/p.png", "/q.png"))
    made = job_spec(
        tom, DIGESTS, base_fingerprint="b", resolution_px=64, class_image_digests=("y", "x")
    )
    assert made.prior is not None
    assert made.prior.image_digests == ("x", "y")
    assert made.prior.image_uris == ("/q.png", "/p.png")
    assert made.prior.num_images == 2


def test_jobs_survive_json_and_pickle():
    made = job(recipe=Recipe(resolution_px=96))
    assert made.resolution_px == 96
    assert JobSpec.model_validate_json(made.model_dump_json()) == made
    assert pickle.loads(pickle.dumps(made)) == made


def test_digests_must_fit_the_photos():
    with pytest.raises(ValueError, match="2 digests for 3 photos"):
        job(("d1", "d2"))
    with pytest.raises(ValueError, match="0 digests for 1 class images"):
        job(class_images=("/x.png",))
