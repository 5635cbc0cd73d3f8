from __future__ import annotations

import zipfile
from pathlib import Path

import fsspec
import pytest
from support.factories import Draw

from farm.intake.manifest import read_manifest
from farm.intake.photos.find import find_photos
from farm.intake.photos.litter import is_litter

LITTER = (
    ".ipynb_checkpoints/0-checkpoint.png",
    ".Trashes/501/1.png",
    "sub/.thumbnails/2.png",
    "__MACOSX/tom/._0.png",
    "@eaDir/0.png/SYNOPHOTO_THUMB_M.jpg",
    "#recycle/3.png",
    "$RECYCLE.BIN/S-1-5/4.png",
    "._5.png",
    ".DS_Store",
    "Thumbs.db",
    "THUMBS.DB",
    "desktop.ini",
    "~$captions.xlsx",
    "sub_$folder$",
)


@pytest.mark.parametrize("name", [*LITTER, "tom/", "a\\.hidden\\b.png"])
def test_what_systems_leave_behind_is_litter(name: str):
    assert is_litter(name)


@pytest.mark.parametrize("name", ["0.png", "./0.png", "a/b c/$5.png", "#1.png", "@me/0.png"])
def test_what_users_name_is_not(name: str):
    assert not is_litter(name)


@pytest.fixture
def littered(draw: Draw, tmp_path: Path) -> Path:
    for number in range(3):
        draw(f"tom/{number}.png", seed=number)
    for name in LITTER:
        path = tmp_path / "tom" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes((tmp_path / "tom/0.png").read_bytes())
    return tmp_path


def _zip(folder: Path, archive: Path, mark: str = "/") -> None:
    with zipfile.ZipFile(archive, "w") as zipped:
        zipped.writestr(zipfile.ZipInfo("tom/"), b"")
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                name = path.relative_to(folder.parent).as_posix().replace("/", mark)
                zipped.writestr(name, path.read_bytes())


def test_litter_is_never_a_photo_nor_a_warning_in_any_form(littered: Path):
    _zip(littered / "tom", littered / "tom.zip")
    _zip(littered / "tom", littered / "windows.zip", "\\")
    store = fsspec.filesystem("memory")
    store.store.clear()
    store.put(f"{littered}/tom", "/bucket/tom", recursive=True)
    references = {
        str(littered): ("tom", "tom/*", "tom/**/*", "tom.zip", "windows.zip"),
        "memory://bucket": ("tom", "tom/*", "tom/**/*"),
    }
    for base, forms in references.items():
        for reference in forms:
            found = find_photos(reference, base)
            assert len(found.uris) == 3, (base, reference, found.uris)
            assert not found.passed_over, reference
            assert not found.faults, reference


def test_hidden_folders_are_no_subjects(littered: Path, draw_subject: Draw):
    draw_subject("@eaDir/x")
    draw_subject("__MACOSX")
    (littered / "subjects.yaml").write_text("defaults: {class_noun: cat}\nsubjects: .\n")
    manifest = read_manifest(str(littered / "subjects.yaml"))
    assert [subject.id for subject in manifest.subjects] == ["tom"]
    assert not manifest.faults


def test_a_hidden_folder_that_is_named_is_read(draw: Draw, tmp_path: Path):
    draw(".cache/tom/0.png")
    assert len(find_photos(".cache/tom", str(tmp_path)).uris) == 1
    assert len(find_photos(".cache/tom/*", str(tmp_path)).uris) == 1
