"""The verdict: a quality card's numbers in plain words, with reasons and what to do.

Owns the thresholds and the sentences. They judge ratios, never raw cosines: how far from the
untouched base towards the photos' own likeness a score has moved, because a raw cosine of 0.8
means another thing for every scorer and every subject.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

__all__ = ["Evidence", "Label", "Verdict", "judge"]

Label = Literal[
    "learned well",
    "partly learned",
    "class forgotten",
    "copies its photos",
    "never learned",
    "diverged",
    "not scored",
]

GAIN_NONE = 0.15
"""Below this share of the way from base to photos, the subject is not to be seen."""
GAIN_WELL = 0.5
"""From here on the pictures are recognisably the subject."""
CAPTURE_FORGOTTEN = 0.6
"""Share of the adapter's likeness that the bare class has taken on, too."""
DIVERSITY_KEPT = 0.75
"""A class that stays as varied as this has moved, but is not lost: a dozen pictures lean towards a
subject by chance, above all where the adapter's own pictures are hardly more like it."""
DIVERSITY_LOST = 0.5
"""Pictures of the class half as varied as the base's."""
COPY_EXCESS = 0.5
"""Share of the way from "as near as two photos are" to "the photo itself"."""
PROMPT_LOST = 0.75
"""Prompt fidelity against the base's own on the same prompts."""
DIVERGED_RATIO = 1.5
"""Last evaluation loss over the first."""


@dataclass(frozen=True)
class Evidence:
    """What the verdict is given on; None where it was not measured."""

    gain: float | None
    """0: as unlike the subject as the base's pictures; 1: as like it as its photos are alike."""
    capture: float | None
    """0: the class is as the base draws it; 1: each class picture is as like the subject as the
    adapter's own pictures of it."""
    diversity_ratio: float | None
    """DIV of the class, adapter over base."""
    copy_excess: float | None
    """0: as near to a photo as photos are to each other; 1: identical to one."""
    prompt_ratio: float | None
    """CLIP-T, adapter over base on the same prompts."""
    loss_ratio: float | None = None
    """Last evaluation loss over the first."""
    missing: str = ""
    """Why there are no scores."""
    class_noun: str = "member of its class"
    """What the subject is, for the sentences."""


@dataclass(frozen=True)
class Verdict:
    """One label, its reasons and the remedies, in words for whoever owns the photos."""

    label: Label
    headline: str
    reasons: tuple[str, ...]
    remedies: tuple[str, ...] = ()

    def to_json(self) -> dict[str, object]:
        """Plain values."""
        return {
            "label": self.label,
            "headline": self.headline,
            "reasons": list(self.reasons),
            "remedies": list(self.remedies),
        }


def judge(evidence: Evidence) -> Verdict:
    """The verdict; the gravest fault names it, all that was found is told."""
    if evidence.loss_ratio is not None and not evidence.loss_ratio < DIVERGED_RATIO:
        return Verdict(
            "diverged",
            "Training diverged; do not use this adapter.",
            (f"The evaluation loss ended at {evidence.loss_ratio:.1f} times its first value.",),
            ("Lower learning_rate to a third, or add warmup_steps.",),
        )
    if evidence.gain is None:
        reason = evidence.missing or "Too few pictures were generated."
        return Verdict(
            "not scored", "No scores were made.", (reason,), ("Run farm score with more pictures.",)
        )
    if evidence.gain < GAIN_NONE:
        return Verdict(
            "never learned",
            "The pictures do not show this subject.",
            (_gain_sentence(evidence),),
            (
                "Check that all photos show one and the same subject, large in the frame.",
                "Train for more steps, with a higher rank or learning_rate.",
            ),
        )
    faults = [fault for fault in (_copies(evidence), _forgets(evidence)) if fault]
    reasons = [_gain_sentence(evidence)]
    if faults:
        label, headline, _, remedies = faults[0]
        reasons += [reason for fault in faults for reason in fault[2]]
        return Verdict(label, headline, tuple(reasons), remedies)
    reasons += _good_signs(evidence)
    if evidence.gain < GAIN_WELL:
        return Verdict(
            "partly learned",
            "The subject can be recognised, but not reliably.",
            tuple(reasons),
            ("Train for more steps, or add photos from other sides.",),
        )
    return Verdict(
        "learned well", "The pictures show this subject, in every scene.", tuple(reasons)
    )


_Fault = tuple[Label, str, Sequence[str], tuple[str, ...]]


def _copies(evidence: Evidence) -> _Fault | None:
    if evidence.copy_excess is None or evidence.copy_excess < COPY_EXCESS:
        return None
    if evidence.prompt_ratio is not None and evidence.prompt_ratio >= PROMPT_LOST:
        return None  # near a photo because the subject is, and still where the prompt put it
    return (
        "copies its photos",
        "The pictures repeat the photos instead of following the prompt.",
        [
            f"Nearness to a photo: {_percent(evidence.copy_excess)}, where 0 % is as near as two "
            "photos are and 100 % is the photo itself.",
            *([_prompt_sentence(evidence.prompt_ratio)]
              if evidence.prompt_ratio is not None else []),
        ],
        (
            "Train for fewer steps, or switch early_stop and keep_best on.",
            "Add photos with other backgrounds and poses.",
        ),
    )  # fmt: skip


def _forgets(evidence: Evidence) -> _Fault | None:
    diversity = evidence.diversity_ratio
    is_captured = _leans(evidence) and (diversity is None or diversity < DIVERSITY_KEPT)
    is_narrow = diversity is not None and diversity < DIVERSITY_LOST
    if not (is_captured or is_narrow):
        return None
    reasons = []
    if is_captured:
        assert evidence.capture is not None
        reasons.append(
            f"Pull on the bare class: {_percent(evidence.capture)}, where 0 % is a class as it "
            "was and 100 % is a class that looks like this subject."
        )
    if diversity is not None and diversity < DIVERSITY_KEPT:
        reasons.append(_variety_sentence(diversity))
    return (
        "class forgotten",
        "Every picture of this class now resembles this one subject.",
        reasons,
        (
            "Train with prior preservation (prior_rows 1), or raise prior_weight.",
            "Train for fewer steps.",
        ),
    )


def _leans(evidence: Evidence) -> bool:
    return evidence.capture is not None and evidence.capture > CAPTURE_FORGOTTEN


def _gain_sentence(evidence: Evidence) -> str:
    assert evidence.gain is not None
    return (
        f"Similarity: {_percent(evidence.gain)}, where 0 % is any {evidence.class_noun} and 100 % "
        "is as alike as the photos are."
    )


def _prompt_sentence(ratio: float) -> str:
    return f"Prompts: {_percent(ratio)}, where 100 % is followed as well as by the untouched base."


def _variety_sentence(ratio: float) -> str:
    return f"Variety of the class: {_percent(ratio)}, where 100 % is as varied as it was."


def _percent(share: float) -> str:
    """On a scale that ends at 100 %: a mean above it is chance, and means nothing more."""
    return f"{100 * min(max(share, 0.0), 1.0):.0f} %"


def _good_signs(evidence: Evidence) -> list[str]:
    signs = []
    if evidence.prompt_ratio is not None:
        signs.append(_prompt_sentence(evidence.prompt_ratio))
    if evidence.diversity_ratio is not None:
        signs.append(_variety_sentence(evidence.diversity_ratio))
    if _leans(evidence):
        signs.append("The class leans towards this subject.")
    return signs
