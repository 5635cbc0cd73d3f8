"""The bench of a study: many small trainings in the slots of one trainer, examined at chosen steps.

Owns the making of training jobs from pictures, the prior sets, and the alternation of training and
examining. What is trained, and what is made of the scores, is each study's own.

Legend: C H W latent, P pixels.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from PIL import Image

from farm.base.generate import generate_images
from farm.base.interface import Base
from farm.keys import derive_seed
from farm.quality.card import Candidate, Examination, Examiner
from farm.quality.study.rendered_subjects import pixels
from farm.recipe import Recipe
from farm.training.plan.shape import common_shape
from farm.training.slots.job import PriorSet, TrainingJob
from farm.training.slots.trainer import SlotTrainer

__all__ = ["Bench", "Trainee", "make_prior_sets"]

PRIOR_STEPS = 15
"""Denoising steps of a class image; a run's own prior sets take more, a study must end soon."""


@dataclass(frozen=True)
class Trainee:
    """One training of a study: a subject, an arm, a seed."""

    key: str
    class_noun: str
    photos: Sequence[Image.Image]
    recipe: Recipe
    identifier: str = "sks"

    @property
    def instance_prompt(self) -> str:
        """With the identifier."""
        return f"a photo of {self.identifier} {self.class_noun}"

    @property
    def class_prompt(self) -> str:
        """Of the prior set."""
        return class_prompt(self.class_noun)


def class_prompt(class_noun: str) -> str:
    """The farm's default class prompt."""
    return f"a photo of a {class_noun}"


def make_prior_sets(
    base: Base, nouns: Sequence[str], num: int, *, seed: int = 0, batch: int = 64
) -> dict[str, PriorSet]:
    """Class images drawn by the untouched base, one set for all subjects of a class."""
    sets = {}
    for noun in dict.fromkeys(nouns):
        prompt = class_prompt(noun)
        seeds = [derive_seed(seed, "prior", noun, index) for index in range(num)]
        pictures_BPP3 = generate_images(
            base, [prompt] * num, seeds, batch=batch, steps=PRIOR_STEPS, scheduler="dpm++2m"
        )
        centred = pictures_BPP3.permute(0, 3, 1, 2).float() / 127.5 - 1
        moments = torch.cat([base.encode_photos(part) for part in torch.split(centred, batch)])
        sets[noun] = PriorSet(moments.cpu(), base.encode_prompts([prompt]))
    return sets


@dataclass
class Bench:
    """Trains all trainees at once, each in its own slot."""

    base: Base
    trainees: Sequence[Trainee]
    priors: dict[str, PriorSet]
    training_s: float = 0.0
    examining_s: float = 0.0
    step: int = 0
    trainer: SlotTrainer = field(init=False)
    slots: dict[str, int] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        jobs = [self._job(trainee) for trainee in self.trainees]
        recipes = [trainee.recipe for trainee in self.trainees]
        shape = common_shape(recipes, self.base.resolution_px)
        self.trainer = SlotTrainer(self.base, shape, num_slots=len(jobs))
        for trainee, job in zip(self.trainees, jobs, strict=True):
            self.slots[trainee.key] = self.trainer.admit(job)

    def _job(self, trainee: Trainee) -> TrainingJob:
        photos = list(trainee.photos)
        if trainee.recipe.flip:
            photos += [photo.transpose(Image.Transpose.FLIP_LEFT_RIGHT) for photo in photos]
        return TrainingJob(
            key=trainee.key,
            recipe=trainee.recipe,
            seed=trainee.recipe.seed,
            instance_moments=self.base.encode_photos(pixels(photos)).cpu(),
            instance_conditioning=self.base.encode_prompts([trainee.instance_prompt]),
            prior=self.priors.get(trainee.class_noun) if trainee.recipe.uses_prior else None,
        )

    def train_to(self, step: int) -> None:
        """Train every trainee up to a step (or to its own end)."""
        began = time.perf_counter()
        while self.step < step and self.trainer.active_slots:
            report = self.trainer.step()
            for _, key, reason in report.failed:
                raise RuntimeError(f"{key} failed: {reason}")
            self.step += 1
        self.training_s += time.perf_counter() - began

    def examine(
        self, examiner: Examiner, only: Sequence[str] | None = None
    ) -> dict[str, Examination]:
        """Cards as they stand, by key: every trainee's, or those of some keys."""
        began = time.perf_counter()
        wanted = [one for one in self.trainees if only is None or one.key in only]
        candidates = [
            Candidate(
                self.slots[trainee.key],
                trainee.photos,
                trainee.class_noun,
                trainee.identifier,
                trainee.class_prompt,
                seed=trainee.recipe.seed,
            )
            for trainee in wanted
        ]
        examined = examiner.examine(candidates)
        self.examining_s += time.perf_counter() - began
        return {trainee.key: found for trainee, found in zip(wanted, examined, strict=True)}

    def close(self) -> None:
        """Give the base back as it was."""
        self.trainer.close()
