"""Which bases fit on which cards, with how many slots: the table of ``farm plan --all-bases``.

Owns the cards, the forms of the base that are compared, and the table in docs/guides/base.md.

    python -m farm.training.plan.all_bases docs/guides/base.md

rewrites the part of the page between its markers.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from farm.recipe import Quantization
from farm.training.plan.costs import FILL, fixed_bytes, slot_bytes
from farm.training.plan.counted_bases import CountedBuild, counted_builds
from farm.training.plan.gpu_lanes import MAX_SLOTS
from farm.training.plan.plan import GIB
from farm.training.plan.shape import workload_of

__all__ = ["CARDS_GIB", "BaseOnCards", "all_bases", "refreshed"]

CARDS_GIB = (16, 24, 40, 80)
BEGIN, END = "<!-- cards: begin -->", "<!-- cards: end -->"


@dataclass(frozen=True)
class BaseOnCards:
    """One base in one form, and the slots of a lane on a whole card of each size."""

    name: str
    """Of the build with its shape."""
    title: str
    """Of its family."""
    quantization: Quantization | None
    resolution_px: int
    base_gib: float
    """Resident weights."""
    slots: tuple[int, ...]
    """For each of ``CARDS_GIB``, without gradient checkpointing; 0 if none fits."""
    slots_checkpointed: tuple[int, ...]
    """The same with gradient checkpointing."""


def all_bases() -> Iterator[BaseOnCards]:
    """Every base whose shape is known, each with the recipe of its family."""
    for name, build in counted_builds().items():
        for kind in (None, *get_args(Quantization)):
            yield _on_cards(name, build, kind)


def _on_cards(name: str, build: CountedBuild, kind: Quantization | None) -> BaseOnCards:
    facts = build.memory.quantized(kind)
    shape = workload_of([build.recipe], build.resolution_px).shape

    def slots(checkpointing: bool) -> tuple[int, ...]:
        each = slot_bytes(facts, shape, checkpointing)
        rooms = [int(gib * GIB * FILL) - fixed_bytes(facts) for gib in CARDS_GIB]
        return tuple(max(0, min(MAX_SLOTS, room // each)) for room in rooms)

    return BaseOnCards(
        name=name,
        title=build.title,
        quantization=kind,
        resolution_px=shape.resolution_px,
        base_gib=facts.weight_bytes / GIB,
        slots=slots(False),
        slots_checkpointed=slots(True),
    )


def cells(row: BaseOnCards) -> list[str]:
    """A row of the table: slots without and with gradient checkpointing, or a dash."""
    found = [
        row.name,
        row.title,
        row.quantization or "bfloat16",
        f"{row.resolution_px} px",
        f"{row.base_gib:.1f} GiB",
    ]
    for plain, checked in zip(row.slots, row.slots_checkpointed, strict=True):
        found.append(f"{plain} / {checked}" if checked else "–")
    return found


def headers() -> list[str]:
    """The table's columns."""
    return ["shape", "family", "weights", "side", "base", *(f"{gib} GiB" for gib in CARDS_GIB)]


def refreshed(page: str) -> str:
    """A page with the part between its markers regenerated.

    Raises:
        ValueError: if the markers are missing.
    """
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError("the page has no markers")
    lines = [headers(), ["---"] * len(headers()), *map(cells, all_bases())]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"{before}{BEGIN}\n\n{table}\n\n{END}{after}"


if __name__ == "__main__":
    path = Path(sys.argv[1])
    path.write_text(refreshed(path.read_text(encoding="utf-8")), encoding="utf-8")
