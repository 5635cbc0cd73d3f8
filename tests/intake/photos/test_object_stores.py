"""Photos and captions in an S3 store with unusual keys."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
from support.factories import Draw
from support.s3 import BUCKET, CREDENTIALS, s3_server

from farm.intake.check import check_manifest
from farm.intake.manifest import Manifest, read_manifest
from farm.intake.photos import listings

NAMES = (
    *("picture #1.png", "a+b.png", "50%.png", "why?.png", "what%20is.png", "käfer 🐞.png"),
    *("[1].png", "x&y=z.png", "star*.png"),
)


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    with s3_server() as running:
        yield running


@pytest.fixture(params=["", "/"])
def store(
    request: pytest.FixtureRequest, endpoint: str, draw: Draw, monkeypatch: pytest.MonkeyPatch
) -> str:
    """A store with photos in `tom`, and the endpoint with and without a slash at its end."""
    import boto3

    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint + request.param)
    client = boto3.client("s3", endpoint_url=endpoint)

    def put(key: str, data: bytes) -> None:
        client.put_object(Bucket=BUCKET, Key=key, Body=data)

    for marker in ("tom/", "tom/sub_$folder$", "empty/"):
        put(marker, b"")
    for number, name in enumerate(NAMES):
        put(f"tom/{name}", draw(f"p/{number}.png", seed=number).read_bytes())
    put("tom/picture #1.txt", b"a [V] one")
    put("tom/metadata.csv", b'file_name;text\nwhy?.png;"[V] asks"\n')
    put("tom/.ipynb_checkpoints/0.png", b"x")
    return f"s3://{BUCKET}"


def manifest(store: str, photos: str) -> Manifest:
    text = f"subjects:\n- {{id: tom, class_noun: cat, photos: {photos}}}\n"
    with fsspec.open(f"{store}/m.yaml", "w") as file:
        file.write(text)
    return read_manifest(f"{store}/m.yaml", strict=False)


@pytest.mark.parametrize(
    "photos",
    ["tom", f"'s3://{BUCKET}/tom/'", "'tom/*.png'", "'tom/**/*'", "[{}]"],
    ids=["folder", "url", "glob", "deep", "list"],
)
def test_every_form_finds_the_same_photos_and_captions(store: str, photos: str):
    listed = ", ".join(f"'s3://{BUCKET}/tom/{name}'" for name in NAMES)
    read = manifest(store, photos.format(listed))
    (subject,) = read.subjects
    captions = {photo.uri.rpartition("/tom/")[2]: photo.caption for photo in subject.photos}
    assert captions == dict.fromkeys(NAMES) | {
        "picture #1.png": "a [V] one",
        "why?.png": "[V] asks",
    }
    assert not read.faults
    report = check_manifest(read)
    assert not report.errors
    assert report.captions == (2, len(NAMES))


def test_an_empty_prefix_holds_no_photos(store: str):
    for photos in ("empty", "'empty/*.png'"):
        (fault,) = manifest(store, photos).faults
        assert "holds no photos" in fault.message


def test_a_folder_of_folders_in_a_store_is_a_manifest(store: str):
    with fsspec.open(f"{store}/shop/subjects.csv", "w") as file:
        file.write("subject;class\ntom;cat\n")
    with fsspec.open(f"{store}/shop/tom/0.png", "wb") as file:
        file.write(b"x")
    (subject,) = read_manifest(f"{store}/shop/").subjects
    assert (subject.id, subject.class_noun, len(subject.photos)) == ("tom", "cat", 1)


def test_names_of_archives_are_read_as_they_were_meant(store: str, tmp_path: Path):
    import zipfile

    with zipfile.ZipFile(tmp_path / "z.zip", "w") as archive:
        archive.write(tmp_path / "p/0.png", "tom/0.png")
        archive.writestr("tom/metadata.csv", "file_name,text\n0.png,[V]\n")
    with fsspec.open(f"{store}/z.zip", "wb") as file:
        file.write((tmp_path / "z.zip").read_bytes())
    assert manifest(store, "z.zip").subjects[0].photos[0].caption == "[V]"


@pytest.mark.parametrize("photos", ["tom", "'tom/*.png'", "'s3://farm/tom/**/*'"])
def test_a_prefix_of_too_many_objects_is_refused(
    store: str, monkeypatch: pytest.MonkeyPatch, photos: str
):
    monkeypatch.setattr(listings, "MAX_NAMES", 5)
    (fault,) = manifest(store, photos).faults
    assert "more than 5 names" in fault.message
