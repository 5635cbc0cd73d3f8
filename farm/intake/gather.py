"""From what `photos` says to the photos: folders, globs, archives, lists, URLs.

Owns finding and naming photos, and which files beside them are passed over. Nothing is decoded
here. Captions are in ``captions.py``.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from fnmatch import fnmatch
from pathlib import PurePosixPath

import fsspec

from farm.intake.captions import Caption, Captions
from farm.intake.errors import PhotoFault
from farm.intake.photos import PHOTO_SUFFIXES
from farm.intake.reading import PhotoReader, archive_members, member_uri, open_archive
from farm.intake.rows import join_url

__all__ = ["MAX_PHOTOS", "Found", "find_photos", "matches"]

MAX_PHOTOS = 10_000
"""Of one subject; a manifest of more is a manifest of something else."""
_MAGIC = frozenset("*?[")
_QUIET_SUFFIXES = frozenset(
    (".txt", ".caption", ".json", ".jsonl", ".csv", ".md", ".db", ".ini", ".npz", ".toml", ".yaml")
)
"""Files that lie beside photos everywhere; passing over them is worth no word."""


@dataclass(slots=True)
class Found:
    """What one reference led to."""

    uris: list[str] = field(default_factory=list)
    captions: dict[str, Caption] = field(default_factory=dict)
    """By URI, from files beside the photos."""
    passed_over: list[str] = field(default_factory=list)
    """Names that are no photos, and not the usual litter either."""


def find_photos(reference: str, base: str, *, with_captions: bool = True) -> Found:
    """Find the photos that one reference names, in the order of their names.

    Args:
        reference: a folder, glob, zip archive or photo; a path or a URL.
        base: folder or URL that relative paths start from.
        with_captions: also read the caption files beside them.

    Raises:
        PhotoFault: if there is nothing, nothing that is a photo, or an archive that is not safe.
    """
    url = join_url(base, reference)
    with _told(url):
        found = _find_remote(url) if "://" in url else _find_local(url)
    if not found.files:
        raise PhotoFault(*found.emptiness())
    if len(found.files) > MAX_PHOTOS:
        raise PhotoFault(f"it holds {len(found.files)} photos", f"give at most {MAX_PHOTOS}")
    result = Found([uri for _, uri in found.files], passed_over=found.passed_over)
    if not with_captions:
        return result
    with PhotoReader() as reader:
        captions = Captions(found.siblings, lambda name: reader.read(found.uri(name)))
        for name, uri in found.files:
            if (caption := captions.of(name)) is not None:
                place = join_url(found.where, caption.file)
                result.captions[uri] = replace(caption, file=place)
    return result


@dataclass(slots=True)
class _Listing:
    """Names in a folder or archive, photos and others, and how to read one of them."""

    where: str
    files: list[tuple[str, str]] = field(default_factory=list)
    """Name and URI of each photo."""
    siblings: frozenset[str] = frozenset()
    """All names among which captions may be."""
    passed_over: list[str] = field(default_factory=list)
    folders: int = 0
    archive: str | None = None

    def uri(self, name: str) -> str:
        """The URI of a sibling."""
        if self.archive is not None:
            return member_uri(name, self.archive)
        return join_url(self.where, name)

    def emptiness(self) -> tuple[str, str]:
        """Message and remedy for a listing without photos."""
        if self.folders:
            return (
                f"{self.where} holds no photos, only folders",
                f"name the folder that holds the photos, or `{self.where.rstrip('/')}/**/*`",
            )
        if self.passed_over:
            return (
                f"{self.where} holds no photos; it holds {', '.join(self.passed_over[:3])}",
                "give JPEG, PNG, WebP, TIFF, BMP, GIF or AVIF",
            )
        return f"{self.where} holds no photos", "put 3 to 20 photos of the subject there"


def _is_photo_name(name: str) -> bool:
    return PurePosixPath(name).suffix.lower() in PHOTO_SUFFIXES


def _sorted_out(names: Iterable[str], where: str, archive: str | None = None) -> _Listing:
    """A listing of the names of a folder or archive: photos, litter, others."""
    listing = _Listing(where, archive=archive)
    every = sorted(name for name in names if not name.rsplit("/", 1)[-1].startswith("."))
    for name in every:
        if _is_photo_name(name):
            listing.files.append((name, listing.uri(name)))
        elif PurePosixPath(name).suffix.lower() not in _QUIET_SUFFIXES:
            listing.passed_over.append(name)
    listing.siblings = frozenset(every)
    return listing


# -- local ----------------------------------------------------------------------------------------


def _find_local(path: str) -> _Listing:
    path = os.path.abspath(os.path.expanduser(path))
    if os.path.isdir(path):
        return _local_folder(path)
    if os.path.isfile(path):
        return _archive(path) if path.lower().endswith(".zip") else _single(path)
    if _MAGIC & set(path):
        return _local_glob(path)
    raise PhotoFault(f"there is no {path}", _nearest_path(path))


def _local_folder(path: str) -> _Listing:
    names, folders = [], 0
    with os.scandir(path) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                folders += 1
            else:
                names.append(entry.name)
    listing = _sorted_out(names, path)
    listing.folders = folders
    return listing


def _local_glob(pattern: str) -> _Listing:
    root = pattern[: min(pattern.index(mark) for mark in _MAGIC if mark in pattern)]
    root = root.rpartition("/")[0] or "/"
    names = [
        os.path.relpath(path, root)
        for path in glob.iglob(pattern, recursive=True)
        if os.path.isfile(path)
    ]
    if not names:
        raise PhotoFault(f"nothing matches {pattern}", "correct the pattern")
    matched = _sorted_out(names, root)
    matched.where = pattern
    around = {os.path.dirname(name) for name in names}
    beside = {
        os.path.join(folder, name) for folder in around for name in os.listdir(f"{root}/{folder}")
    }
    return _Listing(root, matched.files, frozenset(beside), matched.passed_over)


def _single(path: str) -> _Listing:
    """A photo named outright: taken as one, whatever its suffix."""
    folder, name = os.path.split(path)
    stem = os.path.splitext(name)[0]
    beside = {f"{stem}{suffix}" for suffix in (".txt", ".caption")}
    present = frozenset(one for one in beside if os.path.isfile(os.path.join(folder, one)))
    return _Listing(folder, [(name, path)], present)


def _nearest_path(path: str) -> str:
    """What stands nearest to a path that is not there."""
    folder, name = os.path.split(path)
    is_inside = False
    while folder != "/" and not os.path.isdir(folder):
        folder, name = os.path.split(folder)
        is_inside = True
    try:
        names = [one for one in os.listdir(folder) if not is_inside or "." not in one]
    except OSError:
        names = []
    if close := get_close_matches(name, names, n=1):
        return f"did you mean {os.path.join(folder, close[0])}?"
    return f"{folder} holds no `{name}`; correct the path, or put the photos there"


# -- archives and URLs ----------------------------------------------------------------------------


def _archive(uri: str) -> _Listing:
    with open_archive(uri) as archive:
        return _sorted_out(archive_members(archive), uri, archive=uri)


def _find_remote(url: str) -> _Listing:
    plain = url.split("?", 1)[0]
    if url.startswith("file://"):
        return _find_local(url.removeprefix("file://"))
    if plain.lower().endswith(".zip"):
        return _archive(url)
    if url.startswith(("http://", "https://")):
        return _Listing(url, [(plain.rsplit("/", 1)[-1], url)])
    if _MAGIC & set(url):
        return _remote_glob(url)
    if _is_photo_name(url):
        return _Listing(url, [(url.rsplit("/", 1)[-1], url)])
    filesystem, path = fsspec.core.url_to_fs(url)
    entries = filesystem.ls(path, detail=True)
    files = [str(entry["name"]) for entry in entries if entry["type"] == "file"]
    listing = _sorted_out((name.rsplit("/", 1)[-1] for name in files), url.rstrip("/"))
    listing.folders = len(entries) - len(files)
    return listing


def _remote_glob(url: str) -> _Listing:
    """The photos that match; captions beside them would cost a listing each, so none are sought."""
    filesystem, path = fsspec.core.url_to_fs(url)
    names = sorted(str(name) for name in filesystem.glob(path))
    listing = _Listing(url.rpartition("/")[0])
    for name in filter(_is_photo_name, names):
        if name.rsplit("/", 1)[-1].startswith("."):
            continue
        listing.files.append((name, str(filesystem.unstrip_protocol(name))))
    return listing


@contextmanager
def _told(url: str) -> Iterator[None]:
    """What a filesystem may raise, as a fault."""
    try:
        yield
    except FileNotFoundError as error:
        raise PhotoFault(f"there is no {url}", "correct the address") from error
    except (OSError, ValueError, ImportError) as error:
        text = " ".join(str(error).split())[:200]
        raise PhotoFault(f"{url} cannot be listed: {text}", "correct the address") from error


def matches(name: str, pattern: str) -> bool:
    """Whether a photo's name is what a caption's key means: its name, path or stem."""
    plain = PurePosixPath(name)
    return pattern in {name, plain.name, plain.stem} or fnmatch(name, f"*/{pattern}")
