"""Other model families, if their random-weight builds are part of the package.

SDXL at its own 1024 px; the family's own formulas give no share of peak until it is counted.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import get_args

from farm.base.names import BuiltName
from gpu.results import Result, Results
from gpu.setting import Setting
from gpu.suite import Case
from gpu.training import SlotCase, slot_results

__all__ = ["cases"]


def cases(setting: Setting) -> list[Case]:
    if setting.large_build not in get_args(BuiltName):
        return []
    return [Case(setting.large_build, partial(_large, setting.large_build), 60)]


def _large(build: str, setting: Setting, results: Results) -> Iterator[Result]:
    base = setting.base(build)
    try:
        yield from slot_results([SlotCase(n) for n in setting.large_slots], setting, results, base)
    finally:
        del base
        setting.drop(build)
