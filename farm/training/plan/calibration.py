"""Measured speed and memory of a card, in place of the plan's own constants.

Owns the values, their file and what follows from two measured points. ``farm.training.calibrate``
measures. A file per card is looked up in the user's cache first, then among those of the package.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path

from farm.base.memory import MemoryFacts
from farm.errors import UserError
from farm.file_facts import cache_folder
from farm.local_files import write_file
from farm.training.plan.costs import CONTEXT_BYTES, fixed_bytes, row_flops, slot_bytes
from farm.training.plan.shape import LaneShape

__all__ = [
    "Calibration",
    "Point",
    "calibration_of",
    "calibrations_folder",
    "find_calibration",
    "save_calibration",
]

COMMITTED = Path(__file__).parent / "calibrations"
"""Calibrations that were measured for the project."""
VERSION = 1


@dataclass(frozen=True)
class Point:
    """A measured trainer of some slots."""

    slots: int
    step_s: float
    peak_bytes: int
    """Largest allocation of the process, the base included; 0 where it is not known."""


@dataclass(frozen=True)
class Calibration:
    """A card's speed and memory; a pass takes ``start_s + FLOP / flops_per_s``."""

    hardware: str
    flops_per_s: float
    """Training FLOP/s in the limit of large passes."""
    start_s: float
    """Seconds of a pass without work: launches, and the optimizer."""
    slot_bytes_ratio: float
    """Measured over expected memory of a slot."""
    fixed_bytes_more: int
    """Measured minus expected memory of a lane without slots."""
    warm_up_s: float
    """Until the first step of a new lane is done: loading kernels, compiling."""
    how: str
    """How passes ran."""
    base: str
    torch: str
    date: str

    def rows_per_s(self, flops: float, rows: int) -> float:
        """Training rows a second of one busy card with this many rows in a pass."""
        return rows / (self.start_s + flops * rows / self.flops_per_s)


def calibration_of(
    few: Point, many: Point, facts: MemoryFacts, shape: LaneShape, **about: str | float
) -> Calibration:
    """What two points imply.

    Args:
        about: ``hardware``, ``warm_up_s``, ``how``, ``base``, ``torch`` and ``date``.

    Raises:
        UserError: if the points are too noisy: more slots took less time.
    """
    row = row_flops(facts, shape, False) * shape.rows
    per_slot_s = (many.step_s - few.step_s) / (many.slots - few.slots)
    if per_slot_s <= 0:
        raise UserError(
            f"{many.slots} slots took less time than {few.slots}: other programs use the device",
            "calibrate again when it is idle",
        )
    ratio, more = 1.0, 0
    if few.peak_bytes and many.peak_bytes > few.peak_bytes:
        each = (many.peak_bytes - few.peak_bytes) / (many.slots - few.slots)
        ratio = each / slot_bytes(facts, shape, False)
        expected = fixed_bytes(facts) - CONTEXT_BYTES  # the allocator does not see the context
        more = round(few.peak_bytes - few.slots * each - expected)
    return Calibration(
        flops_per_s=row / per_slot_s,
        start_s=max(0.0, few.step_s - few.slots * per_slot_s),
        slot_bytes_ratio=ratio,
        fixed_bytes_more=more,
        **about,  # type: ignore[arg-type]
    )


def save_calibration(calibration: Calibration) -> Path:
    """Write the file that later plans use; returns its path."""
    path = calibrations_folder() / _file_name(calibration.hardware)
    text = json.dumps({"version": VERSION, **asdict(calibration)}, indent=2)
    write_file(path, text.encode() + b"\n")
    return path


def calibrations_folder() -> Path:
    """The folder of this user's calibrations."""
    return cache_folder() / "calibrations"


def find_calibration(hardware: str | None) -> Calibration | None:
    """The calibration of a card, by its name or by words of it; None if it was never measured.

    Raises:
        UserError: if the file is damaged.
    """
    if hardware is None:
        return None
    wanted = Path(_file_name(hardware)).stem
    for folder in (calibrations_folder(), COMMITTED):
        for path in sorted(folder.glob("*.json")):
            if wanted == path.stem or f"-{wanted}-" in f"-{path.stem}-":
                return _read(path)
    return None


def _read(path: Path) -> Calibration | None:
    try:
        saved = json.loads(path.read_text())
        if saved.pop("version") != VERSION:
            return None
        return Calibration(**saved)
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(
            f"{path} is not a calibration: {error}", "delete it, or run farm plan --calibrate again"
        ) from error


def _file_name(hardware: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", hardware.lower()).strip("-") + ".json"
