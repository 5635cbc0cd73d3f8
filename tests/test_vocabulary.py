"""The vocabulary check: what it reads, what it rejects, and that clean folders stay clean."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CHECK = ROOT / ".ci/vocabulary.py"


def check(*paths: Path) -> tuple[int, list[str]]:
    """The exit status and the findings."""
    done = subprocess.run(
        [sys.executable, str(CHECK), *map(str, paths)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return done.returncode, done.stdout.splitlines()


def test_the_clean_folders_are_clean() -> None:
    status, findings = check()
    assert not findings
    assert status == 0


@pytest.mark.parametrize(
    ("name", "text", "line"),
    [
        ("page.md", "# A page\n\nThe base makes pictures anew.\n", 3),
        ("module.py", '"""A module."""\n\nX = 1  # it goes on here\n', 3),
        ("module.py", '"""A module.\n\nNobody reads it.\n"""\n', 3),
        ("module.py", "raise ValueError('all must mend it')\n", 1),
        ("config.yaml", "a: 1\nb: 2   # whoever reads this\n", 2),
        ("Dockerfile", "# all the same, build it\nFROM scratch\n", 1),
    ],
)
def test_a_replaced_word_is_rejected_with_its_place(
    tmp_path: Path, name: str, text: str, line: int
) -> None:
    (tmp_path / name).write_text(text)
    status, (finding,) = check(tmp_path)
    assert status == 1
    assert f"{name}:{line}: " in finding
    assert "write" in finding


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("page.md", "Use `draw`.\n\n```python\ndraw(anew)\n```\n\n[a page](draw/anew.md)\n"),
        ("module.py", "def draw(anew: int) -> str:\n    return 'drawn'\n"),
        ("module.py", "X = 1  # matplotlib draws this line; vocabulary: allow\n"),
        ("config.yaml", "draw: anew\n"),
        ("picture.svg", "<text>drawn anew</text>\n"),
    ],
)
def test_code_and_allowed_lines_are_not_prose(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    assert check(tmp_path) == (0, [])


def test_a_path_that_does_not_exist_is_an_error(tmp_path: Path) -> None:
    assert check(tmp_path / "nothing")[0] == 1
