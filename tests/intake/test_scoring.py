"""Scorer settings: the command line, then the manifest's defaults, then the built-in ones."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from support.photos import picture

from farm.errors import ManifestError
from farm.intake.manifest import read_manifest
from farm.intake.scoring import ScoringSettings


def manifest_with(folder: Path, **defaults: object) -> str:
    (folder / "rex").mkdir(exist_ok=True)
    picture().save(folder / "rex" / "1.png")
    path = folder / "manifest.yaml"
    subjects = [{"id": "rex", "class_noun": "dog"}]
    path.write_text(yaml.safe_dump({"version": 1, "defaults": defaults, "subjects": subjects}))
    return str(path)


def test_the_manifests_defaults_name_the_scorers_of_a_run(tmp_path: Path) -> None:
    url = manifest_with(tmp_path, scorer="openai/clip", dino="facebook/dino", scoring_share=0.3)
    assert read_manifest(url).scoring == ScoringSettings("openai/clip", "facebook/dino", 0.3)


def test_the_command_line_wins_field_by_field() -> None:
    manifest = ScoringSettings("openai/clip", "facebook/dino", 0.3)
    asked = ScoringSettings(scorer="my/clip", share=0.0)
    assert asked.over(manifest) == ScoringSettings("my/clip", "facebook/dino", 0.0)


def test_a_share_that_is_no_share_is_refused_with_its_place(tmp_path: Path) -> None:
    with pytest.raises(ManifestError) as caught:
        read_manifest(manifest_with(tmp_path, scoring_share=-1))
    (fault,) = (one for one in caught.value.faults if one.severity == "error")
    assert fault.field == "defaults.scoring_share"


def test_a_subject_has_no_scorer_of_its_own(tmp_path: Path) -> None:
    url = manifest_with(tmp_path)
    path = Path(url)
    path.write_text(path.read_text().replace("id: rex", "id: rex\n  scorer: openai/clip"))
    with pytest.raises(ManifestError, match="scorer"):
        read_manifest(url)
