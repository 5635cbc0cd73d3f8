"""Prompts and captions longer than the base's token limit."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.factories import Draw

from farm.base.tokens import prompt_reader
from farm.errors import Fault
from farm.intake.manifest import read_manifest

LONG = ", ".join(f"a wooden table with detail number {number}" for number in range(20))


def faults_of(tmp_path: Path, text: str) -> list[Fault]:
    path = tmp_path / "m.yaml"
    path.write_text(text)
    manifest = read_manifest(str(path), strict=False, reader=prompt_reader("embedded"))
    return [fault for fault in manifest.faults if "cut" in fault.message]


def test_a_caption_that_names_the_subject_too_late_is_an_error_at_its_file(
    draw_subject: Draw, tmp_path: Path
) -> None:
    folder = draw_subject("tom")
    for number in range(4):
        (folder / f"{number}.txt").write_text(f"{LONG}, sks cat")
    faults = faults_of(tmp_path, "subjects:\n- {id: tom, class_noun: cat}\n")
    assert len(faults) == 4
    for fault in faults:
        assert fault.severity == "error"
        assert fault.file.endswith(".txt")
        assert fault.line == 1
        assert "before it names the subject: `embedded` reads 32 tokens" in fault.message
        assert "[V]" in fault.remedy


def test_a_caption_that_names_the_subject_in_time_is_a_warning(
    draw_subject: Draw, tmp_path: Path
) -> None:
    folder = draw_subject("tom")
    (folder / "0.txt").write_text(f"sks cat, {LONG}")
    (fault,) = faults_of(tmp_path, "subjects:\n- {id: tom, class_noun: cat}\n")
    assert fault.severity == "warning"
    assert "never sees `" in fault.message


@pytest.mark.parametrize(
    ("field", "value", "severity"),
    [
        ("instance_prompt", f"{LONG} of [V] cat", "error"),
        ("instance_prompt", f"[V] cat, {LONG}", "warning"),
        ("class_prompt", f"a cat, {LONG}", "warning"),
        ("sample_prompts", [f"{LONG}, [V] cat"], "warning"),
    ],
)
def test_prompts_are_judged_where_they_were_written(
    draw_subject: Draw, tmp_path: Path, field: str, value: object, severity: str
) -> None:
    draw_subject("tom")
    text = f"subjects:\n- id: tom\n  class_noun: cat\n  {field}: {value!r}\n"
    (fault,) = faults_of(tmp_path, text)
    assert (fault.severity, fault.line) == (severity, 4)
    assert field in fault.field


def test_one_default_that_is_cut_is_one_fault(draw_subject: Draw, tmp_path: Path) -> None:
    draw_subject("tom")
    draw_subject("rex")
    text = (
        f"defaults: {{instance_prompt: '{LONG} of [V] cat', class_noun: cat}}\n"
        "subjects:\n- id: tom\n- id: rex\n"
    )
    (fault,) = faults_of(tmp_path, text)
    assert fault.field == "defaults.instance_prompt"


def test_without_a_reader_no_length_is_judged(draw_subject: Draw, tmp_path: Path) -> None:
    draw_subject("tom")
    path = tmp_path / "m.yaml"
    path.write_text(f"subjects:\n- {{id: tom, class_noun: cat, instance_prompt: '[V] {LONG}'}}\n")
    assert read_manifest(str(path)).faults == ()
