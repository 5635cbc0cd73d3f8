"""The quality card as labelled bars with the underlying numbers.

Owns wording and scales. A bar runs from 0 (worst) to 1 (best possible).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from farm.quality.verdict import (
    CLASS_PRESERVATION,
    CLASS_VARIETY,
    PROMPT_FIDELITY,
    SIMILARITY,
)

__all__ = [
    "SCORE_TITLES",
    "Bar",
    "card_bars",
    "class_preservation",
    "evidence",
    "score_rows",
    "share",
]

SCORE_TITLES = {
    "clip_i": f"{SIMILARITY} (CLIP-I)",
    "dino": f"{SIMILARITY} (DINO)",
    "clip_t": f"{PROMPT_FIDELITY} (CLIP-T)",
    "pres": f"{CLASS_PRESERVATION} (PRES, lower is better)",
    "pres_dino": f"{CLASS_PRESERVATION} (PRES, DINO, lower is better)",
    "div": f"{CLASS_VARIETY} (DIV)",
    "div_dino": f"{CLASS_VARIETY} (DIV, DINO)",
    "copying": "Nearest photo (copying)",
    "copying_dino": "Nearest photo (copying, DINO)",
    "drift": "Drift on unrelated prompts (lower is better)",
    "drift_dino": "Drift on unrelated prompts (DINO, lower is better)",
}


@dataclass(frozen=True)
class Bar:
    """One score of the card in plain words, as a fraction of the best possible value."""

    title: str
    help: str
    value: float
    """0 to 1, where 1 is best."""
    low: float
    high: float
    shown: str
    """The displayed number, such as ``82 %``."""


def score_rows(card: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    """Rows (score, adapter, base, unit count) as text, for the table of raw numbers."""
    base = card.get("base_scores", {})
    return [
        (
            SCORE_TITLES.get(name, name),
            _interval(value),
            _interval(base.get(name)),
            _count(value),
        )
        for name, value in card.get("scores", {}).items()
    ]


def card_bars(card: Mapping[str, Any]) -> list[Bar]:
    """The scores that matter to the owner of the photos, as fractions of the best value."""
    bars = []
    gain = evidence(card, "gain")
    if gain is not None:
        low, high = _gain_interval(card, gain)
        bars.append(
            Bar(
                SIMILARITY,
                "0 %: any member of its class. 100 %: as similar as the photos are to each other.",
                _clip(gain),
                _clip(low),
                _clip(high),
                _percent(gain),
            )
        )
    followed = evidence(card, "prompt_ratio")
    if followed is not None:
        bars.append(
            _plain_bar(PROMPT_FIDELITY, "100 %: as well as the untouched base does.", followed)
        )
    preserved = class_preservation(card)
    if preserved is not None:
        text = "100 %: the class looks as before. 0 %: every member looks like this subject."
        bars.append(_plain_bar(CLASS_PRESERVATION, text, preserved))
    variety = evidence(card, "diversity_ratio")
    if variety is not None:
        text = "100 %: as varied as the class is with the untouched base."
        bars.append(_plain_bar(CLASS_VARIETY, text, variety))
    copy_excess = evidence(card, "copy_excess")
    if copy_excess is not None:
        text = "0 %: copies of the photos. 100 %: as different from a photo as two photos are."
        bars.append(_plain_bar("Generates new images", text, 1 - copy_excess))
    return bars


def _plain_bar(title: str, text: str, value: float) -> Bar:
    share = _clip(value)
    return Bar(title, text, share, share, share, _percent(value))


def _gain_interval(card: Mapping[str, Any], gain: float) -> tuple[float, float]:
    """The fidelity's interval, converted to the gain's scale."""
    name = "dino" if "dino" in card.get("scores", {}) else "clip_i"
    own = card.get("scores", {}).get(name, {})
    base = card.get("base_scores", {}).get(name, {})
    span = own.get("mean", 0) - base.get("mean", 0)
    if "low" not in own or abs(span) < 1e-6:
        return gain, gain
    factor = gain / span
    return (
        gain + (own["low"] - own["mean"]) * factor,
        gain + (own["high"] - own["mean"]) * factor,
    )


def evidence(card: Mapping[str, Any], name: str) -> float | None:
    """One ratio of the card; None if it was not measured."""
    value = card.get("evidence", {}).get(name)
    return float(value) if isinstance(value, int | float) else None


def class_preservation(card: Mapping[str, Any]) -> float | None:
    """0 to 1: how well the class is preserved; it is lost if it resembles the subject and is also
    less varied."""
    capture = evidence(card, "capture")
    if capture is None:
        return None
    return _clip(max(1 - capture, evidence(card, "diversity_ratio") or 0.0))


def share(card: Mapping[str, Any], name: str) -> float | None:
    """The value limited to 0..1: means outside this range are due to chance."""
    value = evidence(card, name)
    return None if value is None else _clip(value)


def _clip(value: float) -> float:
    return min(1.0, max(0.0, value))


def _percent(value: float) -> str:
    return f"{100 * _clip(value):.0f} %"


def _interval(value: Mapping[str, Any] | None) -> str:
    if not value:
        return "–"
    if "mean" not in value:
        return str(value.get("missing", "–"))
    return f"{value['mean']:.3f} ({value['low']:.3f} to {value['high']:.3f})"


def _count(value: Mapping[str, Any]) -> str:
    if "num" not in value:
        return ""
    unit = "subjects" if value.get("unit") == "subjects" else "images"
    return f"{value['num']} {unit}"
