"""The report's data of one subject: plain frozen values, ready for the template.

Owns a subject's values and what follows from them (verdict, headline, bars), whole for its own page
or short for the overview of a large run. Reads no store and generates no HTML.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from farm.quality.report.bars import Bar, card_bars, class_preservation, score_rows, share
from farm.quality.verdict import ALIKE, NO_SCORES, NO_VERDICT, Label

__all__ = ["VERDICT_ORDER", "ReportImage", "SubjectRow", "SubjectView", "best_of"]

VERDICT_ORDER: tuple[str, ...] = (
    "learned well",
    "partly learned",
    "class forgotten",
    "copies its photos",
    "never learned",
    "diverged",
    "failed",
    "unfinished",
    "not scored",
)
"""Best first; adapters without scores come last."""


@dataclass(frozen=True)
class ReportImage:
    """One thumbnail with a description."""

    uri: str
    """A data URI, because the page loads no files."""
    text: str
    step: int | None = None
    similarity: float | None = None
    """Similarity to the photos, if it was measured."""


@dataclass(frozen=True)
class SubjectView:
    """One subject's row and page."""

    id: str
    name: str
    namespace: str
    class_noun: str
    status: str
    """The ledger's status: committed, quarantined, rejected, …"""
    job_key: str = ""
    reason: str = ""
    """The reason of the failure."""
    remedy: str = ""
    photos: Sequence[ReportImage] = ()
    progress: Sequence[ReportImage] = ()
    """Images of one prompt by increasing training step."""
    gallery: Sequence[ReportImage] = ()
    class_pictures: Sequence[ReportImage] = ()
    """Images of the class without the identifier, generated with the adapter."""
    row_photo: str = ""
    row_picture: str = ""
    """Small data URIs for the table."""
    card: Mapping[str, Any] | None = None
    loss_curve: Sequence[float] = ()
    evaluation_curve: Sequence[tuple[int, float]] = ()
    steps_trained: int = 0
    steps_planned: int = 0
    stopped_because: str = ""
    seconds: float = 0.0
    was_reused: bool = False
    recipe: Mapping[str, Any] = field(default_factory=dict)
    prompt: str = ""

    @property
    def verdict(self) -> Label | str:
        """The card's label, or the status if there is none."""
        if self.status in ("quarantined", "rejected", "failed"):
            return "failed"
        if self.status != "committed":
            return "unfinished"
        if not self.card:
            return "not scored"
        return str(self.card.get("verdict", {}).get("label", "not scored"))

    @property
    def verdict_rank(self) -> int:
        """The verdict's position in ``VERDICT_ORDER``."""
        return VERDICT_ORDER.index(self.verdict) if self.verdict in VERDICT_ORDER else 99

    @property
    def headline(self) -> str:
        """The verdict's sentence."""
        if self.verdict == "failed":
            return "There is no adapter."
        if self.verdict == "unfinished":
            return f"Not finished: {self.status}."
        if ALIKE in self.reasons:  # cards of earlier versions say that there are no scores
            return NO_VERDICT[0]
        return str((self.card or {}).get("verdict", {}).get("headline", NO_SCORES[0]))

    @property
    def reasons(self) -> list[str]:
        """The reasons for the verdict."""
        if self.verdict == "failed":
            return [self.reason] if self.reason else []
        card = self.card or {}
        if "missing" in card:
            return [f"The card {card['missing']}"]
        return list(card.get("verdict", {}).get("reasons", []))

    @property
    def remedies(self) -> list[str]:
        """Recommended actions."""
        if self.verdict == "failed":
            return [self.remedy] if self.remedy else []
        card = self.card or {}
        if "missing" in card:
            return [card["remedy"]] if card.get("remedy") else []
        if ALIKE in self.reasons:
            return [NO_VERDICT[1]]
        return list(card.get("verdict", {}).get("remedies", []))

    @property
    def bars(self) -> list[Bar]:
        """The card in plain words."""
        return card_bars(self.card or {})

    @property
    def why_not_scored(self) -> str:
        """For the table: why a finished adapter has no scores."""
        if self.verdict != "not scored":
            return ""
        return (self.reasons or ["No quality card was requested."])[0]

    @property
    def best_pictures(self) -> list[ReportImage]:
        """The gallery, most similar to the photos first; unmeasured images keep their order."""
        return sorted(self.gallery, key=lambda picture: -(picture.similarity or -1.0))

    @property
    def likeness(self) -> float | None:
        """0 (any member of the class) to 1 (as similar as the photos); sorts the table."""
        return share(self.card or {}, "gain")

    @property
    def class_kept(self) -> float | None:
        """0 to 1: how well the class is preserved."""
        return class_preservation(self.card or {})

    @property
    def prompt_followed(self) -> float | None:
        """0 to 1: CLIP-T relative to the base's."""
        return share(self.card or {}, "prompt_ratio")

    @property
    def score_rows(self) -> list[tuple[str, str, str, str]]:
        """Rows (score, adapter, base, unit count) as text, for the table of raw numbers."""
        return score_rows(self.card or {})

    @property
    def poses(self) -> list[tuple[str, int, int]]:
        """Rows (pose, number of the adapter's images, number of the base's images)."""
        found = (self.card or {}).get("poses")
        if not found:
            return []
        base = found["base"]["counts"]
        return [(pose, num, base.get(pose, 0)) for pose, num in found["adapter"]["counts"].items()]


@dataclass(frozen=True, slots=True)
class SubjectRow:
    """A subject without its images and curves: a row of the overview of a large run."""

    number: int
    """Its place in the manifest's order."""
    id: str
    job_key: str
    name: str
    namespace: str
    class_noun: str
    status: str
    verdict: str
    verdict_rank: int
    likeness: float | None
    prompt_followed: float | None
    class_kept: float | None
    steps_trained: int
    steps_planned: int
    seconds: float
    was_reused: bool
    reason: str
    remedy: str

    @classmethod
    def of(cls, subject: SubjectView, number: int) -> SubjectRow:
        """The row of a subject. Texts that recur are kept once."""
        texts = ("namespace", "class_noun", "status", "verdict", "reason", "remedy")
        values = {name: getattr(subject, name) for name in cls.__slots__ if name != "number"}
        return cls(number, **values | {name: sys.intern(str(values[name])) for name in texts})

    @property
    def order(self) -> tuple[float, int]:
        """Sorts the best first."""
        return self.verdict_rank - (self.likeness or 0) / 10, self.number


def best_of(subjects: Iterable[SubjectView]) -> list[SubjectView]:
    """The best six that have a photo and an image."""
    shown = [s for s in subjects if s.photos and s.gallery and s.status == "committed"]
    return sorted(shown, key=lambda s: (s.verdict_rank, -(s.likeness or 0)))[:6]
