"""The page of a campaign."""

from __future__ import annotations

import argparse
import datetime
import os
import re
import statistics
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

from support.chaos.checks import TOLERANCE, WEIGHT_TOLERANCE
from support.chaos.faults import KINDS
from support.chaos.ledger_view import Fault
from support.chaos.round import Outcome

NUMBER = re.compile(r"\d[\d.:]*")


def write_page(
    folder: Path, outcomes: Sequence[Outcome], asked: argparse.Namespace, day: datetime.date
) -> Path:
    """Write it; its name has what was reached."""
    subjects = sum(one.subjects for one in outcomes if one.is_checked)
    faults = [fault for one in outcomes for fault in one.faults]
    num_cpus = os.cpu_count() or 1
    path = folder / f"chaos-{subjects}x{len(faults)}-{num_cpus}cpu-{day}.md"
    lines = [
        f"# {len(faults)} faults against {subjects} subjects",
        "",
        f"{day}, {num_cpus} CPU cores shared with other work (load average "
        f"{os.getloadavg()[2]:.0f}), {len(outcomes)} round(s) in "
        f"{sum(one.seconds for one in outcomes) / 60:.0f} minutes; "
        f"`python benchmarks/cluster/chaos.py --subjects {asked.subjects} --faults {asked.faults} "
        f"--per-round {asked.per_round} --seed {outcomes[0].seed} --steps {asked.steps} "
        f"--pause {asked.pause:g} --pace {asked.pace:g}`. Each round: a Ray cluster with a head "
        f"without CPUs and {asked.nodes + asked.spare_nodes} nodes on one machine, an S3 server as "
        f"the store, {asked.nodes} lane(s) of three slots on nodes of their own, jobs of "
        f"{asked.steps} steps with a checkpoint every 10. A lane waits up to {4 * asked.pace:g} s "
        "after each step, so that jobs last long enough to be hit without costing CPU time.",
        "",
        *_totals(outcomes),
        "",
        *_by_kind(faults),
        "",
        *_ends(outcomes),
    ]
    path.write_text("\n".join(lines) + "\n")
    return path


def _totals(outcomes: Sequence[Outcome]) -> list[str]:
    checked = [one for one in outcomes if one.is_checked]
    found = [one.findings for one in checked]
    rows = [
        ("adapters lost", sum(len(one.lost) for one in found)),
        ("adapters doubled", sum(len(one.doubled) for one in found)),
        ("adapters wrong", sum(len(one.wrong) for one in found)),
        ("checkpoints left of committed jobs", sum(len(one.checkpoints) for one in found)),
        ("locks left", sum(len(one.locks) for one in found)),
        ("processes left", sum(len(one.processes) for one in found)),
        ("temporary folders left", sum(len(one.folders) for one in found)),
        ("ledgers that replay to another state", sum(bool(one.ledger) for one in found)),
    ]
    worst = max((one.worst_difference for one in found), default=0.0)
    weight = max((one.worst_weight for one in found), default=0.0)
    details = [f"- round {i}: {one.faulty}" for i, one in enumerate(found) if one.faulty]
    details += [
        f"- round {i} was ended before its checks: {one.subjects} subjects, "
        f"{len(one.faults)} faults. Its subjects are not counted."
        for i, one in enumerate(outcomes)
        if not one.is_checked
    ]
    per_round = ", ".join(
        f"{one.subjects} subjects and {len(one.faults)} faults in {one.seconds / 60:.0f} minutes"
        for one in outcomes
    )
    return [
        "| | found | wanted |",
        "|---|---|---|",
        *(f"| {name} | {count} | 0 |" for name, count in rows),
        "",
        f"Largest difference of an adapter from the undisturbed run, as a share of its norm: "
        f"{worst:.1e} ({TOLERANCE:g} is wrong); of a single weight, as a share of its tensor's "
        f"largest: {weight:.1e} ({WEIGHT_TOLERANCE:g} is wrong; Adam takes a step of rounding's "
        "sign where a weight's gradient is as small as rounding). The undisturbed run trains the "
        "same jobs in one process with eight slots. The driver was started "
        f"{sum(one.starts for one in outcomes)} times.",
        *(["", *details] if details else []),
        "",
        f"The rounds: {per_round}.",
    ]


def _by_kind(faults: Sequence[Fault]) -> list[str]:
    kinds = defaultdict(list)
    for fault in faults:
        kinds[fault.kind].append(fault)
    lines = [
        "## Faults by kind",
        "",
        "Time to recover: from the fault, or from the end of one that lasts, until the ledger "
        "shows that all affected jobs train again (any job, for faults of the whole run); read "
        "every 1.5 s, and progress is recorded at least every 10 s. Further faults that come "
        "meanwhile are part of it. Steps lost: trained before and again after, as far as the "
        "ledger recorded them.",
        "",
        "| fault | number | measured | median s | worst s | steps lost |",
        "|---|---|---|---|---|---|",
    ]
    for kind, group in sorted(kinds.items()):
        times = [fault.recovered_s for fault in group if fault.recovered_s is not None]
        middle = f"{statistics.median(times):.0f}" if times else ""
        worst = f"{max(times):.0f}" if times else ""
        lost = sum(fault.steps_lost for fault in group)
        lines.append(f"| {kind} | {len(group)} | {len(times)} | {middle} | {worst} | {lost} |")
    if missing := sorted(KINDS.keys() - kinds.keys()):
        lines += ["", f"Not injected: {', '.join(missing)}."]
    return lines


def _ends(outcomes: Sequence[Outcome]) -> list[str]:
    ends = Counter(_without_numbers(end) for one in outcomes for end in one.ends)
    if not ends:
        return ["No driver ended early, except those that were killed."]
    return [
        "## Drivers that ended early",
        "",
        "The same command was run again.",
        "",
        *(f"- {count} × {end}" for end, count in ends.most_common()),
    ]


def _without_numbers(end: str) -> str:
    """How a driver ended, without what differs between equal ends."""
    code, _, last = end.partition(": ")
    if last.startswith("{"):  # the summary of a run that came to its end
        return f"{code}: jobs of the run have no adapter"
    return f"{code}: {NUMBER.sub('n', last)}"
