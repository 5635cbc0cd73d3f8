from __future__ import annotations

import threading
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pytest
from PIL import Image
from support.factories import Draw, Write
from support.photos import encoded, picture, png_bomb

from farm.errors import ManifestError
from farm.intake import check as check_module
from farm.intake.check import check_manifest
from farm.intake.job import job_spec
from farm.intake.manifest import Manifest, read_manifest
from farm.intake.photos import inspect as inspect_module
from farm.intake.photos.bytes import PhotoReader
from farm.intake.photos.inspect import PhotoFacts, PhotoRefusal
from farm.keys import file_digest

ManifestOf = Callable[..., Manifest]


def test_a_good_manifest_gives_digests_for_jobs(
    draw_subject: Draw, manifest_of: ManifestOf, tmp_path: Path
):
    draw_subject("tom")
    draw_subject("cats", 2)
    manifest = manifest_of("subjects:\n- {id: tom, class_noun: cat, class_images: cats}\n")
    report = check_manifest(manifest)
    assert report.faults == ()
    assert report.good_subjects == manifest.subjects
    tom = manifest.subjects[0]
    digests = report.photo_digests(tom)
    assert digests == tuple(file_digest(f"{tmp_path}/tom/{number}.png") for number in range(4))
    images = report.class_image_digests(tom)
    assert len(images) == 2
    assert report.num_photos == 6
    assert report.num_bytes == sum(path.stat().st_size for path in tmp_path.glob("*/*.png"))
    job = job_spec(tom, digests, base_fingerprint="f", resolution_px=64, class_image_digests=images)
    assert job.photo_digests == tuple(sorted(digests))
    report.raise_for_errors()


