"""The prompts of a step's rows, resident on the device.

Owns what conditions each row: encoded prompts, or token ids if text encoders are adapted, and the
frames of the crops where the base reads them. Only rows that change are rewritten.

Legend: S slots, G rows per slot, R = S·G rows, n one job's own rows, T tokens.
"""

from __future__ import annotations

from collections.abc import Sequence, Sized

import torch
from torch import Tensor

from farm.base.conditioning import MASK, Conditioning, TokenIds, whole_frames
from farm.base.device.queues import adopt
from farm.base.device.transfer import sent
from farm.base.interface import Base
from farm.training.plan.shape import LaneShape
from farm.training.slots.batch import JobRows
from farm.training.slots.job import TrainingJob

__all__ = ["PromptRows", "evaluation_prompts"]


class PromptRows:
    """Each row's prompt, resident on the device; only rows whose caption changes are rewritten.

    Holds encoded prompts, or token ids if a text encoder is adapted too.
    """

    def __init__(self, base: Base, shape: LaneShape, num_slots: int) -> None:
        self._base, self._as_tokens = base, bool(shape.text_encoder_modules)
        self._instance_rows, self._group = shape.instance_rows, shape.rows
        self._count = num_slots * self._group
        # blank rows hold the empty prompt, a valid input, so that they give finite numbers
        empty = base.encode_prompts([""]).to(base.dtype)
        self._encoded = empty.repeat(self._count)
        self._tokens = base.tokenize([""]).to(base.device).repeat(self._count)
        self._side_px = shape.resolution_px
        self._frames_R6 = _frames_of(None, [0] * self._count, self._side_px).to(base.device)

    def admit(self, slot: int, job: TrainingJob) -> None:
        """Write a job's prompts; if all photos share one prompt, they never change."""
        prior = () if job.prior is None else job.prior.conditioning.tensors
        adopt((*job.instance_conditioning.tensors, *prior), None, self._base.device)
        self._write(slot, job, [0] * job.instance_rows, [0] * job.prior_rows)
        self._write_frames(slot, job, [0] * job.instance_rows, [0] * job.prior_rows)

    def update(self, slot: int, job: TrainingJob, rows: JobRows) -> None:
        """Write the captions of this step's photos, if each photo has its own."""
        if self._varies(job):
            self._write(slot, job, rows.instances, rows.priors)
        self._write_frames(slot, job, rows.instances, rows.priors)

    @property
    def addresses(self) -> tuple[int, ...]:
        """Where the prompts are on the device: they move if a prompt is longer than all before, or
        is the first one with a mask."""
        tensors = (*self._encoded.tensors, *self._tokens.tensors.values())
        return tuple(tensor.data_ptr() for tensor in tensors)

    def conditioning(self) -> Conditioning:
        """All rows' prompts; tokens are encoded now, under the caller's routing."""
        prompts = self._base.encode_tokens(self._tokens) if self._as_tokens else self._encoded
        return self._base.for_crops(prompts, self._frames_R6) if self._base.uses_frames else prompts

    def _varies(self, job: TrainingJob) -> bool:
        if self._as_tokens:
            assert job.instance_tokens is not None
            prior = job.prior.tokens if job.prior is not None else None
            return len(job.instance_tokens) > 1 or (prior is not None and len(prior) > 1)
        prior_count = len(job.prior.conditioning) if job.prior is not None else 1
        return len(job.instance_conditioning) > 1 or prior_count > 1

    def _write(self, slot: int, job: TrainingJob, instances: list[int], priors: list[int]) -> None:
        first = slot * self._group
        second = first + self._instance_rows
        if self._as_tokens:
            assert job.instance_tokens is not None
            self._put_tokens(first, job.instance_tokens, instances)
            if priors and job.prior is not None and job.prior.tokens is not None:
                self._put_tokens(second, job.prior.tokens, priors)
            return
        self._put(first, job.instance_conditioning, instances)
        if priors and job.prior is not None:
            self._put(second, job.prior.conditioning, priors)

    def _write_frames(
        self, slot: int, job: TrainingJob, instances: list[int], priors: list[int]
    ) -> None:
        if not self._base.uses_frames:
            return
        first = slot * self._group
        parts = [(first, job.instance_frames, instances)]
        if priors and job.prior is not None:
            parts.append((first + self._instance_rows, job.prior.frames, priors))
        for start, frames, chosen in parts:
            rows = self._frames_R6[start : start + len(chosen)]
            rows.copy_(_frames_of(frames, chosen, self._side_px), non_blocking=True)

    def _put(self, start: int, source: Conditioning, indices: list[int]) -> None:
        if MASK in source.extra:
            self._encoded = self._encoded.masked()
        elif MASK in self._encoded.extra:
            source = source.masked()
        longest = max(source.num_tokens, self._encoded.num_tokens)
        self._encoded = self._encoded.padded(longest)  # the same object unless a prompt is longer
        source = source.padded(longest)
        # row by row: a list of indices would be copied to the device synchronously
        for row, index in enumerate(_prompt_indices(source, indices), start):
            self._encoded.hidden_RTD[row].copy_(source.hidden_RTD[index], non_blocking=True)
            for name, value in self._encoded.extra.items():
                value[row].copy_(source.extra[name][index], non_blocking=True)

    def _put_tokens(self, start: int, source: TokenIds, indices: list[int]) -> None:
        self._tokens = self._tokens.as_long_as(source)  # the same object unless a prompt is longer
        self._tokens.write(start, source[_prompt_indices(source, indices)])


def evaluation_prompts(
    base: Base, jobs: Sequence[TrainingJob], rows: Sequence[JobRows], side_px: int
) -> Conditioning:
    """Each evaluation row's prompt; tokens are encoded here, under the caller's routing."""
    pairs = list(zip(jobs, rows, strict=True))
    if jobs[0].recipe.text_encoder_modules:
        chosen = []
        for job, part in pairs:
            assert job.instance_tokens is not None
            chosen.append(job.instance_tokens[_prompt_indices(job.instance_tokens, part.instances)])
        prompts = base.encode_tokens(TokenIds.concatenate(chosen).sent(base.device))
    else:
        prompts = Conditioning.concatenate(
            [
                job.instance_conditioning[
                    _prompt_indices(job.instance_conditioning, part.instances)
                ]
                for job, part in pairs
            ]
        ).to(base.device, base.dtype)
    if not base.uses_frames:
        return prompts
    frames_R6 = torch.cat(
        [_frames_of(job.instance_frames, part.instances, side_px) for job, part in pairs]
    )
    return base.for_crops(prompts, sent(frames_R6, base.device))


def _frames_of(frames_N6: Tensor | None, chosen: list[int], side_px: int) -> Tensor:
    """The frames of the chosen samples; those of whole images where none are known."""
    if frames_N6 is None:
        return whole_frames(len(chosen), side_px, side_px)
    return frames_N6[chosen]


def _prompt_indices(prompts: Sized, samples: list[int]) -> list[int]:
    """The index of each sample's prompt: its own, or that of the only one."""
    return samples if len(prompts) > 1 else [0] * len(samples)
