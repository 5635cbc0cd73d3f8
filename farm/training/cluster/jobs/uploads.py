"""Copies a local manifest and its local photos into the store, where every node can read them.

Owns ``submissions/`` of a store: photos named by their content, and manifests that refer to them.

    submissions/photos/<sha256>.<suffix>    photos that were on the submitting machine
    submissions/<key>.parquet               the resolved manifest, its local photos replaced

Local photos are decoded before they are copied, so a manifest cannot upload a file that is not a
photo. The same manifest gives the same key, and the same jobs as ``farm run``, because keys hash
the photos' bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Any

from farm.base.names import edition_of
from farm.errors import Fault, UserError
from farm.intake.check import CheckReport, Progress, check_manifest
from farm.intake.manifest import Manifest, read_manifest
from farm.intake.photos.bytes import is_remote, read_photo_bytes, split_member_uri
from farm.intake.subject import Subject
from farm.keys import bytes_digest
from farm.recipe import base_layers
from farm.storage import Store

__all__ = ["Upload", "upload_manifest"]

FOLDER = "submissions"
COPIES_AT_ONCE = 16


@dataclass(frozen=True)
class Upload:
    """A manifest that the cluster can read."""

    url: str
    num_subjects: int
    num_photos: int
    """Local photos that were copied into the store."""
    warnings: tuple[Fault, ...] = ()


def upload_manifest(
    manifest: str,
    store: Store,
    *,
    base: str,
    recipe: Mapping[str, Any] | None = None,
    skip_faulty: bool = False,
    progress: Progress | None = None,
) -> Upload:
    """Copy a local manifest and its local photos into the store.

    Args:
        base: name of the base; some bases have their own recipe defaults.
        recipe: recipe fields given with ``--set``.
        skip_faulty: leave faulty subjects out.

    Raises:
        ManifestError: with all faults of the manifest and of its local photos.
        UserError: if the store cannot be written from here.
    """
    read = read_manifest(
        manifest,
        strict=False,
        recipe=recipe,
        **base_layers(edition_of(base)),
    )
    check = _checked(read, progress)
    if not skip_faulty:
        check.raise_for_errors()
    subjects = _whole_subjects(read, check)
    if not subjects:
        check.raise_for_errors()
        raise UserError(f"{manifest} has no subjects", "add at least one")
    used = {uri for subject in subjects for uri in _uris(subject)}
    copies = {u: _place(u, facts.digest) for u, facts in check.facts.items() if u in used}
    places = {uri: f"{store.url}/{path}" for uri, path in copies.items()}
    try:
        _copy(store, copies)
        data = replace(read, subjects=tuple(_moved(s, places) for s in subjects)).to_parquet()
        path = f"{FOLDER}/{bytes_digest(data)[:32]}.parquet"
        if not store.exists(path):
            store.write(path, data)
    except (UserError, OSError) as error:
        raise UserError(
            f"{manifest} is on this machine and cannot be copied into {store.url}: {error}",
            "give this machine access to the store, or upload manifest and photos yourself and "
            "submit the manifest's URL",
        ) from error
    return Upload(f"{store.url}/{path}", len(subjects), len(copies), check.faults)


def _checked(manifest: Manifest, progress: Progress | None) -> CheckReport:
    """Check the files that only this machine can read; the cluster checks the rest."""
    local = tuple(
        replace(
            one,
            uris=tuple(uri for uri in one.uris if not is_remote(uri)),
            class_images=tuple(uri for uri in one.class_images if not is_remote(uri)),
        )
        for one in manifest.resolved
        if any(not is_remote(uri) for uri in (*one.uris, *one.class_images))
    )
    return check_manifest(replace(manifest, resolved=local), progress=progress)


def _whole_subjects(manifest: Manifest, check: CheckReport) -> list[Subject]:
    """Subjects without an error among the files checked here."""
    faulty = {fault.subject for fault in check.errors}
    return [
        subject
        for subject in manifest.subjects
        if subject.id not in faulty
        and all(is_remote(uri) or uri in check.facts for uri in _uris(subject))
    ]


def _uris(subject: Subject) -> Iterable[str]:
    yield from (photo.uri for photo in subject.photos)
    yield from subject.class_images


def _place(uri: str, digest: str) -> str:
    name = split_member_uri(uri)[0] if uri.startswith("zip://") else uri
    suffix = PurePosixPath(name).suffix.lower()
    return f"{FOLDER}/photos/{digest}{suffix if suffix[1:].isalnum() else ''}"


def _copy(store: Store, places: Mapping[str, str]) -> None:
    present = set(store.list(f"{FOLDER}/photos"))

    def copy(item: tuple[str, str]) -> None:
        uri, path = item
        if path.rsplit("/", 1)[-1] in present:
            return
        data = read_photo_bytes(uri)
        digest = path.rsplit("/", 1)[-1].split(".", 1)[0]
        if bytes_digest(data) != digest:
            raise UserError(f"{uri} changed while it was read", "submit again")
        store.write(path, data)

    with ThreadPoolExecutor(COPIES_AT_ONCE) as pool:
        list(pool.map(copy, places.items()))


def _moved(subject: Subject, places: Mapping[str, str]) -> Subject:
    return subject.model_copy(
        update={
            "photos": tuple(
                replace(photo, uri=places.get(photo.uri, photo.uri)) for photo in subject.photos
            ),
            "class_images": tuple(places.get(uri, uri) for uri in subject.class_images),
        }
    )
