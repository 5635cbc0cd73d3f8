"""The report's data: plain frozen values, ready for the template.

Owns the structure of the page's data and derived values (counts, headline, the order of verdicts,
bars). Reads no store and generates no HTML.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from farm.base.names import EMBEDDED, EMBEDDED_NOUNS, edition_of
from farm.quality.report.bars import Bar, card_bars, class_preservation, score_rows, share
from farm.quality.verdict import Label

__all__ = [
    "VERDICT_ORDER",
    "Failure",
    "LaneSpan",
    "ReportImage",
    "RunView",
    "SubjectView",
    "VerdictCount",
]

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
GOOD: frozenset[str] = frozenset({"learned well", "partly learned"})
UNJUDGED: frozenset[str] = frozenset({"not scored", "unfinished"})
"""Verdicts that contain no information about learning."""


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
        if not self.card:
            return "No scores were made."
        return str(self.card.get("verdict", {}).get("headline", "No scores were made."))

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


@dataclass(frozen=True)
class LaneSpan:
    """A job's time on a lane."""

    lane: str
    start_s: float
    """Seconds since the run's start."""
    end_s: float
    job: str
    subject: str
    ended_well: bool


@dataclass(frozen=True)
class VerdictCount:
    """A verdict and its number of subjects."""

    label: str
    num: int
    share: float


@dataclass(frozen=True)
class Failure:
    """Subjects that failed for the same reason."""

    reason: str
    remedy: str
    subjects: tuple[str, ...]


@dataclass(frozen=True)
class RunView:
    """The whole page."""

    run_id: str
    base: str
    created: str
    """UTC, as text."""
    seconds: float
    subjects: Sequence[SubjectView]
    spans: Sequence[LaneSpan] = ()
    served: Sequence[ReportImage] = ()
    """Images that an endpoint generated with the run's adapters."""
    dollars: float | None = None
    """Cost of the lanes' time, if a price was given."""
    dollars_per_hour: float | None = None
    device: str = "cpu"
    rows_per_s: float | None = None
    notes: Sequence[str] = ()
    """What the page could not show, and why."""
    farm_version: str = ""

    @property
    def verdicts(self) -> list[VerdictCount]:
        """Verdicts that occur, best first."""
        tally = Counter(subject.verdict for subject in self.subjects)
        total = max(len(self.subjects), 1)
        return [
            VerdictCount(label, tally[label], tally[label] / total)
            for label in VERDICT_ORDER
            if tally[label]
        ]

    @property
    def num_committed(self) -> int:
        """Subjects with an adapter."""
        return sum(subject.status == "committed" for subject in self.subjects)

    @property
    def num_reused(self) -> int:
        """Subjects whose adapter already existed."""
        return sum(subject.was_reused for subject in self.subjects)

    @property
    def headline(self) -> str:
        """The run in one sentence."""
        judged = [one for one in self.subjects if one.verdict not in UNJUDGED]
        if not judged:
            num = len(self.subjects)
            return f"{self.num_committed} of {num} {_subjects(num)} trained."
        good = sum(one.verdict in GOOD for one in judged)
        rest = len(self.subjects) - len(judged)
        tail = f"; {rest} not scored" if rest else ""
        return f"{good} of {len(judged)} {_subjects(len(judged))} learned{tail}."

    @property
    def classes(self) -> list[str]:
        """Class nouns that occur."""
        return sorted({subject.class_noun for subject in self.subjects})

    @property
    def base_limits(self) -> str:
        """The classes that the embedded base does not know, in one sentence; else empty."""
        known = tuple(f" {noun}" for noun in EMBEDDED_NOUNS)
        unknown = [one for one in self.classes if not f" {one.casefold()}".endswith(known)]
        if edition_of(self.base) != EMBEDDED or not unknown:
            return ""
        return (
            "The embedded base is a small model for demonstrations that does not know "
            f"{_listed(unknown)}: scores of these classes say little about a full-size base."
        )

    @property
    def lanes(self) -> list[str]:
        """Lanes that held jobs, sorted by name."""
        return sorted({span.lane for span in self.spans})

    @property
    def utilisation(self) -> float | None:
        """Share of the lanes' time in which they held at least one job."""
        if not self.spans or self.seconds <= 0:
            return None
        busy = sum(_union([(s.start_s, s.end_s) for s in self.spans if s.lane == lane])
                   for lane in self.lanes)  # fmt: skip
        return min(1.0, busy / (self.seconds * len(self.lanes)))

    @property
    def seconds_a_subject(self) -> float | None:
        """Lane time per trained subject."""
        trained = self.num_committed - self.num_reused
        if not trained:
            return None
        return self.seconds * max(len(self.lanes), 1) / trained

    @property
    def saved_steps(self) -> tuple[int, int]:
        """(steps saved by early stopping, steps planned), over committed subjects."""
        done = [subject for subject in self.subjects if subject.status == "committed"]
        planned = sum(subject.steps_planned for subject in done)
        return planned - sum(subject.steps_trained for subject in done), planned

    @property
    def best(self) -> list[SubjectView]:
        """The best subjects, for the top of the page."""
        shown = [s for s in self.subjects if s.photos and s.gallery and s.status == "committed"]
        return sorted(shown, key=lambda s: (s.verdict_rank, -(s.likeness or 0)))[:6]

    @property
    def failures(self) -> list[Failure]:
        """Failed subjects grouped by reason, most frequent reason first."""
        groups: dict[tuple[str, str], list[str]] = {}
        for subject in self.subjects:
            if subject.verdict == "failed":
                groups.setdefault((subject.reason, subject.remedy), []).append(subject.id)
        ordered = sorted(groups.items(), key=lambda item: -len(item[1]))
        return [Failure(reason, remedy, tuple(ids)) for (reason, remedy), ids in ordered]


def _union(spans: list[tuple[float, float]]) -> float:
    """Total length of the spans, counting overlaps once."""
    total, reached = 0.0, float("-inf")
    for start, end in sorted(spans):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total


def _subjects(num: int) -> str:
    return "subject" if num == 1 else "subjects"


def _listed(words: list[str]) -> str:
    """``a, b and c``."""
    return " and ".join(filter(None, (", ".join(words[:-1]), words[-1])))
