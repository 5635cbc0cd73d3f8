"""The suite's results: a line and a page, written after every case.

Owns the files in OUT: ``results.jsonl``, ``page.md``, ``profile.txt`` and ``tests.txt``.
"""

from __future__ import annotations

import datetime
import json
import os
import platform
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

__all__ = ["Result", "Results"]

Result = dict[str, Any]


class Results:
    """Collects the cases' results in a folder."""

    def __init__(self, folder: Path, hardware: str, budget_s: float) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._facts = (
            f"{hardware}, torch {torch.__version__}, Python {platform.python_version()}, "
            f"{today()}, load {os.getloadavg()[0]:.1f}, budget {budget_s:g} s"
        )
        self._hardware = hardware
        self.all: list[Result] = []
        (folder / "results.jsonl").write_text("")

    def add(self, result: Result) -> None:
        """Record one result; the files are complete before this returns."""
        rounded = {name: _rounded(value) for name, value in result.items()}
        self.all.append(rounded)
        line = json.dumps(rounded)
        print(f"RESULT {line}", flush=True)
        with (self.folder / "results.jsonl").open("a") as file:
            file.write(line + "\n")
            file.flush()
            os.fsync(file.fileno())
        aside = self.folder / "page.part"
        aside.write_text(self.page())
        aside.replace(self.folder / "page.md")

    @property
    def num_good(self) -> int:
        """Cases that succeeded."""
        return sum("failed" not in one and "skipped" not in one for one in self.all)

    def best(self, key: Callable[[Result], float], **wanted: Any) -> Result | None:
        """The successful result with the smallest key among those with these values."""
        matching = [
            one
            for one in self.all
            if "failed" not in one
            and "skipped" not in one
            and all(one.get(name) == value for name, value in wanted.items())
        ]
        return min(matching, key=key) if matching else None

    def page(self) -> str:
        """All results as a page with one table for each kind of case."""
        kinds = dict.fromkeys(one["kind"] for one in self.all)
        lines = [f"# GPU suite on {self._hardware}, {today()}", "", self._facts + ".", ""]
        for kind in kinds:
            lines += [f"## {kind}", "", *_table([one for one in self.all if one["kind"] == kind])]
        return "\n".join(lines) + "\n"


def _table(results: Sequence[Result]) -> list[str]:
    names = [
        name for name in dict.fromkeys(key for one in results for key in one) if name != "kind"
    ]
    rows = [
        "| " + " | ".join("" if one.get(name) is None else str(one[name]) for name in names) + " |"
        for one in results
    ]
    return ["| " + " | ".join(names) + " |", "|" + "---|" * len(names), *rows, ""]


def _rounded(value: Any) -> Any:
    return float(f"{value:.4g}") if isinstance(value, float) else value


def today() -> str:
    """The date."""
    return datetime.datetime.now(datetime.UTC).date().isoformat()
