"""The verdict: a quality card's numbers in plain words, with reasons and recommended actions.

Owns the thresholds and the sentences. Thresholds apply to ratios, never to raw cosines: how far a
score has moved from the untouched base towards the photos' similarity to each other. A raw cosine
of 0.8 has a different meaning for every scorer and subject.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

__all__ = [
    "ALIKE",
    "CLASS_PRESERVATION",
    "CLASS_VARIETY",
    "NO_SCORES",
    "NO_VERDICT",
    "PROMPT_FIDELITY",
    "SIMILARITY",
    "Evidence",
    "Label",
    "Verdict",
    "judge",
]

SIMILARITY = "Similarity"
PROMPT_FIDELITY = "Prompt fidelity"
CLASS_PRESERVATION = "Class preservation"
CLASS_VARIETY = "Class variety"
"""The scores' names, on cards and in the report."""

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
"""Gain below which the subject is not recognisable."""
GAIN_WELL = 0.5
"""Gain from which the images clearly show the subject."""
CAPTURE_FORGOTTEN = 0.6
"""Capture from which the class clearly resembles the subject."""
DIVERSITY_KEPT = 0.75
"""Diversity ratio from which a captured class is not lost: a dozen images can resemble a subject by
chance, especially if the adapter's own images are only slightly more similar to it."""
DIVERSITY_LOST = 0.5
"""Diversity ratio below which the class is lost: half as varied as the base's."""
COPY_EXCESS = 0.5
"""Copy excess from which the images copy the photos."""
PROMPT_LOST = 0.75
"""Prompt ratio below which prompts count as ignored."""
ALIKE = "The scorer cannot distinguish this subject's photos from others of its class."
"""Why a subject that has scores has no verdict."""
NO_SCORES = ("No scores were made.", "Run `farm score`, which generates more images.")
NO_VERDICT = (
    "There is no verdict on this subject, although it has scores.",
    "More images do not change this: judge the images yourself, add photos that show what is "
    "particular about the subject, or run `farm score --dino`, whose scorer distinguishes members "
    "of a class better.",
)
"""Headlines and remedies of adapters without a verdict."""
DIVERGED_RATIO = 1.5
"""Last evaluation loss over the first."""


@dataclass(frozen=True)
class Evidence:
    """The measurements behind a verdict; None if not measured."""

    gain: float | None
    """0: no more similar to the subject than the base's images; 1: as similar as its photos are to
    each other."""
    capture: float | None
    """0: the class is unchanged; 1: class images are as similar to the subject as the adapter's
    images of it."""
    diversity_ratio: float | None
    """DIV of the class, adapter relative to base."""
    copy_excess: float | None
    """0: as close to a photo as photos are to each other; 1: identical to one."""
    prompt_ratio: float | None
    """CLIP-T, adapter relative to base, on the same prompts."""
    loss_ratio: float | None = None
    """Last evaluation loss divided by the first."""
    missing: str = ""
    """The reason if there is no verdict."""
    class_noun: str = "member of its class"
    """The class noun, for the sentences."""


@dataclass(frozen=True)
class Verdict:
    """A label with its reasons and recommended actions, worded for the owner of the photos."""

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
    """The verdict: the most serious problem gives the label, and all problems are listed."""
    if evidence.loss_ratio is not None and not evidence.loss_ratio < DIVERGED_RATIO:
        return Verdict(
            "diverged",
            "Training diverged; do not use this adapter.",
            (f"The evaluation loss ended at {evidence.loss_ratio:.1f} times its first value.",),
            ("Lower learning_rate to a third, or add warmup_steps.",),
        )
    if evidence.gain is None:
        reason = evidence.missing or "Too few images were generated."
        headline, remedy = NO_VERDICT if reason == ALIKE else NO_SCORES
        return Verdict("not scored", headline, (reason,), (remedy,))
    if evidence.gain < GAIN_NONE:
        return Verdict(
            "never learned",
            "The images do not show this subject.",
            (_gain_sentence(evidence),),
            (
                "Check that all photos show the same subject, large in the frame.",
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
            ("Train for more steps, or add photos from other angles.",),
        )
    return Verdict("learned well", "The images show this subject in every scene.", tuple(reasons))


_Fault = tuple[Label, str, Sequence[str], tuple[str, ...]]


def _copies(evidence: Evidence) -> _Fault | None:
    if evidence.copy_excess is None or evidence.copy_excess < COPY_EXCESS:
        return None
    if evidence.prompt_ratio is not None and evidence.prompt_ratio >= PROMPT_LOST:
        return None  # close to a photo because of the subject, but the prompt is still followed
    return (
        "copies its photos",
        "The images copy the photos instead of following the prompt.",
        [
            f"Copying: {_percent(evidence.copy_excess)}, where 0 % is as close to a photo as two "
            "photos are to each other and 100 % is the photo itself.",
            *([_prompt_sentence(evidence.prompt_ratio)]
              if evidence.prompt_ratio is not None else []),
        ],
        (
            "Train for fewer steps, or enable early_stop and keep_best.",
            "Add photos with other backgrounds and poses.",
        ),
    )  # fmt: skip


def _forgets(evidence: Evidence) -> _Fault | None:
    diversity = evidence.diversity_ratio
    is_captured = _resembles(evidence) and (diversity is None or diversity < DIVERSITY_KEPT)
    is_narrow = diversity is not None and diversity < DIVERSITY_LOST
    if not (is_captured or is_narrow):
        return None
    reasons = []
    if is_captured:
        assert evidence.capture is not None
        reasons.append(
            f"Effect on the class: {_percent(evidence.capture)}, where 0 % is a class as it "
            "was and 100 % is a class that looks like this subject."
        )
    if diversity is not None and diversity < DIVERSITY_KEPT:
        reasons.append(_variety_sentence(diversity))
    return (
        "class forgotten",
        "Every image of this class now resembles this subject.",
        reasons,
        (
            "Train with prior preservation (prior_rows 1), or raise prior_weight.",
            "Train for fewer steps.",
        ),
    )


def _resembles(evidence: Evidence) -> bool:
    return evidence.capture is not None and evidence.capture > CAPTURE_FORGOTTEN


def _gain_sentence(evidence: Evidence) -> str:
    assert evidence.gain is not None
    return (
        f"{SIMILARITY}: {_percent(evidence.gain)}, where 0 % is any {evidence.class_noun} and "
        "100 % is as alike as the photos are."
    )


def _prompt_sentence(ratio: float) -> str:
    return f"{PROMPT_FIDELITY}: {_percent(ratio)}, where 100 % is as good as the untouched base."


def _variety_sentence(ratio: float) -> str:
    return (
        f"{CLASS_VARIETY}: {_percent(ratio)}, where 100 % is as varied as with the untouched base."
    )


def _percent(share: float) -> str:
    """A percentage limited to 0..100: means outside this range are due to chance."""
    return f"{100 * min(max(share, 0.0), 1.0):.0f} %"


def _good_signs(evidence: Evidence) -> list[str]:
    signs = []
    if evidence.prompt_ratio is not None:
        signs.append(_prompt_sentence(evidence.prompt_ratio))
    if evidence.diversity_ratio is not None:
        signs.append(_variety_sentence(evidence.diversity_ratio))
    if _resembles(evidence):
        signs.append("The class has started to resemble this subject.")
    return signs
