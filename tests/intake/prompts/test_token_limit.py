"""Prompts and captions longer than the base's token limit."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from support.factories import Draw

from farm.base.loading import embedded_folder
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


def test_prompts_read_in_windows_are_not_cut_but_class_prompts_are(
    draw_subject: Draw, tmp_path: Path
) -> None:
    (draw_subject("tom") / "0.txt").write_text(f"{LONG}, sks cat")
    text = (
        f"subjects:\n- id: tom\n  class_noun: cat\n  instance_prompt: '{LONG} of [V] cat'\n"
        f"  class_prompt: 'a cat, {LONG}'\n  recipe: {{long_prompts: chunk}}\n"
    )
    (fault,) = faults_of(tmp_path, text)
    assert "class prompt" in fault.message
    assert "chunk" not in fault.remedy


def test_what_is_cut_can_be_read_in_windows_and_the_remedy_says_how(
    draw_subject: Draw, tmp_path: Path
) -> None:
    draw_subject("tom")
    row = f"- {{id: tom, class_noun: cat, instance_prompt: '{LONG} of [V] cat'}}"
    (fault,) = faults_of(tmp_path, f"subjects:\n{row}\n")
    assert "--set long_prompts=chunk" in fault.remedy


@pytest.mark.parametrize(
    ("pipeline", "windows"), [("StableDiffusionXLPipeline", 16), ("FluxPipeline", 1)]
)
def test_a_base_that_reads_one_length_is_named_where_windows_are_asked_for(
    draw_subject: Draw, tmp_path: Path, pipeline: str, windows: int
) -> None:
    draw_subject("tom")
    base = tmp_path / "base"
    shutil.copytree(embedded_folder() / "tokenizer", base / "tokenizer")
    (base / "model_index.json").write_text(json.dumps({"_class_name": pipeline}))
    path = tmp_path / "m.yaml"
    path.write_text("subjects:\n- {id: tom, class_noun: cat, recipe: {long_prompts: chunk}}\n")
    reader = prompt_reader(str(base))
    assert reader is not None
    assert reader.max_windows == windows
    manifest = read_manifest(str(path), strict=False, reader=reader)
    found = [fault for fault in manifest.faults if fault.field == "long_prompts"]
    assert [fault.severity for fault in found] == (["warning"] if windows == 1 else [])


def test_without_a_reader_no_length_is_judged(draw_subject: Draw, tmp_path: Path) -> None:
    draw_subject("tom")
    path = tmp_path / "m.yaml"
    path.write_text(f"subjects:\n- {{id: tom, class_noun: cat, instance_prompt: '[V] {LONG}'}}\n")
    assert read_manifest(str(path)).faults == ()
