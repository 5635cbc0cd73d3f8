"""Finishes a trained slot: sample images, the quality card, the adapter's record.

Owns the outputs of a slot before it is freed. Slots that finish in the same step are sampled and
judged together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from farm.adapters.record import AdapterRecord
from farm.base.interface import Base
from farm.errors import explain
from farm.intake.job import JobSpec
from farm.keys import derive_seed
from farm.training.dispatch.messages import Assignment
from farm.training.lane.publisher import FinishedJob
from farm.training.lane.settings import Judge, Judged, SampleSettings
from farm.training.slots.trainer import SlotTrainer

__all__ = ["Finalizer"]


class Finalizer:
    """Turns trained slots into finished jobs."""

    def __init__(self, base: Base, samples: SampleSettings, judge: Judge | None) -> None:
        self._base, self._samples, self._judge = base, samples, judge
        self._progress: dict[str, list[Image.Image]] = {}

    def finish(
        self,
        trainer: SlotTrainer,
        assignments: Mapping[int, Assignment],
        photos: Mapping[int, Sequence[Image.Image]],
    ) -> list[FinishedJob]:
        """Sample and judge the given slots together; copies everything off the device.

        Args:
            photos: of each slot, for the judge.

        Raises:
            torch.OutOfMemoryError: if the images do not fit; safe to retry.
        """
        specs = {slot: assignment.spec for slot, assignment in assignments.items()}
        prompts = {slot: assignment.sample_prompts for slot, assignment in assignments.items()}
        images = self._generate_samples(trainer, prompts)
        judged = self._judge_slots(trainer, specs, photos)
        finished = []
        for slot, assignment in assignments.items():
            spec, verdict = assignment.spec, judged.get(slot, Judged(None))
            own_and_others = images.get(slot, [])
            num_own = len(_sample_prompts(spec)) * self._samples.per_prompt
            samples = (*self._progress.pop(spec.key, ()), *own_and_others[:num_own])
            finished.append(
                FinishedJob(
                    assignment=assignment,
                    record=_record(spec, self._base, trainer, slot, verdict.card),
                    weights=trainer.weights(slot),
                    samples=(*samples, *verdict.pictures),
                    samples_of_others=tuple(own_and_others[num_own:]),
                )
            )
        return finished

    def generate_progress_samples(self, trainer: SlotTrainer, specs: Mapping[int, JobSpec]) -> None:
        """Generate samples of running jobs, and keep them until the adapters are published."""
        prompts = {slot: _sample_prompts(spec) for slot, spec in specs.items()}
        for slot, images in self._generate_samples(trainer, prompts).items():
            self._progress.setdefault(specs[slot].key, []).extend(images)

    def forget(self, key: str) -> None:
        """Discard the progress samples of a job that left its slot unfinished."""
        self._progress.pop(key, None)

    def _generate_samples(
        self, trainer: SlotTrainer, texts: Mapping[int, Sequence[str]]
    ) -> dict[int, list[Image.Image]]:
        """Sample images of each slot's prompts, by slot."""
        settings = self._samples
        if not settings.per_prompt:
            return {}
        prompts = {
            slot: [text for text in own for _ in range(settings.per_prompt)]
            for slot, own in texts.items()
        }
        most = max((len(texts) for texts in prompts.values()), default=0)
        seeds = [derive_seed("samples", number) for number in range(most)]
        images = trainer.sample(prompts, seeds, steps=settings.steps, guidance=settings.guidance)
        return {
            slot: [
                _captioned(image_PP3, prompt, trainer.steps_done(slot))
                for image_PP3, prompt in zip(images_NPP3, prompts[slot], strict=True)
            ]
            for slot, images_NPP3 in images.items()
        }

    def _judge_slots(
        self,
        trainer: SlotTrainer,
        specs: Mapping[int, JobSpec],
        photos: Mapping[int, Sequence[Image.Image]],
    ) -> Mapping[int, Judged]:
        if self._judge is None:
            return {}
        curves = {slot: trainer.evaluation_curve(slot) for slot in specs}
        try:
            return self._judge.judge(self._base, trainer.bank, specs, photos, curves)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # an adapter without a card is better than none
            message, remedy = explain(error)
            missing = {"missing": f"could not be judged: {message}", "remedy": remedy}
            return {slot: Judged(missing) for slot in specs}


def _captioned(image_PP3: Tensor, prompt: str, step: int) -> Image.Image:
    """An image with its prompt and step attached; ``save_adapter`` writes them beside it."""
    image = Image.fromarray(image_PP3.numpy())
    image.info |= {"prompt": prompt, "step": str(step)}
    return image


def _sample_prompts(spec: JobSpec) -> Sequence[str]:
    subject = spec.subject
    return [subject.prompt(text) for text in subject.sample_prompts]


def _record(
    spec: JobSpec, base: Base, trainer: SlotTrainer, slot: int, quality: dict[str, Any] | None
) -> AdapterRecord:
    subject = spec.subject
    return AdapterRecord(
        job_key=spec.key,
        subject_id=subject.id,
        namespace=subject.namespace,
        name=subject.name,
        class_noun=subject.class_noun,
        identifier=subject.identifier,
        instance_prompt=subject.prompt(subject.instance_prompt),
        class_prompt=subject.class_prompt if subject.recipe.uses_prior else "",
        base_id=base.name,
        base_fingerprint=base.fingerprint,
        recipe=subject.recipe,
        photo_digests=spec.photo_digests,
        loss_curve=trainer.loss_curve(slot),
        evaluation_curve=trainer.evaluation_curve(slot),
        quality=quality,
        steps_trained=trainer.steps_trained(slot),
        stopped_because=trainer.stopped_because(slot),
        gpu_seconds=trainer.seconds(slot),
    )
