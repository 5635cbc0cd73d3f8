"""The quality card of an adapter: its scores, the untouched base's scores, and the verdict.

Owns the evaluation of many adapters at once: one flat batch of images through the bank, one
embedding of all of them, one card each. The base's own images (the class and the prompts without an
adapter) are generated once per class and shared by all its subjects.

Legend: G generated images, P photos, D width.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from farm.adapters.bank.bank import Bank
from farm.base.interface import Base
from farm.keys import derive_seed
from farm.quality import scores
from farm.quality.evaluation_images import BASE_SLOT, ImageRow, generate_rows, seeds_for
from farm.quality.intervals import MIN_PICTURES, ScoreEstimate
from farm.quality.protocol import PromptPair, Protocol, ScoringBudget, protocol_for
from farm.quality.ratios import EmbeddedImages, evidence_of, scores_of
from farm.quality.scorer import ImageScorer, Scorer
from farm.quality.verdict import Evidence, judge

__all__ = [
    "Candidate",
    "Examination",
    "Examiner",
    "missing_card",
    "pillow",
    "score_adapters",
]

CARD_VERSION = 1


@dataclass(frozen=True)
class Candidate:
    """One adapter to evaluate: its slot, and the subject that it was trained on."""

    slot: int
    """Its current slot in the bank."""
    photos: Sequence[Image.Image]
    """The user's photos, rotated upright; cropped by the scorer's own preprocessing."""
    class_noun: str
    identifier: str
    class_prompt: str
    seed: int = 0
    """Seed of the bootstrap. Image seeds depend on the class, so that all its subjects share the
    base's images, and no card depends on the slot or on other adapters."""
    evaluation_curve: Sequence[tuple[int, float]] = ()


@dataclass(frozen=True)
class Examination:
    """A card, and the images that it is based on."""

    card: dict[str, Any]
    """Plain values, ready for ``adapter.json``."""
    prompts: tuple[str, ...]
    pictures_GPP3: Tensor
    """uint8, the subject's images, one per prompt, reused as a gallery."""
    class_pictures_GPP3: Tensor
    """uint8, class images generated with the adapter."""


