"""The record of a campaign: a file with the outcome of each round, from which a campaign resumes
that was ended, and of which its page is made."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from support.chaos.checks import Findings
from support.chaos.ledger_view import Fault
from support.chaos.round import Outcome

KEPT = ("kind", "at", "is_measured", "recovered_s", "steps_lost")


def read_record(path: Path | None) -> list[Outcome]:
    """The outcomes of earlier rounds."""
    if path is None or not path.exists():
        return []
    return [_outcome(one) for one in json.loads(path.read_text())]


def write_record(path: Path | None, outcomes: Sequence[Outcome]) -> None:
    """Write them all."""
    if path is None:
        return
    records = []
    for one in outcomes:
        faults = [{name: getattr(fault, name) for name in KEPT} for fault in one.faults]
        records.append({**vars(one), "faults": faults, "findings": asdict(one.findings)})
    aside = path.with_suffix(".new")
    aside.write_text(json.dumps(records, indent=1))
    aside.replace(path)


def _outcome(record: dict[str, object]) -> Outcome:
    faults = [Fault(**one) for one in record["faults"]]  # type: ignore[attr-defined]
    findings = Findings(**record["findings"])  # type: ignore[arg-type]
    return Outcome(**{**record, "faults": faults, "findings": findings})  # type: ignore[arg-type]
