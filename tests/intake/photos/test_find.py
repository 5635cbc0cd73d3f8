from __future__ import annotations

import zipfile
from pathlib import Path

import fsspec
import pytest
from support.factories import Draw

from farm.errors import PhotoFault
from farm.intake.photos import find as gather
from farm.intake.photos.find import find_photos, matches


def names(reference: str, base: Path | str) -> list[str]:
    return [uri.rsplit("/", 1)[-1] for uri in find_photos(reference, str(base)).uris]


def refused(reference: str, base: Path | str) -> PhotoFault:
    with pytest.raises(PhotoFault) as told:
        find_photos(reference, str(base))
    assert told.value.remedy
    return told.value


@pytest.fixture
def photos(draw: Draw, tmp_path: Path) -> Path:
    for name in ("cat/b.png", "cat/a.JPG", "cat/deep/c.webp", "dog.png", "odd [1].png"):
        draw(name, format="PNG")
    for name in ("cat/notes.txt", "cat/.hidden.png", "cat/clip.mov"):
        (tmp_path / name).write_bytes(b"x")
    return tmp_path


@pytest.mark.parametrize("mark", [";", ", ", "\n"])
def test_a_list_in_one_cell_is_told_how_it_is_divided(photos: Path, mark: str):
    assert "with `|`" in refused(f"cat/b.png{mark}dog.png", photos).remedy


def test_a_folder_gives_its_photos_by_name(photos: Path):
    found = find_photos("cat", str(photos))
    assert found.uris == [f"{photos}/cat/a.JPG", f"{photos}/cat/b.png"]
    assert found.passed_over == ["clip.mov"]


def test_globs_patterns_and_single_photos(photos: Path):
    assert names("cat/*.png", photos) == ["b.png"]
    assert names("**/*.webp", photos) == ["c.webp"]
    assert names("cat/**/*", photos) == ["a.JPG", "b.png", "c.webp"]
    assert names("dog.png", photos) == ["dog.png"]
    assert names(str(photos / "dog.png"), "/elsewhere") == ["dog.png"]
    assert names(f"file://{photos}/dog.png", "/") == ["dog.png"]


def test_a_file_with_brackets_in_its_name_is_that_file(photos: Path):
    assert names("odd [1].png", photos) == ["odd [1].png"]


def test_home_is_known(photos: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", str(photos))
    assert names("~/cat", "/") == ["a.JPG", "b.png"]


@pytest.mark.parametrize(
    ("reference", "message", "remedy"),
    [
        ("catt", "there is no", "did you mean"),
        ("none/x/y", "there is no", "holds no `none`"),
        ("*.gif", "nothing matches", "correct the pattern"),
        ("empty", "holds no photos", "put 3 to 20"),
        ("full", "only folders", "**"),
        ("films", "it holds clip.mov", "JPEG"),
    ],
)
def test_what_leads_to_nothing_is_told(photos: Path, reference: str, message: str, remedy: str):
    for folder in ("empty", "full/inner", "films"):
        (photos / folder).mkdir(parents=True)
    (photos / "films/clip.mov").write_bytes(b"x")
    fault = refused(reference, photos)
    assert message in fault.message
    assert remedy in fault.remedy


def test_archives_give_their_photos(photos: Path):
    with zipfile.ZipFile(photos / "cat.zip", "w") as archive:
        archive.write(photos / "cat/b.png", "b.png")
        archive.writestr("b.txt", "[V] cat")
        archive.writestr("film.mov", "x")
    found = find_photos("cat.zip", str(photos))
    assert found.uris == [f"zip://b.png::{photos}/cat.zip"]
    assert found.captions[found.uris[0]].text == "[V] cat"
    assert found.passed_over == ["film.mov"]


def test_an_empty_archive_is_told(photos: Path):
    with zipfile.ZipFile(photos / "none.zip", "w"):
        pass
    assert "holds no photos" in refused("none.zip", photos).message


def test_folders_globs_and_archives_of_stores(photos: Path):
    store = fsspec.filesystem("memory")
    store.store.clear()
    store.put(str(photos / "cat"), "/bucket/cat", recursive=True)
    store.pipe("/bucket/cat/b.txt", b"[V] in a store")
    found = find_photos("cat", "memory://bucket")
    assert [uri.rsplit("/", 1)[-1] for uri in found.uris] == ["a.JPG", "b.png"]
    assert [caption.text for caption in found.captions.values()] == ["[V] in a store"]
    assert names("cat/*.png", "memory://bucket") == ["b.png"]
    assert names("memory://bucket/cat/b.png", "/") == ["b.png"]
    assert "there is no" in refused("dog", "memory://bucket").message
    assert "holds no photos" in refused("cat/*.gif", "memory://bucket").message
    with fsspec.open("memory://bucket/cat.zip", "wb") as file, zipfile.ZipFile(file, "w") as zipped:
        zipped.write(photos / "cat/b.png", "b.png")
    assert find_photos("cat.zip", "memory://bucket").uris == [
        "zip://b.png::memory://bucket/cat.zip"
    ]


def test_web_addresses_are_taken_as_photos():
    url = "https://example.org/a/photo.jpg?size=big"
    assert find_photos(url, "/").uris == [url]


def test_an_unknown_protocol_is_told():
    assert "`nosuch` is not read" in refused("nosuch://bucket/cat", "/").message


def test_too_many_photos_are_refused(photos: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(gather, "MAX_PHOTOS", 1)
    assert "holds 2 photos" in refused("cat", photos).message


@pytest.mark.parametrize(
    ("name", "key", "same"),
    [
        ("/x/cat/0.png", "0.png", True),
        ("/x/cat/0.png", "cat/0.png", True),
        ("/x/cat/0.png", "0", True),
        ("/x/cat/10.png", "0.png", False),
    ],
)
def test_captions_are_keyed_by_name_path_or_stem(name: str, key: str, same: bool):
    assert matches(name, key) is same


def test_links_do_not_leave_the_folder(photos: Path, tmp_path: Path):
    (tmp_path / "cat/out.png").symlink_to(tmp_path / "dog.png")
    (tmp_path / "cat/b.txt").symlink_to("/etc/hostname")
    (tmp_path / "cat/far").symlink_to(tmp_path / "dogs")
    (tmp_path / "cat/in.png").symlink_to(tmp_path / "cat/b.png")
    for reference in ("cat", "cat/*.[pJ]*", "cat/**/*"):
        found = find_photos(reference, str(photos))
        assert "out.png" not in " ".join(found.uris), reference
        assert f"{photos}/cat/in.png" in found.uris
        assert "out.png" in found.outside
        assert not found.captions
    (tmp_path / "cat/self.png").symlink_to("self.png")
    assert f"{photos}/cat/self.png" in find_photos("cat", str(photos)).uris  # reading it fails
    (tmp_path / "cat/self.png").unlink()
    (tmp_path / "linked").symlink_to(tmp_path / "cat")
    assert len(find_photos("linked", str(photos)).uris) == 3
    (tmp_path / "only").mkdir()
    (tmp_path / "only/out.png").symlink_to(tmp_path / "dog.png")
    assert "lead out of it" in refused("only", photos).message