@dataclass
class Examiner:
    """Evaluates adapters of one bank; keeps the base's images of each class between calls."""

    base: Base
    bank: Bank
    scorer: Scorer
    budget: ScoringBudget = field(default_factory=ScoringBudget)
    extra_scorers: Mapping[str, ImageScorer] = field(default_factory=dict)
    """Further image scorers by name, such as ``{"dino": DinoScorer(…)}``."""
    protocol_of: Callable[[str], Protocol] | None = None
    """Maps a class noun to its protocol; None uses the base's default."""
    batch: int = 32
    """Images per denoising pass."""
    num_generated: int = 0
    """Images generated so far."""
    _references: dict[tuple[str, str], EmbeddedImages] = field(default_factory=dict)

    def examine(self, candidates: Sequence[Candidate]) -> list[Examination]:
        """Cards of all candidates, generated and embedded together."""
        started = time.perf_counter()
        self._prepare(candidates)
        rows: list[ImageRow] = []
        for candidate in candidates:
            rows += self._rows(candidate)
        pictures_GPP3 = self._generate(rows)
        vectors = self._embed(pictures_GPP3)
        results = []
        for index, candidate in enumerate(candidates):
            part = slice(index * self.budget.num_pictures, (index + 1) * self.budget.num_pictures)
            own = {name: value[part] for name, value in vectors.items()}
            results.append(self._examination(candidate, own, pictures_GPP3[part]))
        each_s = (time.perf_counter() - started) / max(len(candidates), 1)
        for result in results:
            result.card["seconds"] = round(each_s, 3)
        return results

    # -- images -------------------------------------------------------------------------------

    def protocol(self, class_noun: str) -> Protocol:
        """The protocol for a class."""
        if self.protocol_of is not None:
            return self.protocol_of(class_noun)
        return protocol_for(self.base.name, class_noun)

    def _pairs(self, candidate: Candidate) -> list[PromptPair]:
        num = self.budget.num_prompt_pictures
        protocol = self.protocol(candidate.class_noun)
        return protocol.prompts(num, candidate.identifier, candidate.class_noun)

    def _rows(self, candidate: Candidate) -> list[ImageRow]:
        """Prompted, class and drift images of one adapter, in that order."""
        budget, slot = self.budget, candidate.slot
        prompted = [pair.prompt for pair in self._pairs(candidate)]
        plain = [candidate.class_prompt] * budget.num_class_pictures
        unrelated = self.protocol(candidate.class_noun).unrelated_prompts(budget.num_drift_pictures)
        seeds = self._seeds(candidate.class_noun)
        return [
            ImageRow(slot, prompt, seed)
            for prompt, seed in zip([*prompted, *plain, *unrelated], seeds, strict=True)
        ]

    def _seeds(self, class_noun: str) -> list[int]:
        """The class's image seeds, so that all subjects of the class share the base's images."""
        root = derive_seed("class", class_noun)
        return [
            *seeds_for(root, "prompted", self.budget.num_prompt_pictures),
            *seeds_for(root, "class", self.budget.num_class_pictures),
            *seeds_for(root, "drift", self.budget.num_drift_pictures),
        ]

    def _prepare(self, candidates: Sequence[Candidate]) -> None:
        """Generate the base's images of each new class in one batch."""
        fresh = {
            (candidate.class_noun, candidate.class_prompt): candidate for candidate in candidates
        }
        fresh = {key: value for key, value in fresh.items() if key not in self._references}
        rows: list[ImageRow] = []
        for candidate in fresh.values():
            noun, budget = candidate.class_noun, self.budget
            protocol = self.protocol(noun)
            prompts = [
                *protocol.class_texts(budget.num_prompt_pictures, noun),
                *[candidate.class_prompt] * budget.num_class_pictures,
                *protocol.unrelated_prompts(budget.num_drift_pictures),
            ]
            seeds = self._seeds(noun)
            rows += [
                ImageRow(BASE_SLOT, prompt, seed)
                for prompt, seed in zip(prompts, seeds, strict=True)
            ]
        vectors = self._embed(self._generate(rows)) if rows else {}
        for index, key in enumerate(fresh):
            start = index * self.budget.num_pictures
            self._references[key] = EmbeddedImages(
                *(self._part(vectors, start, part) for part in range(3))
            )

    def _part(self, vectors: Mapping[str, Tensor], start: int, part: int) -> dict[str, Tensor]:
        """Prompted (0), class (1) or drift (2) vectors of the adapter that starts at ``start``."""
        budget = self.budget
        sizes = (budget.num_prompt_pictures, budget.num_class_pictures, budget.num_drift_pictures)
        begin = start + sum(sizes[:part])
        return {name: value[begin : begin + sizes[part]] for name, value in vectors.items()}

    def _generate(self, rows: Sequence[ImageRow]) -> Tensor:
        self.num_generated += len(rows)
        return generate_rows(self.base, self.bank, rows, self.budget, batch=self.batch)

    def _embed(self, pictures: Tensor | Sequence[Image.Image]) -> dict[str, Tensor]:
        scorers = {"clip": self.scorer, **self.extra_scorers}
        return {name: scorer.embed_images(pictures) for name, scorer in scorers.items()}

    # -- scoring ------------------------------------------------------------------------------

    def _examination(
        self, candidate: Candidate, own: Mapping[str, Tensor], pictures_GPP3: Tensor
    ) -> Examination:
        pairs = self._pairs(candidate)
        texts = self.scorer.embed_texts([pair.text for pair in pairs])
        reference = self._references[(candidate.class_noun, candidate.class_prompt)]
        photos = self._embed(candidate.photos)
        tuned = EmbeddedImages(*(self._part(own, 0, part) for part in range(3)))
        values: dict[str, ScoreEstimate | None] = {}
        base_values: dict[str, ScoreEstimate | None] = {}
        for name in photos:
            values |= scores_of(name, tuned, reference, photos[name], candidate.seed)
            base_values |= scores_of(name, reference, None, photos[name], candidate.seed)
        values["clip_t"] = scores.prompt_fidelity(tuned.prompted["clip"], texts, candidate.seed)
        base_values["clip_t"] = scores.prompt_fidelity(
            reference.prompted["clip"], texts, candidate.seed
        )
        main = "dino" if "dino" in photos else "clip"
        likeness = scores.photo_likeness(photos[main])
        evidence = replace(
            evidence_of(main, values, base_values, likeness, candidate.evaluation_curve),
            class_noun=candidate.class_noun,
        )
        card = self._card(candidate, values, base_values, likeness, evidence)
        card["poses"] = self._poses(candidate, tuned, reference)
        each = scores.likeness(tuned.prompted[main], photos[main])
        card["gallery_similarity"] = [round(value, 4) for value in each]
        start, end = len(pairs), len(pairs) + self.budget.num_class_pictures
        return Examination(
            card,
            tuple(pair.prompt for pair in pairs),
            pictures_GPP3[:start],
            pictures_GPP3[start:end],
        )

    def _card(
        self,
        candidate: Candidate,
        values: Mapping[str, ScoreEstimate | None],
        base_values: Mapping[str, ScoreEstimate | None],
        likeness: scores.PhotoLikeness | None,
        evidence: Evidence,
    ) -> dict[str, Any]:
        return {
            "version": CARD_VERSION,
            "scorers": {"clip": self.scorer.name}
            | {name: scorer.name for name, scorer in self.extra_scorers.items()},
            "protocol": self.protocol(candidate.class_noun).name,
            "budget": asdict(self.budget),
            "min_pictures": MIN_PICTURES,
            "num_photos": len(candidate.photos),
            "scores": {name: _plain(value) for name, value in values.items()},
            "base_scores": {name: _plain(value) for name, value in base_values.items()},
            "photo_likeness": asdict(likeness) if likeness else None,
            "evidence": {
                key: round(value, 4) if isinstance(value, float) else value
                for key, value in asdict(evidence).items()
            },
            "verdict": judge(evidence).to_json(),
        }

    def _poses(
        self, candidate: Candidate, tuned: EmbeddedImages, reference: EmbeddedImages
    ) -> dict[str, Any] | None:
        protocol = self.protocol(candidate.class_noun)
        if not protocol.poses or self.budget.num_class_pictures < MIN_PICTURES:
            return None
        texts = self.scorer.embed_texts(protocol.pose_texts(candidate.class_noun))
        found = {
            name: scores.poses(
                scores.pose_labels(source.class_pictures["clip"], texts), protocol.poses
            )
            for name, source in (("adapter", tuned), ("base", reference))
        }
        return {name: asdict(value) for name, value in found.items()}


def score_adapters(
    base: Base,
    bank: Bank,
    candidates: Sequence[Candidate],
    scorer: Scorer,
    *,
    budget: ScoringBudget | None = None,
    extra_scorers: Mapping[str, ImageScorer] | None = None,
) -> list[Examination]:
    """Evaluate adapters once. For repeated calls, keep an ``Examiner`` instead."""
    examiner = Examiner(base, bank, scorer, budget or ScoringBudget(), extra_scorers or {})
    return examiner.examine(candidates)


def missing_card(reason: str) -> dict[str, Any]:
    """The card of an adapter that was not evaluated, with the reason."""
    evidence = Evidence(None, None, None, None, None, missing=reason)
    return {
        "version": CARD_VERSION,
        "scores": {},
        "base_scores": {},
        "verdict": judge(evidence).to_json(),
    }


def _plain(value: ScoreEstimate | None) -> dict[str, Any]:
    if value is None:
        return {"missing": f"fewer than {MIN_PICTURES} images"}
    return value.to_json()


def pillow(pictures_GPP3: Tensor) -> list[Image.Image]:
    """Images as Pillow images."""
    return [Image.fromarray(picture) for picture in pictures_GPP3.to(torch.uint8).cpu().numpy()]
