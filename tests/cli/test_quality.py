"""The commands of ``farm report``, ``farm score`` and ``farm study``: options and errors."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from farm.cli import app
from farm.errors import UserError


@pytest.mark.parametrize(
    ("command", "word"),
    [
        (["report"], "--track"),
        (["score"], "--full"),
        (["study", "prior"], "--seeds"),
        (["study", "article"], "--steps"),
    ],
)
def test_every_command_explains_itself(command: list[str], word: str) -> None:
    result = CliRunner().invoke(app, [*command, "--help"], env={"COLUMNS": "120", "NO_COLOR": "1"})
    assert result.exit_code == 0
    assert word in result.output


def test_a_report_of_an_empty_store_names_the_remedy(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["report", "--store", str(tmp_path)])
    assert isinstance(result.exception, UserError)
    assert "farm run" in result.exception.remedy


def test_scoring_says_that_it_starts_and_names_scores_as_the_report_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def score_named(*_: object, **options: object) -> dict[str, object]:
        return {"tom": {"verdict": {"label": "learned"}, "scores": {}}}

    monkeypatch.setattr("farm.quality.rescore.score_named", score_named)
    result = CliRunner().invoke(app, ["score", "tom", "--store", str(tmp_path)])
    assert "scoring 1 adapter: " in result.stderr
    assert "Class preservation (PRES" in result.stdout
