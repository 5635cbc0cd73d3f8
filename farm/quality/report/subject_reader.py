"""Reads one subject of a run from the store: its record, photos and sample images.

Owns the reading. Anything unreadable becomes a note on the page and never fails the report.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image

from farm.adapters.record import AdapterRecord
from farm.adapters.registry import Registry
from farm.errors import FarmError
from farm.intake.photos.bytes import read_photo_bytes
from farm.intake.photos.decode import open_photo
from farm.intake.subject import Subject
from farm.quality.report.samples import Sample, sample_plan
from farm.quality.report.thumbs import ThumbBudget, data_uri
from farm.quality.report.view import ReportImage, SubjectView
from farm.training.dispatch.ledger import Job, Status
from farm.training.dispatch.messages import Assignment
from farm.training.run.failures import failures_of

__all__ = ["SubjectReader"]

SHOWN_RECIPE = (
    "rank", "learning_rate", "learning_rate_schedule", "instance_rows", "prior_rows",
    "prior_weight", "num_prior_images", "snr_gamma", "seed",
)  # fmt: skip


@dataclass
class SubjectReader:
    """Reads subjects; shared by all threads, and counts missing items."""

    registry: Registry
    budget: ThumbBudget
    jobs: Mapping[str, Job]
    missing_photos: int = 0
    missing_records: int = 0
    missing_samples: int = 0

    def notes(self) -> list[str]:
        """Notes on what the page does not show."""
        notes = [
            (self.missing_photos, "photos could no longer be read and are not shown"),
            (self.missing_records, "adapters' records could not be read"),
            (self.missing_samples, "sample images could not be read"),
        ]
        return [f"{num} {text}." for num, text in notes if num]

    def subject(self, assignment: Assignment) -> SubjectView:
        """One subject's view."""
        spec = assignment.spec
        subject, job = spec.subject, self.jobs.get(spec.key)
        status = str(job.status) if job is not None else "queued"
        record = self._record(spec.key) if status in ("committed", "queued") else None
        if record is not None:
            status = "committed"  # the store is authoritative; the ledger may lag
        photos = self._photos(subject)
        pictures = self._pictures(record, subject) if record is not None else _Pictures()
        namespace, name = assignment.names[0]
        failures = failures_of([assignment], [job] if job is not None else [])
        failure = failures[0] if failures else None
        first = pictures.gallery[0] if pictures.gallery else None
        return SubjectView(
            id=subject.id,
            name=name,
            namespace=namespace,
            class_noun=subject.class_noun,
            status=status,
            job_key=spec.key,
            reason=failure.reason if failure else "",
            remedy=failure.remedy if failure else "",
            photos=[self._thumb(photo, f"photo {n}") for n, photo in enumerate(photos, 1)],
            progress=pictures.progress,
            gallery=pictures.gallery,
            class_pictures=pictures.class_pictures,
            row_photo=data_uri(photos[0], self.budget.row_px) if photos else "",
            row_picture=pictures.row or (first.uri if first else ""),
            card=record.quality if record is not None else None,
            loss_curve=record.loss_curve if record is not None else (),
            evaluation_curve=record.evaluation_curve if record is not None else (),
            steps_trained=record.steps_trained if record is not None else (job.step if job else 0),
            steps_planned=subject.recipe.steps,
            stopped_because=record.stopped_because if record is not None else "",
            seconds=record.gpu_seconds if record is not None else (job.seconds if job else 0.0),
            was_reused=bool(job and job.reused),
            recipe=_shown_recipe(subject),
            prompt=subject.prompt(subject.instance_prompt),
        )

    def _record(self, key: str) -> AdapterRecord | None:
        try:
            return self.registry.record(key)
        except FarmError:
            job = self.jobs.get(key)
            self.missing_records += bool(job and job.status is Status.COMMITTED)
            return None

    def _photos(self, subject: Subject) -> list[Image.Image]:
        found = []
        for photo in subject.photos[: self.budget.num_photos]:
            try:
                found.append(open_photo(read_photo_bytes(photo.uri)))
            except (FarmError, OSError, ValueError):
                self.missing_photos += 1
        return found

    def _pictures(self, record: AdapterRecord, subject: Subject) -> _Pictures:
        names = sorted((n for n in record.files if n.startswith("samples/")), key=_number)
        plan = sample_plan(
            len(names),
            [subject.prompt(text) for text in subject.sample_prompts],
            record.recipe.sample_every if record.recipe is not None else 0,
            record.quality or {},
        )
        pictures = _Pictures()
        limits = (
            (plan.progress, pictures.progress, self.budget.num_progress),
            (plan.gallery, pictures.gallery, self.budget.num_gallery),
            (plan.class_pictures, pictures.class_pictures, self.budget.num_class),
        )
        for wanted, shown, most in limits:
            best = _best(wanted)
            for item in _evenly(wanted, most, best):
                image = self._sample(record.job_key, names[item.index])
                if image is None:
                    continue
                picture = self._thumb(image, item.text, item.step)
                shown.append(replace(picture, similarity=item.similarity))
                if shown is pictures.gallery and (item is best or not pictures.row):
                    pictures.row = data_uri(image, self.budget.row_px)
        return pictures

    def _sample(self, key: str, name: str) -> Image.Image | None:
        try:
            data = self.registry.sample(key, name)
            return Image.open(io.BytesIO(data)).convert("RGB")
        except (OSError, FarmError):
            self.missing_samples += 1
            return None

    def _thumb(self, image: Image.Image, text: str, step: int | None = None) -> ReportImage:
        return ReportImage(data_uri(image, self.budget.side_px, self.budget.quality), text, step)


class _Pictures:
    """One adapter's images by purpose."""

    def __init__(self) -> None:
        self.progress: list[ReportImage] = []
        self.gallery: list[ReportImage] = []
        self.class_pictures: list[ReportImage] = []
        self.row = ""


def _number(name: str) -> tuple[int, str]:
    stem = Path(name).stem
    return (int(stem) if stem.isdigit() else 10**9, name)


def _best(samples: Sequence[Sample]) -> Sample | None:
    """The image most similar to the photos; the first one if none was measured."""
    return max(samples, key=lambda sample: sample.similarity or -1.0, default=None)


def _evenly(samples: Sequence[Sample], most: int, best: Sample | None) -> list[Sample]:
    """At most ``most`` samples, including the first, the last and the best."""
    if len(samples) <= most:
        return list(samples)
    if most < 2:
        return [best][:most] if best is not None else []
    chosen = [samples[round(index * (len(samples) - 1) / (most - 1))] for index in range(most)]
    if best is not None and best not in chosen:
        chosen[most // 2] = best
    return chosen


def _shown_recipe(subject: Subject) -> dict[str, Any]:
    recipe = subject.recipe.model_dump()
    return {name: recipe[name] for name in SHOWN_RECIPE if recipe[name] is not None}
