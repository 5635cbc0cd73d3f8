"""Folders and files for results: refused before the work, and never left half-written."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from farm.base.embedded.measure import measure_base
from farm.cli.commands.base import train
from farm.cli.commands.demo import demo
from farm.errors import OutputUnusable
from farm.local_files import check_file, check_folder, full_disk, write_file, writing
from farm.quality.study.article import ArticleStudy, run_article_study
from farm.quality.study.prior import PriorStudy, run_prior_study

FULL = OSError(errno.ENOSPC, "No space left on device")


def full(*_: object) -> None:
    raise FULL


def test_a_place_that_can_be_no_folder_is_one_clear_error_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, link = tmp_path / "file", tmp_path / "link"
    file.touch()
    link.symlink_to("nowhere")
    for place, reason in (
        (file, f"{file} is a file"),
        (file / "a/b", f"{file} is a file"),
        (link, "is a link to nowhere, which does not exist"),
        (Path("/proc/x"), "No such file"),
    ):
        with pytest.raises(OutputUnusable, match=f"cannot write {place}: .*{reason}") as caught:
            check_folder(place)
        assert (caught.value.exit_code, bool(caught.value.remedy)) == (2, True)
    check_folder(tmp_path / "a/b")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputUnusable, match="the disk is full"):
        check_folder(tmp_path / "a/b")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "link"]


def test_a_place_that_can_be_no_file_is_refused_and_a_device_is_not(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("nowhere")
    (tmp_path / "file").touch()
    for place in (tmp_path, tmp_path / "link", tmp_path / "file/page.html"):
        with pytest.raises(OutputUnusable, match="cannot write"):
            check_file(place)
    check_file(tmp_path / "file")
    check_file(tmp_path / "new/page.html")
    check_file(Path("/dev/null"))
    write_file(Path("/dev/null"), b"x")


def test_a_file_is_replaced_whole_or_stays_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page, link = tmp_path / "a/page.html", tmp_path / "link"
    write_file(page, b"one")
    link.symlink_to(page)
    write_file(link, b"two")
    assert (link.is_symlink(), page.read_bytes()) == (True, b"two")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputUnusable, match=f"cannot write {page}: the disk is full"):
        write_file(page, b"three")
    assert [path.read_bytes() for path in page.parent.iterdir()] == [b"two"]


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (FULL, "the disk is full"),
        (OSError(errno.EROFS, "Read-only file system"), "read-only"),
        (OSError(errno.EFBIG, "File too large"), "File too large"),
        (RuntimeError("I/O error: No space left (os error 28)"), "the disk is full"),
        (OSError("100 requested and 0 written"), "the disk is full"),  # numpy
        (PermissionError(errno.EACCES, "Permission denied", "out/x"), "out/x: Permission denied"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_a_disk_that_fails_meanwhile_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, reason: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("farm.local_files._free_bytes", lambda path: 0)
    with pytest.raises(OutputUnusable, match=f"cannot write out: .*{reason}"), writing(Path("out")):
        raise error


def test_a_full_disk_is_told_with_the_files_own_name() -> None:
    for name, shown in ((f"/d/.page.html.{'a1' * 16}", "/d/page.html"), ("/d/.x.y", "/d/.x.y")):
        error = full_disk(OSError(errno.ENOSPC, "No space left on device", name))
        assert error is not None
        assert error.message == f"cannot write {shown}: a disk is full"


@pytest.mark.parametrize(
    "error",
    [
        FileNotFoundError(errno.ENOENT, "No such file", "/weights"),
        PermissionError(errno.EACCES, "Permission denied", "/photos/1.png"),
        OSError("cannot identify image file"),
        ValueError("x"),
    ],
    ids=repr,
)
def test_other_errors_are_not_blamed_on_the_disk(tmp_path: Path, error: Exception) -> None:
    with pytest.raises(type(error)), writing(tmp_path / "out"):
        raise error


def test_commands_refuse_such_a_folder_before_they_begin(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    for begin in (
        lambda: demo(out=file, base="nothing"),
        lambda: train(out=file),
        lambda: measure_base("nothing", out=file),
        lambda: run_article_study("nothing", ArticleStudy(), file),
        lambda: run_prior_study("nothing", PriorStudy(), file),
    ):
        with pytest.raises(OutputUnusable, match=f"cannot write {file}"):
            begin()
