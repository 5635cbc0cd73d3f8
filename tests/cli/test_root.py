"""The command line starts quickly, explains errors, and exits with the documented codes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from support.cli.commands import farm_here

from farm.base.tokens import hub_unreachable
from farm.cli import main
from farm.cli.views.output import ask


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
    assert command in farm_here("--help").stdout


def test_an_unknown_base_exits_2_with_a_remedy_and_no_traceback() -> None:
    done = farm_here("base", "show", "no-such-base")
    assert done.returncode == 2
    assert "remedy:" in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_with_json_an_error_is_one_document_on_stdout() -> None:
    done = farm_here("base", "show", "no-such-base", "--json")
    error = json.loads(done.stdout)["error"]
    assert done.returncode == 2
    assert set(error) == {"code", "message", "remedy"}
    assert error["code"] == 2
    assert "remedy:" in done.stderr


def test_an_output_on_a_full_disk_is_an_error_without_a_traceback(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "farm", "keys", "list", "--store", tmp_path, "--json"]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 2
    assert "a disk is full" in done.stderr
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr


def test_a_mistyped_command_suggests_only_visible_ones() -> None:
    shown = " ".join(farm_here("serv").stderr.split())
    assert "Did you mean 'serve'?" in shown
    assert "supervise" not in shown + farm_here("superv").stderr
    assert farm_here("supervise", "--help").returncode == 0


@pytest.mark.parametrize(
    ("arguments", "message", "remedy"),
    [
        (("run", "--json"), "Missing argument", "see `farm run --help`"),
        (("plan", "m", "--slots", "x", "--json"), "--slots", "see `farm plan --help`"),
        (("status", "--nope", "--json"), "No such option: --nope", "see `farm status --help`"),
        (("nope", "--json"), "No such command 'nope'.", "see `farm --help`"),
    ],
)
def test_with_json_a_usage_error_is_one_document_on_stdout(
    arguments: tuple[str, ...], message: str, remedy: str
) -> None:
    done = farm_here(*arguments)
    error = json.loads(done.stdout)["error"]
    assert (done.returncode, error["code"], error["remedy"]) == (2, 2, remedy)
    assert message in error["message"]
    assert "Usage:" in done.stderr


@pytest.mark.parametrize("stop", [KeyboardInterrupt, typer.Abort])
def test_with_json_ctrl_c_is_one_document_on_stdout(
    stop: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(store: object) -> None:
        raise stop

    monkeypatch.setattr("farm.storage.Store.__init__", lambda *_: interrupted(None))
    done = farm_here("status", "--store", "s", "--json")
    error = {"code": 130, "message": "interrupted", "remedy": "run the same command again"}
    assert (done.returncode, json.loads(done.stdout)) == (130, {"error": error})
    assert "Traceback" not in done.stderr


def test_ctrl_c_while_the_command_line_is_imported_prints_no_traceback() -> None:
    code = (
        "import signal, sys\n"
        # ignored in what a shell starts in the background
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "class Press:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name == 'farm.cli.options': signal.raise_signal(signal.SIGINT)\n"
        "sys.meta_path.insert(0, Press())\n"
        "sys.argv = ['farm', 'status', '--json']\n"
        "from farm.__main__ import main\n"
        "main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (130, "farm: interrupted\n")
    assert json.loads(done.stdout)["error"]["code"] == 130


def test_with_json_an_unexpected_error_is_a_document_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr("farm.storage.Store.__init__", broken)
    monkeypatch.setattr("faulthandler.enable", lambda: None)
    monkeypatch.setattr("farm.cli.hush_libraries", lambda: None)
    monkeypatch.setattr("farm.cli.keep_imports", lambda: None)
    monkeypatch.setattr(sys, "argv", ["farm", "status", "--store", "s", "--json"])
    with pytest.raises(ZeroDivisionError):
        main()
    error = json.loads(capsys.readouterr().out)["error"]
    assert (error["code"], error["message"]) == (1, "ZeroDivisionError('a bug')")
    assert "report it" in error["remedy"]


def test_base_show_prints_one_json_document() -> None:
    facts = json.loads(farm_here("base", "show", "tiny", "--json").stdout.splitlines()[-1])
    assert facts["prediction_type"] == "epsilon"
    assert len(facts["fingerprint"]) == 64


def test_ctrl_c_at_a_question_is_reported_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def pressed(*_: object, **options: object) -> bool:
        raise typer.Abort

    monkeypatch.setattr(typer, "confirm", pressed)
    monkeypatch.setattr("farm.storage.Store.__init__", lambda *_: ask("Start?", default=True))
    done = farm_here("status", "--store", "s")
    assert (done.returncode, done.stderr.split()) == (130, ["farm:", "interrupted"])


def test_a_wrong_value_of_set_is_told_once() -> None:
    done = farm_here("plan", "m", "--set", "steps=abc")
    assert done.returncode == 3
    assert (done.stderr.count("`abc`"), done.stderr.count("from 1 to 100,000")) == (1, 1)


def test_without_a_network_the_error_names_it_and_the_ways_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for is_offline, words in ((False, "the network does not reach"), (True, "HF_HUB_OFFLINE is")):
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", is_offline)
        error = hub_unreachable("owner/model")
        assert words in error.message
        assert "a folder" in error.remedy
