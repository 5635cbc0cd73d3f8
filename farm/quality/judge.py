"""The judge that training lanes call for finished adapters: quality cards within a cost limit.

Owns the choice of scorers and budgets for jobs. Training depends only on the ``Judge`` protocol
(``farm.training.lane.settings.Judge``); each lane creates its judge from the run's
``ScoringSettings``. It reads no environment variables and no photo files. A plan asks it for costs,
for which it imports no model library.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from farm.base.names import EMBEDDED, edition_of
from farm.intake.job import JobSpec
from farm.intake.scoring import DEFAULT_SHARE, ScoringSettings
from farm.quality.protocol import (
    SHORT_SHARE,
    ScoringBudget,
    share_to_score,
    steps_to_score,
)
from farm.recipe import Recipe
from farm.training.lane.settings import JobKind, Judged, Pictures
from farm.training.plan.costs import BESIDE_ROWS

if TYPE_CHECKING:
    from PIL import Image

    from farm.adapters.bank.bank import Bank
    from farm.base.interface import Base
    from farm.quality.card import Candidate, Examination, Examiner
    from farm.quality.scorer import ImageScorer

__all__ = ["QualityJudge"]

NO_SCORER = (
    "No scorer was given: pass --scorer a CLIP folder or hub id, or set FARM_SCORER, or write "
    "`scorer` under the manifest's `defaults`."
)
SWITCHED_OFF = "Scoring is switched off: its share of the training cost is 0 (--scoring-share)."


def too_short(recipe: Recipe, share: float) -> str:
    """Why a recipe's adapters are not scored, and what changes that."""
    if share <= 0:
        return SWITCHED_OFF
    return (
        f"{recipe.steps} training steps are too few: scoring would cost more than "
        f"{max(share, SHORT_SHARE):.0%} of the training. Train at least "
        f"{steps_to_score(recipe, share)} steps, or set --scoring-share "
        f"{share_to_score(recipe):g}."
    )


@dataclass
class QualityJudge:
    """Scores adapters while they are still in a lane's bank."""

    settings: ScoringSettings = ScoringSettings()
    """The run's scoring settings."""
    batch: int = 32
    """Images generated per pass, on a GPU fewer: training steps beside them need the memory."""
    _scorers: dict[str, ImageScorer] = field(default_factory=dict, repr=False)
    _examiners: dict[ScoringBudget, Examiner] = field(default_factory=dict, repr=False)

    def judge(
        self,
        base: Base,
        bank: Bank,
        specs: Mapping[int, JobSpec],
        photos: Mapping[int, Sequence[Image.Image]],
        curves: Mapping[int, Any],
    ) -> dict[int, Judged]:
        """Cards and images of the given slots; slots with the same budget are scored together.

        Raises:
            BaseModelError: if the scorer cannot be read.
        """
        from farm.quality.card import missing_card

        name = self._scorer_name(base.name)
        if name is None:
            return {slot: Judged(missing_card(NO_SCORER)) for slot in specs}
        judged = {}
        groups: dict[ScoringBudget, list[int]] = defaultdict(list)
        for slot, spec in specs.items():
            budget = self._budget(spec.subject.recipe)
            if budget is None:
                judged[slot] = Judged(missing_card(too_short(spec.subject.recipe, self._share)))
            else:
                groups[budget].append(slot)
        for budget, slots in groups.items():
            examiner = self._examiner(base, bank, budget, name)
            candidates = [
                _candidate(slot, specs[slot], photos[slot], curves.get(slot, ())) for slot in slots
            ]
            for slot, examined in zip(slots, examiner.examine(candidates), strict=True):
                judged[slot] = _judged(examined)
        return judged

    def pictures(self, base_name: str, kinds: Sequence[tuple[JobKind, int]]) -> Pictures:
        """The cost of the jobs' cards: their own images, and the base's once per class and
        budget."""
        if self._scorer_name(base_name) is None:
            return Pictures(0, 0, (f"no adapter will be scored: {NO_SCORER}",) if kinds else ())
        num = rows = 0
        unscored: list[tuple[JobKind, int]] = []
        met = set()
        for kind, num_jobs in kinds:
            budget = self._budget(kind.recipe)
            if budget is None:
                unscored.append((kind, num_jobs))
                continue
            of_base = (budget, kind.class_noun, kind.class_prompt)
            times = num_jobs + (of_base not in met)
            met.add(of_base)
            num += times * budget.num_pictures
            rows += times * budget.denoiser_rows
        return Pictures(num, rows, self._notes(unscored))

    def _notes(self, unscored: Sequence[tuple[JobKind, int]]) -> tuple[str, ...]:
        if not unscored:
            return ()
        num_jobs = sum(num for _, num in unscored)
        count = f"{num_jobs} subject{'s' if num_jobs > 1 else ''} will not be scored"
        return (f"{count}: {too_short(unscored[0][0].recipe, self._share)}",)

    def _scorer_name(self, base_name: str) -> str | None:
        return self.settings.scorer or (EMBEDDED if edition_of(base_name) == EMBEDDED else None)

    def _budget(self, recipe: Recipe) -> ScoringBudget | None:
        return ScoringBudget.within(recipe, self._share)

    @property
    def _share(self) -> float:
        return DEFAULT_SHARE if self.settings.share is None else self.settings.share

    def _examiner(self, base: Base, bank: Bank, budget: ScoringBudget, name: str) -> Examiner:
        """One examiner per budget; the base's images stay valid when a lane builds a new bank."""
        from farm.quality.card import Examiner
        from farm.quality.scorer import Scorer

        found = self._examiners.get(budget)
        if found is None or found.base is not base:
            scorer = self._load(name, base)
            assert isinstance(scorer, Scorer), "checked when it was loaded"
            dino = self.settings.dino
            extra = {"dino": self._load(dino, base)} if dino else {}
            on_gpu = base.device.type == "cuda"
            batch = min(self.batch, BESIDE_ROWS // 2) if on_gpu else self.batch
            found = Examiner(base, bank, scorer, budget, extra, batch=batch)
            self._examiners[budget] = found
        found.bank = bank
        return found

    def _load(self, name: str, base: Base) -> ImageScorer:
        from farm.quality.scorer import load_scorer

        if name not in self._scorers:
            self._scorers[name] = load_scorer(name, device=str(base.device))
        return self._scorers[name]


def _candidate(
    slot: int, spec: JobSpec, photos: Sequence[Image.Image], curve: Sequence[tuple[int, float]]
) -> Candidate:
    from farm.quality.card import Candidate

    subject = spec.subject
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
    """Add to the card which images follow the samples: the subject's, then the class's."""
    from farm.quality.card import pillow

    card = {
        **examined.card,
        "gallery": list(examined.prompts),
        "num_class_pictures": len(examined.class_pictures_GPP3),
    }
    own, of_class = pillow(examined.pictures_GPP3), pillow(examined.class_pictures_GPP3)
    for picture, prompt in zip(own, examined.prompts, strict=True):
        picture.info["prompt"] = prompt  # becomes its caption on the adapter's model card
    return Judged(card, (*own, *of_class))
