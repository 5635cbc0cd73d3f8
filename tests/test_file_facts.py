"""Facts about files: used while a file is unchanged, and never in place of it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from farm.file_facts import FactsTable, cache_folder, local_version, object_version


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FARM_CACHE", str(tmp_path / "cache"))


def settled(path: Path, text: str) -> str:
    """Write a file that last changed an hour ago, but for its inode's own time."""
    path.write_text(text)
    os.utime(path, (1_000_000_000, 1_000_000_000))
    return str(path)


def test_a_file_that_changed_just_now_or_is_missing_has_no_version(tmp_path: Path) -> None:
    assert local_version(settled(tmp_path / "a", "x")) is None  # its inode changed just now
    assert local_version(str(tmp_path / "b")) is None


def test_a_version_changes_with_size_times_and_inode(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("farm.file_facts.SETTLED_S", -1e9)
    path = settled(tmp_path / "a", "one")
    first = local_version(path)
    assert first == local_version(path)
    assert local_version(settled(tmp_path / "a", "two")) != first
    os.replace(settled(tmp_path / "b", "one"), path)
    assert local_version(path) != first


def test_an_object_has_a_version_only_with_a_tag_of_its_store() -> None:
    assert object_version({"size": 3}) is None
    assert object_version({"size": 3, "ETag": "a"}) != object_version({"size": 3, "ETag": "b"})


def test_facts_are_found_again_by_the_same_version_of_the_computation() -> None:
    names = [f"photo-{number}" for number in range(1200)]
    table = FactsTable("photos", "1")
    table.add((name, "v", [name, 7]) for name in names)
    assert FactsTable("photos", "1").known(names)["photo-7"] == ("v", ["photo-7", 7])
    assert len(table.known([*names, "unknown", "not\udcfftext"])) == 1200
    assert FactsTable("photos", "2").known(names) == {}


@pytest.mark.parametrize("content", [b"", b"not a table", b"SQLite format 3\0" + b"x" * 4000])
def test_a_damaged_table_is_passed_over_and_made_again(content: bytes) -> None:
    table = FactsTable("photos", "1")
    table.add([("a", "v", 1)])
    (cache_folder() / "photos.sqlite").write_bytes(content)
    assert table.known(["a"]) == {}
    table.add([("a", "v", 2)])
    assert table.known(["a"]) == {"a": ("v", 2)}


def test_a_cache_that_cannot_be_written_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("FARM_CACHE", str(tmp_path / "file"))
    table = FactsTable("photos", "1")
    table.add([("a", "v", 1)])
    assert table.known(["a"]) == {}
