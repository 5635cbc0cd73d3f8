"""Do adapters keep the subject's mark, and are they recognised as that subject?

Owns two measurements over rendered subjects, each of which has a mark: `mark_accuracy`, the share
of an adapter's images on which the mark reader finds the subject's mark, and `identity_accuracy`,
the share that is assigned to the right one of all subjects; with class and place of the prompt, as
the scorer reads them. How well both readers do on rendered images is measured beside them.

Legend: G images, D width, S subjects.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from statistics import fmean

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from farm.base.embedded.marks.network import FoundMark, load_mark_reader, read_marks
from farm.base.embedded.scorer import article
from farm.base.embedded.world import (
    CLASS_NOUNS,
    POSES_OF,
    SCENERY,
    Individual,
    render_subject,
)
from farm.keys import derive_seed
from farm.quality.card import Examination
from farm.quality.scorer import Scorer
from farm.quality.study.linear_probe import LinearProbe, fit_probe
from farm.quality.study.rendered_subjects import RenderedSubject

__all__ = ["IdentityScores", "SubjectReader", "mean_scores", "photos_of"]


@dataclass(frozen=True)
class IdentityScores:
    """Shares of right answers over the images of one adapter."""

    mark: float
    """The mark's kind and colour are read."""
    mark_kind: float
    """The mark's kind is read, in any colour."""
    identity: float
    """The image is assigned to its subject, among all subjects of the measurement."""
    class_noun: float
    place: float


def mean_scores(scores: Sequence[IdentityScores]) -> IdentityScores:
    """The mean over adapters."""
    names = [field.name for field in fields(IdentityScores)]
    return IdentityScores(**{name: fmean(getattr(one, name) for one in scores) for name in names})


def photos_of(subject: RenderedSubject, num: int = 5, *, seed: int = 0) -> list[Image.Image]:
    """Photos of a subject in all its poses and random places, as in the demo."""
    own_seed = derive_seed("identity-photos", subject.name, seed)
    photos = render_subject(own_seed, num, individual=subject.individual)
    return [photo.picture for photo in photos]


class SubjectReader:
    """Reads marks and identities among given subjects."""

    def __init__(
        self,
        scorer: Scorer,
        subjects: Sequence[RenderedSubject],
        *,
        num_each: int = 32,
        num_held: int = 8,
    ) -> None:
        """Fit a linear probe on the scorer's embedding to images of every subject, and measure both
        readers on held-out ones.

        Args:
            num_each: images per subject for the probe.
            num_held: images per subject for the accuracies.
        """
        self._scorer = scorer
        self._marks = load_mark_reader()
        self._index = {subject.name: index for index, subject in enumerate(subjects)}
        rendered = [_portraits(subject, num_each + num_held) for subject in subjects]
        self._probe: LinearProbe = fit_probe(
            [scorer.embed_images(pictures[:num_each]) for pictures in rendered]
        )
        self.num_held_out = num_held * len(subjects)
        held = [
            self.read(subject, _stack(pictures[num_each:]), [])
            for subject, pictures in zip(subjects, rendered, strict=True)
        ]
        self.held_out = mean_scores(held)
        """Accuracies of both readers on rendered images."""

    def examination(self, subject: RenderedSubject, found: Examination) -> IdentityScores:
        """The scores of an adapter's evaluation images."""
        return self.read(subject, found.pictures_GPP3, found.prompts)

    def read(
        self, subject: RenderedSubject, pictures_GPP3: Tensor, prompts: Sequence[str]
    ) -> IdentityScores:
        """The scores of uint8 images [G, P, P, 3]; places are scored if prompts are given."""
        marks = read_marks(self._marks, pictures_GPP3.to(torch.uint8).cpu().numpy())
        vectors_GD = self._scorer.embed_images(pictures_GPP3)
        who = self._index[subject.name]
        noun = subject.class_noun
        places = [next(p for p in SCENERY if prompt.endswith(p)) for prompt in prompts]
        return IdentityScores(
            mark=fmean(_is_mark(one, subject.individual) for one in marks),
            mark_kind=fmean(one.kind == subject.individual.mark for one in marks),
            identity=fmean(label == who for label in self._probe(vectors_GD)),
            class_noun=self._share(
                vectors_GD,
                [article(n) for n in CLASS_NOUNS],
                [CLASS_NOUNS.index(noun)] * len(marks),
            ),
            place=self._share(
                vectors_GD,
                [f"{article(noun)} {place}" for place in SCENERY],
                [SCENERY.index(place) for place in places],
            )
            if places
            else float("nan"),
        )

    def _share(self, vectors_GD: Tensor, texts: Sequence[str], wanted: Sequence[int]) -> float:
        chosen = (vectors_GD @ self._scorer.embed_texts(texts).T).argmax(1).tolist()
        return fmean(a == b for a, b in zip(chosen, wanted, strict=True))


def _is_mark(found: FoundMark, individual: Individual) -> bool:
    if individual.mark is None:
        return found.kind is None
    return (found.kind, found.colour) == (individual.mark, individual.mark_colour)


def _portraits(subject: RenderedSubject, num: int) -> list[Image.Image]:
    """Images of a subject that are none of its photos."""
    seed = derive_seed("identity-portraits", subject.name)
    poses = POSES_OF[subject.class_noun]
    found = render_subject(seed, num, individual=subject.individual, poses=poses)
    return [photo.picture for photo in found]


def _stack(pictures: Sequence[Image.Image]) -> Tensor:
    return torch.from_numpy(np.stack([np.asarray(picture) for picture in pictures]))
