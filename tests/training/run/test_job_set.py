"""The jobs of a run: named one at a time, shared by equal subjects, counted for the plan."""

from __future__ import annotations

from collections.abc import Sequence

from farm.base.memory import MemoryFacts
from farm.intake.subject import Photo, Subject
from farm.keys import bytes_digest
from farm.recipe import Recipe
from farm.training.run.job_set import jobs_of
from farm.training.run.request import RunBase

BASE = RunBase("tiny", "f" * 64, 64, MemoryFacts(1, 1, 1, 4, 8, 77))
SHORT, LONG = Recipe(steps=10, prior_rows=0), Recipe(steps=20, num_prior_images=4)


class Checked:
    """Checked subjects; a photo's content is its name."""

    def __init__(self, subjects: Sequence[Subject]) -> None:
        self.good_subjects = subjects

    def photo_digests(self, subject: Subject) -> list[str]:
        return [bytes_digest(photo.uri.encode()) for photo in subject.photos]

    def class_image_digests(self, subject: Subject) -> list[str]:
        return []


def subject(name: str, photos: Sequence[str], recipe: Recipe = SHORT, **more: object) -> Subject:
    places = tuple(Photo(photo) for photo in photos)
    values = {"id": name, "class_noun": "cat", "photos": places, "recipe": recipe, **more}
    return Subject.model_validate(values)


def test_equal_jobs_of_several_subjects_are_one_job_with_all_their_names() -> None:
    subjects = [subject(f"s{number}", [f"{number % 100}.png"]) for number in range(150)]
    jobs = jobs_of(Checked(subjects), BASE)
    assert len(jobs.run) == 100
    for number, job in enumerate(jobs.run.assignments()):
        names = [f"s{number}"] + ([f"s{number + 100}"] if number < 50 else [])
        assert job.names == tuple(("default", name) for name in names)
        assert job.names == jobs.names[job.key]
        assert len(job.prompts) == len(names)
        assert job == jobs.run.assignment(job.key)


def test_the_work_that_is_left_is_counted_without_the_committed_jobs() -> None:
    subjects = [
        subject("a", ["1.png", "2.png"]),
        subject("b", ["3.png"], LONG, sample_prompts=("a [V] cat",)),
        subject("c", ["4.png"], LONG, class_noun="dog", priority=5),
        subject("d", ["5.png"], LONG, class_noun="dog"),
    ]
    jobs = jobs_of(Checked(subjects), BASE)
    keys = list(jobs.run)
    left = jobs.left({keys[0]})
    assert left == [1, 2, 3]
    crops = LONG.crops_per_photo * (2 if LONG.flip else 1)
    assert jobs.num_crops(left) == 3 * crops
    assert sum(jobs.num_prompts[number] for number in left) == 1 + 2 + 2
    assert [(kind.class_noun, kind.recipe, num) for kind, num in jobs.kinds(left)] == [
        ("cat", LONG, 1),
        ("dog", LONG, 2),
    ]
    assert [prior.class_prompt for prior in jobs.priors(left)] == [
        "a photo of a dog",
        "a photo of a cat",
    ]
    assert jobs.priors([0]) == []
