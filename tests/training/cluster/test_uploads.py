"""An uploaded manifest makes the same run as the local one; only photos are uploaded."""

from __future__ import annotations

import json
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
from support.manifests import request, write_manifest, write_photo

from farm.errors import ManifestError, UserError
from farm.storage import Store
from farm.training.cluster.jobs.submit import split_options
from farm.training.cluster.jobs.uploads import upload_manifest
from farm.training.execute import prepare_run


def test_the_copy_in_the_store_is_the_same_run(tmp_path: Path) -> None:
    manifest = write_manifest(tmp_path / "m", 2)
    store = Store(tmp_path / "store")
    upload = upload_manifest(str(manifest), store, base="tiny")
    assert (upload.num_subjects, upload.num_photos) == (2, 4)
    at_home = request(manifest, store.url)
    assert prepare_run(replace(at_home, manifest=upload.url)).run_id == prepare_run(at_home).run_id
    assert upload_manifest(str(manifest), store, base="tiny").url == upload.url
    assert str(tmp_path / "m").encode() not in store.read(upload.url.removeprefix(f"{store.url}/"))


def test_photos_in_an_archive_travel_one_by_one(tmp_path: Path) -> None:
    photos = [write_photo(tmp_path / f"{n}.png", n) for n in range(3)]
    with zipfile.ZipFile(tmp_path / "cat.zip", "w") as archive:
        for photo in photos:
            archive.write(photo, photo.name)
    manifest = tmp_path / "m.jsonl"
    manifest.write_text(json.dumps({"id": "a", "class_noun": "cat", "photos": "cat.zip"}))
    store = Store(tmp_path / "store")
    assert upload_manifest(str(manifest), store, base="tiny").num_photos == 3
    assert len(store.list("submissions/photos")) == 3


def test_what_is_no_photo_stays_here(tmp_path: Path) -> None:
    manifest = write_manifest(tmp_path / "m", 2)
    (tmp_path / "m" / "s001" / "0.png").write_text("a secret")
    store = Store(tmp_path / "store")
    with pytest.raises(ManifestError, match="fault"):
        upload_manifest(str(manifest), store, base="tiny")
    assert store.list("submissions") == []
    upload = upload_manifest(str(manifest), store, base="tiny", skip_faulty=True)
    assert (upload.num_subjects, upload.num_photos) == (1, 2)


def test_options_keep_quoted_values() -> None:
    assert split_options(["--nodes 4", "--set 'name=a b'"]) == [
        *("--nodes", "4"),
        *("--set", "name=a b"),
    ]
    for text in ("--set 'a", "--store x", "--address=y"):
        with pytest.raises(UserError):
            split_options([text])
