"""The judge that training lanes call when adapters finish: cards within a share of training time.

Owns the choice of scorers and budgets for jobs, and the reading of their photos. Training knows it
only as something with a ``judge`` method (``farm.training.lane_settings.Judge``); it is picklable,
so that a driver can send it to its lanes.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from PIL import Image

from farm.adapters.bank import Bank
from farm.base.model import Base
from farm.base.names import EMBEDDED
from farm.intake.job import JobSpec
from farm.intake.photos import open_photo
from farm.intake.reading import read_photo_bytes
from farm.quality.card import Candidate, Examination, Examiner, missing_card, pillow
from farm.quality.protocol import ScoringBudget
from farm.quality.scorer import ImageScorer, Scorer, load_scorer
from farm.training.lane_settings import Judged

__all__ = ["MAX_PHOTOS", "QualityJudge", "default_judge", "thorough_judge"]

MAX_PHOTOS = 12
"""Photos of one subject that are compared with: more change no mean, and cost embedding."""
DEFAULT_SHARE = 0.12
"""Kept well below the promised 20 %: decoding, scoring and the base's pictures come on top."""
TOO_SHORT = "The recipe is too short: scoring would cost more than its share of the training."


def default_judge(base: Base) -> QualityJudge:
    """The judge of a run: the embedded scorer for the embedded base, else what is set.

    Environment: ``FARM_SCORER`` names a CLIP, ``FARM_DINO`` a DINO; both a folder or hub id.
    ``FARM_SCORING_SHARE`` is the share of training's cost that cards may take (0.12). They reach
    the lanes of a cluster as the driver's environment does.
    """
    share = float(os.environ.get("FARM_SCORING_SHARE", DEFAULT_SHARE))
    return QualityJudge(os.environ.get("FARM_SCORER"), os.environ.get("FARM_DINO"), share)


def thorough_judge(base: Base) -> QualityJudge:
    """The judge of a demo: a whole card for each adapter, whatever it costs beside a short
    training. Otherwise as ``default_judge``.
    """
    return replace(default_judge(base), share=float("inf"))


@dataclass
class QualityJudge:
    """Scores adapters while they still sit in a lane's bank."""

    scorer: str | None = None
    """Name of a CLIP (``embedded``, folder, hub id); None takes the embedded one for the embedded
    base, and scores nothing on others."""
    dino: str | None = None
    """Name of a DINO or DINOv2, for likeness that CLIP is blind to."""
    share: float = DEFAULT_SHARE
    """Of training's cost that scoring may take, in denoiser rows."""
    batch: int = 32
    """Pictures drawn in one pass."""
    _scorers: dict[str, ImageScorer] = field(default_factory=dict, repr=False)
    _examiners: dict[ScoringBudget, Examiner] = field(default_factory=dict, repr=False)

    def __getstate__(self) -> dict[str, Any]:
        """Settings travel to the lanes; models are loaded there."""
        return {**self.__dict__, "_scorers": {}, "_examiners": {}}

    def judge(
        self,
        base: Base,
        bank: Bank,
        specs: Mapping[int, JobSpec],
        curves: Mapping[int, Any],
    ) -> dict[int, Judged]:
        """Cards and pictures of the given slots; all of one budget are drawn together.

        Raises:
            BaseModelError: if the scorer cannot be read.
        """
        name = self.scorer or (EMBEDDED if base.name == EMBEDDED else None)
        if name is None:
            reason = "No scorer was named: set FARM_SCORER to a CLIP folder or hub id."
            return {slot: Judged(missing_card(reason)) for slot in specs}
        judged = {}
        groups: dict[ScoringBudget, list[int]] = defaultdict(list)
        for slot, spec in specs.items():
            budget = ScoringBudget.within(spec.subject.recipe, self.share)
            if budget is None:
                judged[slot] = Judged(missing_card(TOO_SHORT))
            else:
                groups[budget].append(slot)
        for budget, slots in groups.items():
            examiner = self._examiner(base, bank, budget, name)
            candidates = [_candidate(slot, specs[slot], curves.get(slot, ())) for slot in slots]
            for slot, examined in zip(slots, examiner.examine(candidates), strict=True):
                judged[slot] = _judged(examined)
        return judged

    def _examiner(self, base: Base, bank: Bank, budget: ScoringBudget, name: str) -> Examiner:
        """One examiner a budget; lanes build new banks, the base's pictures stay valid."""
        found = self._examiners.get(budget)
        if found is None or found.base is not base:
            scorer = self._load(name, base)
            assert isinstance(scorer, Scorer), "checked when it was loaded"
            extra = {"dino": self._load(self.dino, base)} if self.dino else {}
            found = Examiner(base, bank, scorer, budget, extra, batch=self.batch)
            self._examiners[budget] = found
        found.bank = bank
        return found

    def _load(self, name: str, base: Base) -> ImageScorer:
        if name not in self._scorers:
            self._scorers[name] = load_scorer(name, device=str(base.device))
        return self._scorers[name]


def _candidate(slot: int, spec: JobSpec, curve: Sequence[tuple[int, float]]) -> Candidate:
    subject = spec.subject
    photos: list[Image.Image] = [
        open_photo(read_photo_bytes(photo.uri)) for photo in subject.photos[:MAX_PHOTOS]
    ]
    return Candidate(
        slot=slot,
        photos=photos,
        class_noun=subject.class_noun,
        identifier=subject.identifier,
        class_prompt=subject.class_prompt,
        seed=subject.recipe.seed % 2**32,
        evaluation_curve=tuple(curve),
    )


def _judged(examined: Examination) -> Judged:
    """The card says which pictures lie beside the samples: the subject's, then the class's."""
    card = {
        **examined.card,
        "gallery": list(examined.prompts),
        "num_class_pictures": len(examined.class_pictures_GPP3),
    }
    own, of_class = pillow(examined.pictures_GPP3), pillow(examined.class_pictures_GPP3)
    for picture, prompt in zip(own, examined.prompts, strict=True):
        picture.info["prompt"] = prompt  # becomes its caption on the adapter's own card
    return Judged(card, (*own, *of_class))
