"""`farm check` as a user sees it: exit codes, stdout, stderr, JSON."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from typer.testing import CliRunner

from farm.cli import app
from farm.cli.views import progress
from farm.cli.views.check import render_faults
from farm.errors import Fault, ManifestError
from farm.intake.check import check_manifest
from farm.intake.manifest import read_manifest

runner = CliRunner()


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    """One valid subject with four photos."""
    (tmp_path / "tom").mkdir()
    for number in range(4):
        coarse = np.random.default_rng(number).integers(0, 255, (6, 6, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((96, 80)).save(tmp_path / f"tom/{number}.png")
    path = tmp_path / "manifest.yaml"
    path.write_text("subjects:\n- {id: tom, class_noun: cat}\n")
    return path


def run(*arguments: object) -> tuple[int, str, str]:
    result = runner.invoke(app, ["check", *map(str, arguments)])
    return result.exit_code, result.stdout, result.stderr


def test_a_good_manifest_exits_with_0_and_says_so(manifest: Path):
    code, out, _ = run(manifest)
    assert code == 0
    assert "nothing is wrong" in out
    assert "1 subject, all can be trained" in out


def test_the_report_counts_captioned_photos(manifest: Path):
    (manifest.parent / "tom/0.txt").write_text("a [V] cat")
    assert "captions: 1 of 4 photos" in run(manifest)[1]
    told = json.loads(run(manifest, "--json")[1].splitlines()[-1])
    assert told["captions"] == {"captioned": 1, "photos": 4}


def test_a_prior_set_is_shown_by_class_or_by_the_subjects_own_class_prompt(manifest: Path):
    assert "1: cat" in run(manifest)[1]
    manifest.write_text(
        "subjects:\n- {id: tom, class_noun: cat, class_prompt: a plush cat on grass}\n"
    )
    assert "1: “a plush cat on grass”" in run(manifest)[1]


def test_faults_exit_with_3_and_show_place_and_remedy(manifest: Path):
    manifest.write_text("subjects:\n- {id: tom, clas_noun: cat}\n")
    code, out, _ = run(manifest)
    assert code == 3
    assert "manifest.yaml" in out
    assert "unknown key `clas_noun`" in out
    assert "did you mean `class_noun`?" in out
    assert "0 can be trained" in out


@pytest.mark.parametrize(
    ("rows", "count", "trainable"),
    [
        ("tom,cat,maybe\nrex,dog,true\n", "2 subjects, 1 can be trained with --skip-faulty", 1),
        ('tom,cat,true\n"rex,dog,true\n', "none can be trained until the file is corrected", 0),
    ],
)
def test_the_count_follows_from_the_errors(
    manifest: Path, rows: str, count: str, trainable: int
) -> None:
    (manifest.parent / "tom").rename(manifest.parent / "photos")
    for name in ("tom", "rex"):
        (manifest.parent / name).symlink_to("photos")
    manifest = manifest.with_name("subjects.csv")
    manifest.write_text(f"subject,class,live\n{rows}")
    code, out, _ = run(manifest, "--json")
    assert (code, json.loads(out.splitlines()[-1])["trainable"]) == (3, trainable)
    assert count in run(manifest)[1]
    report = check_manifest(read_manifest(str(manifest), strict=False))
    with pytest.raises(ManifestError, match="has 1 fault") as caught:
        report.raise_for_errors()
    assert str(caught.value).count("subjects.csv:") == 1  # as many as it counts


def test_warnings_exit_with_0_unless_they_count(manifest: Path):
    (manifest.parent / "tom/9.png").write_bytes((manifest.parent / "tom/0.png").read_bytes())
    code, out, _ = run(manifest)
    assert code == 0
    assert "the same file as" in out
    assert "1 warning" in out
    assert run(manifest, "--strict")[0] == 3


def test_json_is_the_last_line_and_tells_everything(manifest: Path):
    (manifest.parent / "tom/4.png").write_bytes(b"broken")
    code, out, _ = run(manifest, "--json")
    assert code == 3
    told = json.loads(out.splitlines()[-1])
    assert (told["ok"], told["subjects"], told["trainable"], told["photos"]) == (False, 1, 0, 5)
    (fault,) = told["faults"]
    assert fault["line"] == 2
    assert fault["field"] == "subjects[0].photos"
    assert fault["subject"] == "tom"
    assert fault["severity"] == "error"
    assert fault["remedy"]


def test_progress_is_plain_lines_on_stderr_where_there_is_no_terminal(
    manifest: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(progress, "LINE_EVERY_S", 0.0)
    _, out, err = run(manifest, "--json")
    assert err == "checking photos: 4 of 4\n"
    assert "checking" not in out


def test_the_resolution_is_held_against_the_photos(manifest: Path):
    assert run(manifest, "--resolution", 64)[0] == 0
    code, out, _ = run(manifest, "--resolution", 512)
    assert code == 3
    assert "too small for 512 px" in out


def test_recipe_fields_are_held_against_the_manifest_as_in_a_run(manifest: Path):
    assert run(manifest, "--set", "steps=60", "--set", "early_stop.patience=3")[0] == 0
    assert run(manifest, "--set", "resolution_px=64")[0] == 0
    code, out, _ = run(manifest, "--set", "resolution_px=512")
    assert (code, "too small for 512 px" in out) == (3, True)
    refused = runner.invoke(app, ["check", str(manifest), "--set", "stepps=3"]).exception
    assert getattr(refused, "exit_code", None) == 3
    assert "did you mean `steps`?" in getattr(refused, "remedy", "")


def test_a_pipe_gets_one_line_per_fault_without_padding(manifest: Path):
    (manifest.parent / "tom/a-photo-with-a-rather-long-name-indeed.png").write_bytes(b"broken")
    _, out, _ = run(manifest)
    assert not any(line.endswith(" ") for line in out.splitlines())
    assert any(
        "tom/a-photo-with-a-rather-long-name-indeed.png: it is not a photo" in line
        for line in out.splitlines()
    )


def test_what_is_not_there_is_an_invalid_manifest(tmp_path: Path):
    result = runner.invoke(app, ["check", str(tmp_path / "none.yaml")])
    assert result.exception is not None
    assert getattr(result.exception, "exit_code", None) == 3


def test_a_wrong_option_is_a_usage_error(manifest: Path):
    assert run(manifest, "--resolution", "big")[0] == 2


def test_ten_thousand_faults_of_a_kind_are_counted_not_printed():
    faults = [
        Fault("m.yaml", f"photo-{n}.png: it is truncated", "copy it again", n, "photos", f"s{n}")
        for n in range(1, 10_001)
    ]
    faults.append(Fault("m.yaml", "unknown key `x`", "remove it", 7, "x", "s7"))
    console = Console(width=100, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(render_faults(faults, 5))
    text = console.export_text()
    assert text.count("it is truncated") == 5
    assert "… and 9,995 more like this" in text
    assert "unknown key `x`" in text


def test_square_brackets_in_names_are_shown_as_they_are(manifest: Path):
    manifest.write_text("subjects:\n- {id: '[bold]tom', class_noun: cat, photos: tom}\n")
    _, out, _ = run(manifest)
    assert "[bold]tom" in out
