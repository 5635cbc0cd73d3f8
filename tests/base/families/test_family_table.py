"""The table of families in the guide is what the tests prove."""

from __future__ import annotations

from support.docs.family_table import PAGE, STEPS, proofs, refreshed

from farm.base.families.registry import FAMILIES


def test_the_guides_table_is_fresh() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert refreshed(page) == page, "run: PYTHONPATH=tests python -m support.docs.family_table"


def test_every_family_that_loads_is_proved() -> None:
    assert len(proofs()) >= len(FAMILIES)
    assert proofs()["Stable Diffusion XL"] == set(STEPS)
