from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from support.factories import Draw

from farm.errors import Fault, PhotoFault
from farm.intake.manifest import read_manifest
from farm.intake.photos.bytes import read_photo_bytes
from farm.intake.photos.find import find_photos
from farm.intake.photos.uris import check_reference

FOREIGN = (
    "reference://x.png::/tmp/refs.json",
    "simplecache::http://127.0.0.1/x.png",
    "filecache::s3://bucket/x.png",
    "blockcache::/etc/passwd",
    "jupyter://127.0.0.1/x.png",
    "local:///etc/passwd",
    "ssh://host/x.png",
    "github://org:repo@/x.png",
    "zip://x.png::local:///dev/zero",
    "zip://x.png::simplecache::http://127.0.0.1/a.zip",
    "zip://x.png::zip://a.zip::/b.zip",
    "zip://x.png",
    "tar://x.png::/a.tar",
    "dir://x::/tmp",
    "data://x",
    "S3://bucket/x.png",
)


@pytest.mark.parametrize("reference", FOREIGN)
def test_foreign_protocols_and_chains_are_refused(reference: str, tmp_path: Path):
    try:
        with pytest.raises(PhotoFault) as told:
            find_photos(reference, str(tmp_path))
    finally:
        assert not list(tmp_path.iterdir())
    # without a protocol it is a plain path, and there is none
    assert "not an address" in told.value.message or "there is no" in told.value.message
    assert told.value.remedy


@pytest.mark.parametrize(
    "reference",
    ["tom/0.png", "a::b.png", "/x/0.png", "s3://b/0.png", "zip://0.png::/a.zip", "gs://b/0.png"],
)
def test_usual_addresses_pass(reference: str):
    check_reference(reference)
    check_reference(f"zip://a/b c.png::{reference}" if "::" not in reference else reference)


def test_one_foreign_address_leaves_the_other_subjects(
    draw_subject: Draw, faults_of: Callable[..., list[Fault]], tmp_path: Path
):
    draw_subject("tom")
    text = "subjects:\n- {id: tom, class_noun: cat}\n"
    for number, reference in enumerate(FOREIGN):
        text += f'- {{id: x{number}, class_noun: cat, photos: "{reference}"}}\n'
    (tmp_path / "m.yaml").write_text(text)
    manifest = read_manifest(str(tmp_path / "m.yaml"), strict=False)
    assert [subject.id for subject in manifest.subjects] == ["tom"]
    assert len({fault.subject for fault in manifest.errors}) == len(FOREIGN)


def test_a_table_of_subjects_is_under_the_same_rule(faults_of: Callable[..., list[Fault]]):
    (fault,) = faults_of("subjects: 'reference://x.csv::refs.json'\n")
    assert "not an address" in fault.message


@pytest.mark.parametrize("name", ["pipe.png", "pipe.zip"])
def test_pipes_and_devices_are_not_waited_for(tmp_path: Path, name: str):
    os.mkfifo(tmp_path / name)
    for reference in (name, "/dev/zero", f"zip://0.png::{tmp_path}/{name}"):
        with pytest.raises(PhotoFault):
            read_photo_bytes(find_photos(reference, str(tmp_path)).uris[0])


def test_a_path_in_a_store_chains_nothing():
    with pytest.raises(PhotoFault, match="chains protocols"):
        find_photos("x.png::/etc/passwd", "memory://bucket")
