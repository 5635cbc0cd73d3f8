"""Commands print only the farm's own lines: no other library writes to the terminal."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.cli.commands import farm_in_one_process
from support.cli.terminal import environment, foreign_lines
from support.manifests import write_manifest

from farm.cli.views.progress import Stages
from farm.text.visible import visible, visible_lines

FARM = "from farm.cli import main; main()"
Printed = dict[str, list[tuple[str, str]]]


@pytest.fixture(scope="module")
def base_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline as stored on the hub: config and safetensors in folders."""
    from farm.base.random_weights import build_pipeline

    folder = tmp_path_factory.mktemp("base") / "tiny-pipeline"
    build_pipeline("tiny").save_pretrained(folder, safe_serialization=True)
    return folder


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_manifest(tmp_path_factory.mktemp("manifest"), 2)


@pytest.fixture(scope="module")
def printed(base_folder: Path, manifest: Path, tmp_path_factory: pytest.TempPathFactory) -> Printed:
    """stdout and stderr of commands by group, all in one process: what a library prints only once
    is in the streams of the command that was first."""
    folder = tmp_path_factory.mktemp("printed")
    store = ("--store", folder / "store")
    on_hub_form = ("--store", folder / "hub", "--base", base_folder, "--json")
    hostile = hostile_manifest(folder)
    groups: dict[str, tuple[tuple[str | Path, ...], ...]] = {
        "hub form": (
            ("base", "show", base_folder, "--json"),
            ("plan", manifest, *on_hub_form),
            ("run", manifest, *on_hub_form, "--in-process", "--sample-steps", "2"),
            # here, where images cost little: scoring generates more than a hundred
            ("score", "s000", *on_hub_form, "--scorer", "embedded"),
        ),
        "embedded": (
            ("demo", "--help"),
            ("check", manifest),
            ("base", "show", "embedded"),
            ("plan", manifest, *store),
            ("run", manifest, *store, "--in-process", "--json"),
            ("run", manifest, *store, "--in-process", "--plain"),
            ("status", *store),
            ("logs", *store),
            ("report", *store),
            ("export", folder / "out", *store),
        ),
        "no base, fails": (("base", "show", folder),),
        "hostile names, fails": (("check", hostile), ("plan", hostile, "--base", "tiny")),
    }
    owners = [name for name, commands in groups.items() for _ in commands]
    every = [command for commands in groups.values() for command in commands]
    found: Printed = {name.partition(",")[0]: [] for name in groups}
    for name, done in zip(owners, farm_in_one_process(every, environment()), strict=True):
        told = f"{done.args}: {done.stdout}{done.stderr}"
        assert (done.returncode != 0) == name.endswith("fails"), told
        found[name.partition(",")[0]].append((done.stdout, done.stderr))
    return found


def hostile_manifest(folder: Path) -> Path:
    """Its names hold what a terminal would obey."""
    manifest = write_manifest(folder / "m\x1b[2J", 1)
    rows = [json.loads(line) for line in manifest.read_text().splitlines()]
    rows[0] |= {"id": "evil\u202e\x1b[31m", "photos": ["gone\x1b]0;x\x07.jpg"]}
    manifest.write_text("\n".join(json.dumps(row) for row in rows))
    return manifest


def test_a_base_in_hub_form_is_used_without_a_line_of_another_library(printed: Printed) -> None:
    documents = []
    for stdout, stderr in printed["hub form"]:
        documents.append(json.loads(stdout.splitlines()[-1]))
        assert foreign_lines(stderr) == []
    _, _, trained, scored = documents
    assert trained["committed"] == 2
    assert scored


def test_no_command_on_the_embedded_base_prints_a_line_of_another_library(
    printed: Printed,
) -> None:
    for number, (_, stderr) in enumerate(printed["embedded"]):
        assert foreign_lines(stderr) == [], number


def test_the_endpoint_starts_and_stops_without_a_line_of_another_library(
    base_folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "store").mkdir()
    words = ["serve", "--store", tmp_path / "store", "--base", base_folder, "--port", "0"]
    with subprocess.Popen(
        [sys.executable, "-c", FARM, *map(str, words)],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment(),
    ) as process:
        assert process.stderr is not None
        lines = []
        deadline = time.monotonic() + 300
        for line in process.stderr:
            lines.append(line)
            if "serving" in line and "http://" in line or time.monotonic() > deadline:
                break
        process.send_signal(signal.SIGINT)
        lines += process.stderr.readlines()
        process.wait(60)
    assert any("http://" in line for line in lines), lines
    assert foreign_lines("".join(lines)) == []


def test_errors_of_a_base_are_ours_alone(printed: Printed) -> None:
    ((_, stderr),) = printed["no base"]
    lines = [line.split(":")[0] for line in stderr.splitlines()]
    assert re.fullmatch(r"loading the base /\S+ …", lines[0])
    assert lines[1:] == ["error", "remedy"]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain, ünïcode, 猫, שלום", "plain, ünïcode, 猫, שלום"),
        ("\x1b[2J\x1b]0;title\x07", r"\x1b[2J\x1b]0;title\x07"),
        ("cat\u202egpj.exe", r"cat\u202egpj.exe"),
        ("a\nerror: forged", r"a\nerror: forged"),
        ("a\rb\tc\x9bd", r"a\rb\tc\x9bd"),
        ("name\udcff", r"name\udcff"),
        ("re\u2060x\xad \u3164\U000e0101", r"re\u2060x\xad \u3164\U000e0101"),
        ("👩\u200d🚀", "👩\u200d🚀"),
    ],
)
def test_hidden_characters_are_shown_as_escapes(text: str, shown: str) -> None:
    assert visible(text) == shown


def test_text_of_several_lines_keeps_its_lines() -> None:
    assert visible_lines("one\n\ttwo\x1b[0m") == "one\n\ttwo\\x1b[0m"


def test_hostile_names_reach_no_terminal_raw(printed: Printed) -> None:
    for stdout, stderr in printed["hostile names"]:
        both = stdout + stderr
        assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", both), both
        assert r"\x1b" in both


def test_progress_without_a_terminal_is_one_line_a_stage(
    capsys: pytest.CaptureFixture[str],
) -> None:
    shown = Stages(None)
    shown.begin("loading the base x")
    shown.show("loading the base x", 1, 2, "1 of 2")
    shown.begin("loading the base x")
    assert capsys.readouterr().err == "loading the base x …\n"
