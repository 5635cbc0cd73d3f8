"""The end of a job in its slot: sample pictures, the judge's card, the record, the hand-over.

Owns what is made of a trained slot before it is freed. All slots that finish with one step are
drawn and judged together.
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
    """Makes finished jobs of trained slots."""

    def __init__(self, base: Base, samples: SampleSettings, judge: Judge | None) -> None:
        self._base, self._samples, self._judge = base, samples, judge
        self._progress: dict[str, list[Image.Image]] = {}

    def finish(
        self,
        trainer: SlotTrainer,
        assignments: Mapping[int, Assignment],
        photos: Mapping[int, Sequence[Image.Image]],
    ) -> list[FinishedJob]:
        """Draw and judge the given slots together; copies everything off the device.

        Args:
            photos: of each slot, for the judge.

        Raises:
            torch.OutOfMemoryError: if the pictures do not fit; nothing is lost by a retry.
        """
        specs = {slot: assignment.spec for slot, assignment in assignments.items()}
        prompts = {slot: assignment.sample_prompts for slot, assignment in assignments.items()}
        pictures = self._draw(trainer, prompts)
        judged = self._judge_slots(trainer, specs, photos)
        finished = []
        for slot, assignment in assignments.items():
            spec, verdict = assignment.spec, judged.get(slot, Judged(None))
            drawn = pictures.get(slot, [])
            num_own = len(_sample_prompts(spec)) * self._samples.per_prompt
            samples = (*self._progress.pop(spec.key, ()), *drawn[:num_own])
            finished.append(
                FinishedJob(
                    record=_record(spec, self._base, trainer, slot, verdict.card),
                    weights=trainer.weights(slot),
                    samples=(*samples, *verdict.pictures),
                    names=assignment.names,
                    prompts=assignment.prompts,
                    samples_of_others=tuple(drawn[num_own:]),
                )
            )
        return finished

    def draw_progress(self, trainer: SlotTrainer, specs: Mapping[int, JobSpec]) -> None:
        """Draw pictures of running jobs, kept until their adapters are published."""
        prompts = {slot: _sample_prompts(spec) for slot, spec in specs.items()}
        for slot, pictures in self._draw(trainer, prompts).items():
            self._progress.setdefault(specs[slot].key, []).extend(pictures)

    def forget(self, key: str) -> None:
        """A job left its slot unfinished."""
        self._progress.pop(key, None)

    def _draw(
        self, trainer: SlotTrainer, texts: Mapping[int, Sequence[str]]
    ) -> dict[int, list[Image.Image]]:
        how = self._samples
        if not how.per_prompt:
            return {}
        prompts = {
            slot: [text for text in own for _ in range(how.per_prompt)]
            for slot, own in texts.items()
        }
        most = max((len(texts) for texts in prompts.values()), default=0)
        seeds = [derive_seed("samples", number) for number in range(most)]
        drawn = trainer.sample(prompts, seeds, steps=how.steps, guidance=how.guidance)
        return {
            slot: [
                _captioned(picture, prompt, trainer.steps_done(slot))
                for picture, prompt in zip(pictures, prompts[slot], strict=True)
            ]
            for slot, pictures in drawn.items()
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
        except Exception as error:  # a card is not worth an adapter
            message, remedy = explain(error)
            missing = {"missing": f"could not be judged: {message}", "remedy": remedy}
            return {slot: Judged(missing) for slot in specs}


def _captioned(picture_PP3: Tensor, prompt: str, step: int) -> Image.Image:
    """A picture that knows its prompt and step; ``save_adapter`` writes them beside it."""
    image = Image.fromarray(picture_PP3.numpy())
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