def test_every_bad_photo_is_told_and_the_good_subjects_remain(
    draw: Draw, draw_subject: Draw, write: Write, tmp_path: Path
):
    draw_subject("tom")
    draw_subject("rex")
    good = encoded(picture(7), "JPEG")
    (tmp_path / "rex/4.jpg").write_bytes(good[: len(good) // 2])
    (tmp_path / "rex/5.jpg").write_bytes(b"no photo")
    (tmp_path / "rex/6.jpg").write_bytes(b"")
    draw("rex/7.png", 8, (20, 300))
    (tmp_path / "rex/8.png").write_bytes(png_bomb())
    (tmp_path / "rex/9.png").write_bytes((tmp_path / "rex/0.png").read_bytes())
    picture(7).save(tmp_path / "rex/10.png")
    picture(7, (192, 160)).save(tmp_path / "rex/11.jpg", quality=60)
    path = write(
        "m.yaml",
        "subjects:\n- {id: tom, class_noun: cat}\n- {id: rex, class_noun: dog}\n- {id: x y}\n",
    )
    report = check_manifest(read_manifest(str(path), strict=False))
    told = [(fault.line, fault.severity, fault.message) for fault in report.faults]
    photos = [message for line, _, message in told if line == 3]
    assert len(photos) == 7
    for words in (
        "4.jpg: it is truncated",
        "5.jpg: it is not a photo",
        "6.jpg: the file is empty",
        "7.png: it is 20 x 300 px",
        "8.png: it is larger",
        "9.png is the same file as",
        "11.jpg looks like",
    ):
        assert any(words in message for message in photos), words
    assert any(line == 4 for line, *_ in told)  # and the manifest's own faults beside them
    assert [subject.id for subject in report.good_subjects] == ["tom"]
    with pytest.raises(ManifestError) as error:
        report.raise_for_errors()
    assert len(error.value.faults) == len(report.faults)


def test_photos_of_subjects_with_other_faults_are_checked_too(write: Write, tmp_path: Path):
    (tmp_path / "tom").mkdir()
    (tmp_path / "tom/0.png").write_bytes(b"broken")
    path = write("m.yaml", "subjects:\n- {id: tom, clas_noun: cat, photos: tom}\n")
    report = check_manifest(read_manifest(str(path), strict=False))
    messages = " ".join(fault.message for fault in report.errors)
    assert "unknown key" in messages
    assert "`class_noun` is missing" in messages
    assert "it is not a photo" in messages


def test_shared_photos_are_read_once(draw_subject: Draw, manifest_of: ManifestOf):
    draw_subject("tom")
    lines = "".join(f"- {{id: s{n}, class_noun: cat, photos: tom}}\n" for n in range(300))
    seen: list[tuple[int, int]] = []
    report = check_manifest(
        manifest_of("subjects:\n" + lines), progress=lambda done, total: seen.append((done, total))
    )
    assert report.num_photos == 4
    assert len(report.good_subjects) == 300
    assert seen[-1] == (4, 4)


def test_progress_reaches_the_end_and_never_goes_back(draw_subject: Draw, manifest_of: ManifestOf):
    for name in "abc":
        draw_subject(name)
    seen: list[int] = []
    manifest = manifest_of("defaults: {class_noun: cat}\nsubjects: [{id: a}, {id: b}, {id: c}]\n")
    check_manifest(manifest, progress=lambda done, total: seen.append(done))
    assert seen == sorted(seen)
    assert seen[-1] == 12


def test_only_a_bounded_number_of_photos_is_in_flight(
    draw: Draw, write: Write, monkeypatch: pytest.MonkeyPatch
):
    photos = [draw(f"p/{n}.png", seed=n) for n in range(40)]
    rows = "".join(f"s{n},cat,{path}\n" for n, path in enumerate(photos))
    path = write("m.csv", "id,class_noun,photos\n" + rows)
    monkeypatch.setattr(check_module, "WINDOW_SUBJECTS", 4)
    inspect = check_module.inspect_changed
    lock, submitted, received = threading.Lock(), [0], [0]
    most = [0]

    def counted(uris: list[str], known: Any) -> object:
        with lock:
            submitted[0] += len(uris)
            most[0] = max(most[0], submitted[0] - received[0])
        return inspect(uris, known)

    def progress(done: int, total: int) -> None:
        received[0] = done

    monkeypatch.setattr(check_module, "inspect_changed", counted)
    check_manifest(read_manifest(str(path)), progress=progress, workers=2)
    assert most[0] <= 4 * check_module.WINDOWS


def test_a_second_check_reads_only_the_photos_that_changed(
    draw: Draw, write: Write, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.setenv("FARM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("farm.file_facts.SETTLED_S", -1e9)
    photos = [draw(f"p/{n}.png", seed=n) for n in range(4)]
    rows = "".join(f"s{n},cat,{path}\n" for n, path in enumerate(photos))
    path = write("m.csv", "id,class_noun,photos\n" + rows)
    read: list[str] = []
    inspect = inspect_module.inspect_photo

    def noted(uri: str, reader: PhotoReader) -> PhotoFacts | PhotoRefusal:
        read.append(Path(uri).name)
        return inspect(uri, reader)

    monkeypatch.setattr(inspect_module, "inspect_photo", noted)

    def check() -> tuple[list[str], dict[str, PhotoFacts]]:
        read.clear()
        return read, check_manifest(read_manifest(str(path))).facts

    names, first = check()
    assert sorted(names) == ["0.png", "1.png", "2.png", "3.png"]
    assert check() == ([], first)
    draw("p/2.png", seed=9)
    names, changed = check()
    assert names == ["2.png"]
    assert {uri for uri in first if first[uri] != changed[uri]} == {str(photos[2])}
    Path(photos[1]).write_bytes(b"broken")
    for _ in range(2):  # a refusal is not remembered
        assert check()[0] == ["1.png"]


def test_photos_in_stores_and_archives_are_checked(write: Write, tmp_path: Path):
    store = fsspec.filesystem("memory")
    store.store.clear()
    for number in range(3):
        store.pipe(f"/bucket/tom/{number}.png", encoded(picture(number)))
    with zipfile.ZipFile(tmp_path / "rex.zip", "w") as archive:
        for number in range(3):
            archive.writestr(f"{number}.jpg", encoded(picture(10 + number), "JPEG"))
        archive.writestr("3.jpg", b"broken")
    path = write(
        "m.yaml",
        """
        subjects:
          - {id: tom, class_noun: cat, photos: "memory://bucket/tom"}
          - {id: rex, class_noun: dog, photos: rex.zip}
        """,
    )
    report = check_manifest(read_manifest(str(path)))
    assert [subject.id for subject in report.good_subjects] == ["tom"]
    assert [fault.message for fault in report.errors] == ["rex.zip:3.jpg: it is not a photo"]


def test_a_rotated_photo_is_measured_as_it_is_seen(manifest_of: ManifestOf, draw: Draw):
    exif = Image.Exif()
    exif[0x0112] = 6
    for number in range(3):
        draw(f"tom/{number}.jpg", number, (300, 150), exif=exif)
    report = check_manifest(manifest_of("subjects:\n- {id: tom, class_noun: cat}\n"))
    assert {(one.width_px, one.height_px) for one in report.facts.values()} == {(150, 300)}


def test_look_alikes_are_found_across_sizes_and_forms(manifest_of: ManifestOf, tmp_path: Path):
    (tmp_path / "tom").mkdir()
    picture(1, (900, 700)).save(tmp_path / "tom/a.jpg", quality=95)
    picture(1, (300, 233)).save(tmp_path / "tom/b.png")
    picture(2, (900, 700)).save(tmp_path / "tom/c.jpg")
    report = check_manifest(manifest_of("subjects:\n- {id: tom, class_noun: cat}\n"))
    assert [fault.message for fault in report.faults] == ["tom/b.png looks like tom/a.jpg"]
