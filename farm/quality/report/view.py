"""The report's data of a run: plain frozen values, ready for the template.

Owns the structure of the page's data and derived values (counts, headline, the order of verdicts).
Reads no store and generates no HTML.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from farm.adapters.registry import NEW_VERSION
from farm.base.names import EMBEDDED_NOUNS, verdict_note
from farm.quality.report.subject import (
    VERDICT_ORDER,
    ReportImage,
    SubjectRow,
    SubjectView,
    best_of,
)
from farm.text.listed import listed

__all__ = [
    "VERDICT_ORDER",
    "Failure",
    "LaneSpan",
    "ReportImage",
    "RunView",
    "SpanEnd",
    "SubjectRow",
    "SubjectView",
    "UNJUDGED",
    "VerdictCount",
]

UNJUDGED: frozenset[str] = frozenset({"not scored", "unfinished"})
"""Verdicts that contain no information about learning."""
SpanEnd = Literal["ok", "stopped", "bad"]
"""How a job's time on a lane ended: with an adapter, unfinished but kept, or in a failure."""
COUNTED = {
    "partly learned": "partly",
    "class forgotten": "with a forgotten class",
    "copies its photos": "copying photos",
}
"""Verdicts in the headline, where they follow a number; the others as they are."""


@dataclass(frozen=True, slots=True)
class LaneSpan:
    """A job's time on a lane."""

    lane: str
    start_s: float
    """Seconds since the run's start."""
    end_s: float
    job: str
    subject: str
    how: SpanEnd


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
    """All starts of the run, each from its first step to its end."""
    subjects: Sequence[SubjectView] | Sequence[SubjectRow]
    spans: Sequence[LaneSpan] = ()
    served: Sequence[ReportImage] = ()
    """Images that an endpoint generated with the run's adapters."""
    dollars: float | None = None
    """Cost of the lanes' time, if a price was given."""
    dollars_per_hour: float | None = None
    device: str = "cpu"
    rows_per_s: float | None = None
    work_s: float | None = None
    """From the first job to the last event, the time of ``spans``; None means ``seconds``."""
    machine_s: float | None = None
    """The time of all lanes together, each in its own start; None means that each lane lived for
    the whole ``lane_s``."""
    notes: Sequence[str] = ()
    """What the page could not show, and why."""
    farm_version: str = ""
    revoked: Sequence[str] = ()
    """``namespace/name`` of revoked adapters."""
    highlights: Sequence[SubjectView] = ()
    """The best subjects, where ``subjects`` are rows without images."""

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
        total = f"{len(self.subjects):,} {_subjects(len(self.subjects))}"
        nums = {one.label: one.num for one in self.verdicts}
        if not nums.keys() - UNJUDGED:
            return f"{self.num_committed:,} of {total} trained."
        well = nums.pop("learned well", 0)
        others = [f", {num:,} {COUNTED.get(label, label)}" for label, num in nums.items()]
        return f"{well:,} of {total} learned well{''.join(others)}."

    @property
    def revoked_note(self) -> str:
        """Which adapters are revoked, and the remedy; empty if none is."""
        num = len(self.revoked)
        if not num:
            return ""
        shown = listed(self.revoked, 5)
        are, them = ("1 adapter is", "it") if num == 1 else (f"{num:,} adapters are", "them")
        return f"{are} revoked, so endpoints refuse {them} ({shown}): {NEW_VERSION}."

    @property
    def classes(self) -> list[str]:
        """Class nouns that occur."""
        return sorted({subject.class_noun for subject in self.subjects})

    @property
    def base_limits(self) -> str:
        """What verdicts on the embedded base mean, and which classes it does not know; empty for
        other bases."""
        known = tuple(f" {noun}" for noun in EMBEDDED_NOUNS)
        unknown = [one for one in self.classes if not f" {one.casefold()}".endswith(known)]
        if not (note := verdict_note(self.base)) or not unknown:
            return note
        return f"{note} It does not know {_listed(unknown)}: scores of these classes say least."

    @property
    def lanes(self) -> list[str]:
        """Lanes that held jobs, sorted by name."""
        return sorted({span.lane for span in self.spans})

    @property
    def spans_by_lane(self) -> dict[str, list[LaneSpan]]:
        """The spans of each lane, lanes sorted by name."""
        found: dict[str, list[LaneSpan]] = {lane: [] for lane in self.lanes}
        for span in self.spans:
            found[span.lane].append(span)
        return found

    @property
    def lane_s(self) -> float:
        """The time at work: how long lanes held jobs, or could have."""
        return self.seconds if self.work_s is None else self.work_s

    @property
    def lanes_s(self) -> float:
        """The time of all lanes together."""
        if self.machine_s is not None:
            return self.machine_s
        return self.lane_s * max(len(self.lanes), 1)

    @property
    def utilisation(self) -> float | None:
        """Share of the lanes' time in which they held at least one job."""
        if not self.spans or self.lanes_s <= 0:
            return None
        by_lane = self.spans_by_lane
        busy = sum(_union([(s.start_s, s.end_s) for s in spans]) for spans in by_lane.values())
        return min(1.0, busy / self.lanes_s)

    @property
    def seconds_a_subject(self) -> float | None:
        """Lane time per trained subject."""
        trained = self.num_committed - self.num_reused
        if not trained:
            return None
        return self.lanes_s / trained

    @property
    def saved_steps(self) -> tuple[int, int]:
        """(steps saved by early stopping, steps planned), over committed subjects."""
        done = [subject for subject in self.subjects if subject.status == "committed"]
        planned = sum(subject.steps_planned for subject in done)
        return planned - sum(subject.steps_trained for subject in done), planned

    @property
    def best(self) -> list[SubjectView]:
        """The best subjects, for the top of the page."""
        return best_of(
            [*self.highlights, *(s for s in self.subjects if isinstance(s, SubjectView))]
        )

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
