"""One scorer's scores for one adapter, and the verdict's evidence, from embeddings.

Owns the scores' names on the card and the ratios relative to the untouched base and the photos.
Generates and embeds nothing.

Legend: P photos, D width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from farm.quality import scores
from farm.quality.intervals import MIN_PICTURES, ScoreEstimate
from farm.quality.verdict import ALIKE, Evidence

__all__ = ["EmbeddedImages", "evidence_of", "scores_of"]

MIN_SPAN = 0.01
"""Minimum difference of two cosines that can serve as the ends of a scale."""


@dataclass(frozen=True)
class EmbeddedImages:
    """Images of one adapter (or of the untouched base) for one class, embedded by each scorer."""

    prompted: Mapping[str, Tensor]
    class_pictures: Mapping[str, Tensor]
    drift: Mapping[str, Tensor]


def scores_of(
    scorer: str, adapted: EmbeddedImages, base: EmbeddedImages | None, photos_PD: Tensor, seed: int
) -> dict[str, ScoreEstimate | None]:
    """One scorer's scores by their names on the card; drift requires the base's images."""
    prompted_GD, class_GD = adapted.prompted[scorer], adapted.class_pictures[scorer]
    names = _names(scorer)
    found = {
        names["fidelity"]: scores.fidelity(prompted_GD, photos_PD, seed),
        names["pres"]: scores.preservation(class_GD, photos_PD, seed),
        names["div"]: scores.diversity(class_GD, seed),
        names["copying"]: scores.copying(prompted_GD, photos_PD, seed),
    }
    if base is not None:
        found[names["drift"]] = scores.drift(base.drift[scorer], adapted.drift[scorer], seed)
    return found


def _names(scorer: str) -> dict[str, str]:
    """The scores' names: CLIP's have no suffix, others end with their scorer's name."""
    plain = ("fidelity", "pres", "div", "copying", "drift")
    if scorer == "clip":
        return {name: "clip_i" if name == "fidelity" else name for name in plain}
    return {name: scorer if name == "fidelity" else f"{name}_{scorer}" for name in plain}


def evidence_of(
    scorer: str,
    values: Mapping[str, ScoreEstimate | None],
    base_values: Mapping[str, ScoreEstimate | None],
    likeness: scores.PhotoLikeness | None,
    curve: Sequence[tuple[int, float]],
) -> Evidence:
    """Ratios relative to the base and the photos, if all their parts were measured."""
    names = _names(scorer)
    own = {key: _mean(values.get(name)) for key, name in names.items()}
    base = {key: _mean(base_values.get(name)) for key, name in names.items()}
    fidelity, before = own["fidelity"], base["fidelity"]
    # a single photo cannot be compared with others; the scale then ends at the photo itself
    gain = _share(fidelity, before, likeness.mean if likeness else 1.0)
    missing = f"Fewer than {MIN_PICTURES} images were generated." if fidelity is None else ""
    if gain is None and not missing:
        missing = ALIKE
    copy_excess = _share(own["copying"], likeness.nearest if likeness else None, 1.0)
    return Evidence(
        gain=gain,
        capture=_share(own["pres"], base["pres"], fidelity),
        diversity_ratio=_ratio(own["div"], base["div"]),
        copy_excess=copy_excess,
        prompt_ratio=_ratio(_mean(values.get("clip_t")), _mean(base_values.get("clip_t"))),
        loss_ratio=_ratio(curve[-1][1], curve[0][1]) if len(curve) > 1 else None,
        missing=missing,
    )


def _mean(value: ScoreEstimate | None) -> float | None:
    return value.mean if value is not None else None


def _share(value: float | None, start: float | None, end: float | None) -> float | None:
    """The position of ``value`` on a scale from ``start`` (0) to ``end`` (1)."""
    if value is None or start is None or end is None or end - start < MIN_SPAN:
        return None
    return (value - start) / (end - start)


def _ratio(value: float | None, reference: float | None) -> float | None:
    if value is None or reference is None or abs(reference) < 1e-6:
        return None
    return value / reference
