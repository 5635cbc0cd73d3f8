"""Finishes a trained slot: sample images, the quality card, the adapter's record.

Owns the outputs of a slot before it is freed. Slots that finish in the same step are sampled and
judged together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from farm.adapters.record import AdapterRecord
from farm.adapters.weights import AdapterWeights
from farm.base.interface import Base
from farm.base.stopping import GenerationStopped
from farm.errors import explain
from farm.intake.job import JobSpec
from farm.keys import derive_seed
from farm.training.dispatch.messages import Assignment
from farm.training.lane.publisher import FinishedJob
from farm.training.lane.settings import Judge, Judged, SampleSettings
from farm.training.slots.checkpoint import SlotState
from farm.training.slots.trainer import SlotTrainer

__all__ = ["Finalizer", "Trained"]


@dataclass(frozen=True)
class Trained:
    """A trained job without its images and its quality card."""

    row: int
    """The slot, or the copy of it, from which images are generated."""
    assignment: Assignment
    record: AdapterRecord
    weights: AdapterWeights
    steps: int
    photos: tuple[Image.Image, ...]

    @property
    def state(self) -> SlotState:
        """The checkpoint from which another lane completes the job."""
        record, nothing = self.record, AdapterWeights({}, {})
        return SlotState(
            key=record.job_key,
            step=self.steps,
            weights=self.weights,
            first=nothing,
            second=nothing,
            loss_curve=tuple(record.loss_curve),
            evaluation_curve=tuple(record.evaluation_curve),
            best_step=record.steps_trained,
            seconds=record.gpu_seconds,
            ended=record.stopped_because,
        )


class Finalizer:
    """Turns trained slots into finished jobs."""

    def __init__(self, base: Base, samples: SampleSettings, judge: Judge | None) -> None:
        self._base, self._samples, self._judge = base, samples, judge
        self._progress: dict[str, list[Image.Image]] = {}

    def take(
        self,
        trainer: SlotTrainer,
        slot: int,
        row: int,
        assignment: Assignment,
        photos: Sequence[Image.Image],
    ) -> Trained:
        """Everything about a trained slot except its images, copied off the device.

        Args:
            row: the slot, or a copy of it that is kept until ``complete`` is done.
            photos: for the judge.
        """
        return Trained(
            row=row,
            assignment=assignment,
            record=_record(assignment.spec, self._base, trainer, slot),
            weights=trainer.weights(slot),
            steps=trainer.steps_done(slot),
            photos=tuple(photos),
        )

    def complete(self, trainer: SlotTrainer, trained: Sequence[Trained]) -> list[FinishedJob]:
        """Sample and judge trained slots together.

        Raises:
            torch.OutOfMemoryError: if the images do not fit; safe to retry.
            GenerationStopped: in a block that was stopped.
        """
        by_row = {one.row: one for one in trained}
        images = self._generate_samples(
            trainer,
            {row: one.assignment.sample_prompts for row, one in by_row.items()},
            {row: one.steps for row, one in by_row.items()},
        )
        judged = self._judge_rows(trainer, by_row)
        finished = []
        for row, one in by_row.items():
            spec, verdict = one.assignment.spec, judged.get(row, Judged(None))
            own_and_others = images.get(row, [])
            num_own = len(_sample_prompts(spec)) * self._samples.per_prompt
            samples = (*self._progress.pop(spec.key, ()), *own_and_others[:num_own])
            finished.append(
                FinishedJob(
                    assignment=one.assignment,
                    record=one.record.model_copy(update={"quality": verdict.card}),
                    weights=one.weights,
                    samples=(*samples, *verdict.pictures),
                    samples_of_others=tuple(own_and_others[num_own:]),
                )
            )
        return finished

    def generate_progress_samples(
        self, trainer: SlotTrainer, specs: Mapping[int, JobSpec], steps: Mapping[int, int]
    ) -> None:
        """Generate samples of running jobs, and keep them until the adapters are published.

        Args:
            specs: by slot, or by a copy of it.
            steps: done by each.
        """
        prompts = {row: _sample_prompts(spec) for row, spec in specs.items()}
        for row, images in self._generate_samples(trainer, prompts, steps).items():
            self._progress.setdefault(specs[row].key, []).extend(images)

    def forget(self, key: str) -> None:
        """Discard the progress samples of a job that left its slot unfinished."""
        self._progress.pop(key, None)

    def _generate_samples(
        self, trainer: SlotTrainer, texts: Mapping[int, Sequence[str]], steps: Mapping[int, int]
    ) -> dict[int, list[Image.Image]]:
        """Sample images of each row's prompts, by row."""
        settings = self._samples
        if not settings.per_prompt:
            return {}
        prompts = {
            row: [text for text in own for _ in range(settings.per_prompt)]
            for row, own in texts.items()
        }
        most = max((len(texts) for texts in prompts.values()), default=0)
        seeds = [derive_seed("samples", number) for number in range(most)]
        images = trainer.sample(prompts, seeds, steps=settings.steps, guidance=settings.guidance)
        return {
            row: [
                _captioned(image_PP3, prompt, steps[row])
                for image_PP3, prompt in zip(images_NPP3, prompts[row], strict=True)
            ]
            for row, images_NPP3 in images.items()
        }

    def _judge_rows(
        self, trainer: SlotTrainer, trained: Mapping[int, Trained]
    ) -> Mapping[int, Judged]:
        if self._judge is None:
            return {}
        specs = {row: one.assignment.spec for row, one in trained.items()}
        photos = {row: one.photos for row, one in trained.items()}
        curves = {row: one.record.evaluation_curve for row, one in trained.items()}
        try:
            return self._judge.judge(self._base, trainer.bank, specs, photos, curves)
        except (torch.OutOfMemoryError, GenerationStopped):
            raise
        except Exception as error:  # an adapter without a card is better than none
            message, remedy = explain(error)
            missing = {"missing": f"could not be judged: {message}", "remedy": remedy}
            return {row: Judged(missing) for row in specs}


def _captioned(image_PP3: Tensor, prompt: str, step: int) -> Image.Image:
    """An image with its prompt and step attached; ``save_adapter`` writes them beside it."""
    image = Image.fromarray(image_PP3.numpy())
    image.info |= {"prompt": prompt, "step": str(step)}
    return image


def _sample_prompts(spec: JobSpec) -> Sequence[str]:
    subject = spec.subject
    return [subject.prompt(text) for text in subject.sample_prompts]


def _record(spec: JobSpec, base: Base, trainer: SlotTrainer, slot: int) -> AdapterRecord:
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
        steps_trained=trainer.steps_trained(slot),
        stopped_because=trainer.stopped_because(slot),
        gpu_seconds=trainer.seconds(slot),
    )
