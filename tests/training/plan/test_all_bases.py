"""``farm plan --all-bases``: which bases fit on which cards, from what was counted once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from farm.cli import app
from farm.training.plan.all_bases import CARDS_GIB, all_bases, refreshed
from farm.training.plan.counted_bases import count_build, counted_builds
from farm.training.plan.hardware import Hardware
from farm.training.plan.planner import make_plan
from farm.training.plan.shape import workload_of

PAGE = Path(__file__).parents[3] / "docs" / "guides" / "base.md"
GIB = 2**30


def test_the_guides_table_is_fresh() -> None:
    page = PAGE.read_text(encoding="utf-8")
    command = "python -m farm.training.plan.all_bases docs/guides/base.md"
    assert refreshed(page) == page, f"run: {command}"


def test_the_kept_counts_are_those_of_the_build() -> None:
    kept, counted = counted_builds()["klein-4b"], count_build("klein-4b")
    assert kept == counted, "run: python -m farm.training.plan.counted_bases"
    assert kept.memory.denoiser_parameters == 3_875_544_576


def test_the_table_says_what_the_planner_decides() -> None:
    builds = counted_builds()
    for row in all_bases():
        build = builds[row.name]
        facts = build.memory.quantized(row.quantization)
        work = workload_of([build.recipe] * 1000, build.resolution_px)
        for place, gib in enumerate(CARDS_GIB):
            card = Hardware("card", gib * GIB, 1, 8)
            if row.slots_checkpointed[place]:
                plan = make_plan(facts, work, card, fraction=1.0, checkpointing=True)
                assert plan.slots == row.slots_checkpointed[place]


def test_smaller_weights_never_hold_fewer_subjects() -> None:
    rows = {(row.name, row.quantization): row for row in all_bases()}
    assert {name for name, _ in rows} >= {"sdxl", "z-image", "klein-4b", "flux1-dev", "sd35-medium"}
    for name, _ in rows:
        whole, int8, nf4 = (rows[name, kind] for kind in (None, "int8", "nf4"))
        assert whole.base_gib > int8.base_gib > nf4.base_gib
        assert whole.slots_checkpointed <= int8.slots_checkpointed <= nf4.slots_checkpointed


@pytest.mark.parametrize("arguments", [["--all-bases", "--json"], []])
def test_the_command_needs_a_manifest_or_the_question(arguments: list[str]) -> None:
    result = CliRunner().invoke(app, ["plan", *arguments])
    if arguments:
        rows = json.loads(result.stdout)
        assert len(rows) == len(list(all_bases()))
        assert rows[0]["cards_gib"] == list(CARDS_GIB)
    else:
        assert result.exit_code != 0
        assert "no manifest is given" in str(result.exception)
