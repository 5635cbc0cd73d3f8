"""Module names of recipes are held against the base, with the place where they were written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.manifests import write_manifest

import farm
from farm.errors import Fault, ManifestError
from farm.intake.manifest import all_fit, read_manifest
from farm.intake.modules import BaseModules

MODULES = BaseModules(
    "toy",
    ("down.0.attn.to_q", "down.0.attn.to_out.0", "mid.conv1"),
    (("text_encoder", ("layers.0.q_proj", "layers.0.v_proj")),),
)


def written(folder: Path, head: str = "[to_q]", own: str = "{}") -> Path:
    """A manifest with modules in its defaults and a recipe of its only subject."""
    write_manifest(folder, 1)
    manifest = folder / "manifest.yaml"
    manifest.write_text(
        f"defaults:\n  recipe:\n    target_modules: {head}\n"
        f"subjects:\n- id: s000\n  class_noun: cat\n  recipe: {own}\n"
    )
    return manifest


def faults_of(
    folder: Path, *, head: str = "[to_q]", own: str = "{}", **options: Any
) -> list[Fault]:
    manifest = str(written(folder, head, own))
    read = read_manifest(manifest, strict=False, modules=MODULES, **options)
    return list(read.errors)


def test_an_unknown_module_is_named_where_it_was_written(tmp_path: Path) -> None:
    (fault,) = faults_of(tmp_path, own="{target_modules: [to_q, to_out]}")
    assert fault.field == "subjects[0].recipe.target_modules[1]"
    assert fault.line is not None
    assert "`to_out`" in fault.message
    assert "did you mean `to_out.0`?" in fault.remedy
    (fault,) = faults_of(tmp_path, head="[foo]")
    assert fault.field == "defaults.recipe.target_modules[0]"
    assert "`to_q`, `to_out.0`, `conv1`" in fault.remedy
    (fault,) = faults_of(tmp_path, recipe={"target_modules": ["foo"]})
    assert (fault.file, fault.field) == ("the command line", "recipe.target_modules[0]")


@pytest.mark.parametrize(
    ("own", "message"),
    [
        ("{text_encoder_modules: [q_prj]}", "did you mean `q_proj`"),
        ("{text_encoder_modules: [text_encoder.to_q]}", "name endings"),
        ("{target_modules: []}", "no modules get an adapter"),
        ("{target_modules: [o_q]}", "did you mean `to_q`"),
    ],
)
def test_modules_of_text_encoders_and_empty_lists_are_checked(
    tmp_path: Path, own: str, message: str
) -> None:
    (fault,) = faults_of(tmp_path, own=own)
    assert message in str(fault)


def test_known_modules_are_no_fault(tmp_path: Path) -> None:
    own = "{target_modules: [attn.to_q, mid.conv1], text_encoder_modules: [text_encoder.q_proj]}"
    assert faults_of(tmp_path, own=own) == []
    assert all_fit(read_manifest(str(tmp_path / "manifest.yaml"), strict=False), MODULES)


@pytest.mark.parametrize("function", [farm.plan, farm.run])
def test_a_plan_and_a_check_refuse_them_before_any_work(
    tmp_path: Path, function: Callable[..., object]
) -> None:
    manifest = written(tmp_path / "m", head="[foo]")
    with pytest.raises(ManifestError, match="`foo`") as caught:
        function(manifest, base="tiny", store=tmp_path / "s", in_process=True)
    (fault,) = (one for one in caught.value.faults if one.severity == "error")
    assert (fault.line, fault.field) == (3, "defaults.recipe.target_modules[0]")
    assert not (tmp_path / "s").exists()
    assert list(farm.check(manifest, base="tiny").errors) == [fault]
