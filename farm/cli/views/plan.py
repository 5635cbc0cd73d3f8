"""How a plan looks in a terminal: the work, its hardware, its duration and its cost."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from farm.text.durations import duration

if TYPE_CHECKING:
    from rich.table import Table

    from farm.training.plan.plan import Plan
    from farm.training.run.request import PreparedRun

__all__ = ["plan_facts", "plan_table", "show_all_bases"]

GIB = 2**30


def plan_facts(prepared: PreparedRun) -> dict[str, Any]:
    """A prepared run as plain values, for ``--json``."""
    from dataclasses import asdict

    plan = prepared.plan
    return {
        "run": prepared.run_id,
        "store": prepared.store.url,
        "base": prepared.base.name,
        "base_fingerprint": prepared.base.fingerprint,
        "jobs": len(prepared.jobs),
        "committed": len(prepared.committed),
        "to_train": prepared.num_to_train,
        "rejected": prepared.num_rejected,
        "prior_sets_to_draw": len(prepared.priors),
        "prior_images_to_draw": sum(spec.num_images for spec in prepared.priors),
        "plan": asdict(plan) | {"lanes": plan.num_lanes} if plan is not None else None,
    }


def plan_table(prepared: PreparedRun) -> Table:
    """The plan as a table of two columns."""
    from rich.table import Table
    from rich.text import Text

    table = Table(title=f"run {prepared.run_id}", title_justify="left", show_header=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, value in _plan_lines(prepared):
        table.add_row(name, Text(value))
    return table


def show_all_bases(*, json: bool) -> None:
    """Which bases fit on which cards."""
    from dataclasses import asdict

    from farm.cli.views.output import print_json, print_table, say
    from farm.training.plan.all_bases import CARDS_GIB, all_bases, cells, headers

    rows = list(all_bases())
    if json:
        print_json([{**asdict(row), "cards_gib": CARDS_GIB} for row in rows])
        return
    print_table(headers(), map(cells, rows))
    say("slots of one lane on the whole card, without / with gradient checkpointing")


def _plan_lines(prepared: PreparedRun) -> list[tuple[str, str]]:
    hardware = prepared.request.hardware
    address = prepared.request.address if prepared.request.executor == "ray" else None
    cluster = address and ((hardware.cluster if hardware else "") or address)
    facts = [
        ("store", prepared.store.url),
        *([("cluster", cluster)] if cluster else []),
        ("base", f"{prepared.base.name} ({prepared.base.fingerprint[:12]})"),
        (
            "subjects",
            f"{prepared.num_to_train:,} to train, {len(prepared.committed):,} committed already"
            + (f" ({prepared.num_revoked:,} of them revoked)" if prepared.num_revoked else "")
            + (f", {prepared.num_rejected:,} left out for faults" if prepared.num_rejected else ""),
        ),
    ]
    if prepared.priors:
        images, num = sum(spec.num_images for spec in prepared.priors), len(prepared.priors)
        classes = "1 class" if num == 1 else f"{num} classes"
        facts.append(("class images", f"{images:,} to generate, for {classes}"))
    if prepared.plan is not None:
        facts += _hardware_lines(prepared.plan, prepared.num_to_train)
    return facts


def _hardware_lines(plan: Plan, num_subjects: int) -> list[tuple[str, str]]:
    place = f"{plan.gpu_fraction:g} GPU" if plan.device == "cuda" else _threads(plan.threads)
    lanes = min(plan.num_lanes, num_subjects)
    each = " each" if lanes > 1 else ""
    nodes = "" if plan.num_nodes == 1 else f" on {plan.num_nodes} nodes"
    if lanes < plan.num_lanes:  # every node has some, and no more have work
        nodes = f" of {plan.num_lanes}{nodes}"
    at_once = _subjects(min(plan.slots * plan.num_lanes, num_subjects))
    lines = [
        ("lanes", f"{lanes}{nodes}, {place}{each}"),
        ("slots", f"{plan.slots} per lane: {at_once} at a time"),
    ]
    if plan.share_bytes:
        share = f"{plan.lane_bytes / GIB:.1f} of {plan.share_bytes / GIB:.1f} GiB per lane"
        lines.append(("GPU memory", share))
    else:
        lines.append(("memory", f"about {max(plan.lane_bytes / GIB, 0.1):.1f} GiB per lane"))
    lines += [("expected", _expected(plan)), ("why", plan.reason)]
    if plan.device == "cuda":
        cost = f"{plan.gpu_hours:.2f} GPU hours, about ${plan.dollars:.2f}"
        lines.insert(-1, ("cost", cost))
    return lines + [("note", note) for note in plan.notes]


def _subjects(number: int) -> str:
    return f"{number:,} subject{'' if number == 1 else 's'}"


def _threads(number: int) -> str:
    return f"{number} CPU thread{'' if number == 1 else 's'}"


def _expected(plan: Plan) -> str:
    """The total time and its parts; class images often take most of it."""
    parts = plan.estimate
    named = (
        ("start", parts.start_s),
        ("class images", parts.class_images_s),
        ("training", parts.photos_s + parts.training_s),
        ("samples and scores", parts.pictures_s),
        ("saving", parts.end_s),
    )
    shown = ", ".join(f"{name} {duration(seconds)}" for name, seconds in named if seconds >= 0.5)
    return f"{duration(parts.total_s)} ({shown})" if shown else duration(parts.total_s)
