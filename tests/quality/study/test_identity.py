"""Marks and identities are read on rendered images with a known accuracy."""

from __future__ import annotations

import numpy as np
import torch

from farm.base.embedded.world.words import CLASS_NOUNS
from farm.quality.scorer import embedded_scorer
from farm.quality.study.identity import SubjectReader, mean_scores, photos_of
from farm.quality.study.rendered_subjects import sample_subjects


def test_subjects_are_recognised_on_rendered_photos_and_confused_with_no_other() -> None:
    subjects = sample_subjects(4, CLASS_NOUNS[:2], seed=3)
    reader = SubjectReader(embedded_scorer(), subjects, num_each=12, num_held=4)
    assert reader.num_held_out == 16
    assert reader.held_out.mark_kind >= 0.8
    assert reader.held_out.identity >= 0.9

    photos = [torch.from_numpy(np.stack([np.asarray(photo) for photo in photos_of(subject)]))
              for subject in subjects]  # fmt: skip
    own = [reader.read(subject, photo, []) for subject, photo in zip(subjects, photos, strict=True)]
    assert mean_scores(own).identity >= 0.9
    other = reader.read(subjects[0], photos[1], [])
    assert other.identity <= 0.2
    assert other.class_noun <= 0.2  # it is a dog
