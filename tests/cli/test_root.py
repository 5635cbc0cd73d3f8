"""The command line starts quickly, explains errors, and exits with the documented codes."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest


def farm(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", "from farm.cli import main; main()", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_help_imports_neither_torch_nor_ray() -> None:
    code = (
        "import sys\n"
        "from farm.cli import app\n"
        "try:\n    app(['--help'])\nexcept SystemExit: pass\n"
        "print(sorted({'torch', 'ray', 'diffusers', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("[]")


@pytest.mark.parametrize("command", ["check", "plan", "run", "status", "serve", "report", "base"])
def test_help_lists_every_main_command(command: str) -> None:
    assert command in farm("--help").stdout


def test_an_unknown_base_exits_2_with_a_remedy_and_no_traceback() -> None:
    done = farm("base", "show", "no-such-base")
    assert done.returncode == 2
    assert "remedy:" in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_with_json_an_error_is_one_document_on_stdout() -> None:
    done = farm("base", "show", "no-such-base", "--json")
    error = json.loads(done.stdout)["error"]
    assert done.returncode == 2
    assert set(error) == {"message", "remedy"}
    assert "remedy:" in done.stderr


def test_base_show_prints_one_json_document() -> None:
    facts = json.loads(farm("base", "show", "tiny", "--json").stdout.splitlines()[-1])
    assert facts["prediction_type"] == "epsilon"
    assert len(facts["fingerprint"]) == 64
