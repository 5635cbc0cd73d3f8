"""Names of photos and of the files beside them: in folders, globs, archives and object stores.

Owns which names are treated as photos, and which are passed over. Nothing is decoded here;
``find.py`` resolves the references of a manifest.
"""

from __future__ import annotations

import glob
import os
import posixpath
import re
import zipfile
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import translate
from pathlib import PurePosixPath

from fsspec.utils import glob_translate

from farm.errors import PhotoFault
from farm.intake.photos.archives import archive_members, open_archive
from farm.intake.photos.budget import LOOKS_TOGETHER, LookBudget
from farm.intake.photos.decode import PHOTO_SUFFIXES
from farm.intake.photos.files import Links, member_uri, remote_entries
from farm.intake.photos.litter import is_litter, is_quiet, masks_among, other_forms
from farm.intake.photos.uris import PATTERN_REMEDY, filesystem_of

__all__ = [
    "ARCHIVE_SUFFIXES",
    "Listing",
    "has_magic",
    "is_photo_name",
    "list_archive",
    "list_folder",
    "list_glob",
    "subfolders",
]

MAX_NAMES = 200_000
"""Maximum number of names that one folder or pattern may make the check look at."""
_MAGIC = frozenset("*?[")


@dataclass(slots=True)
class Listing:
    """Names in a folder or archive, photos and others."""

    where: str
    """The folder or archive, for messages."""
    files: list[tuple[str, str]] = field(default_factory=list)
    """Name and URI of each photo, in the order of the names."""
    siblings: Mapping[str, str] = field(default_factory=dict)
    """All names that may be captions, and their URIs."""
    passed_over: list[str] = field(default_factory=list)
    """Names that are neither photos nor files often found beside them."""
    masks: Collection[str] = ()
    """Names of masks of photos among them, which are no photos."""
    outside: list[str] = field(default_factory=list)
    """Links that lead out of the folder; they are not followed."""
    folders: list[str] = field(default_factory=list)
    """Names of the folders in it, whose files are not listed."""
    is_whole: bool = True
    """Whether it holds all of a folder's photos, not a selection."""
    is_web: bool = False
    """Whether it is an address on the web, beside which nothing can be listed."""

    def emptiness(self) -> tuple[str, str]:
        """Message and remedy for a listing without photos."""
        if self.outside:
            return (
                f"{self.where} holds no photos; its links lead out of it",
                "copy the photos into the folder",
            )
        if self.folders:
            return (
                f"{self.where} holds no photos, only folders",
                f"name the folder that holds the photos, or `{self.where.rstrip('/')}/**/*`",
            )
        if any(name.lower().endswith(ARCHIVE_SUFFIXES) for name in self.passed_over):
            return (
                f"{self.where} holds no photos, only archives: {', '.join(self.passed_over[:3])}",
                "unpack them, or name one zip archive of photos per subject",
            )
        if (inside := self.data_files()) is not None:
            return inside
        if self.passed_over:
            return (
                f"{self.where} holds no photos; it holds {', '.join(self.passed_over[:3])}",
                "give JPEG, PNG, WebP, TIFF, BMP, GIF or AVIF",
            )
        return f"{self.where} holds no photos", "put 3 to 20 photos of the subject there"

    def data_files(self) -> tuple[str, str] | None:
        """Message and remedy if tables of the `datasets` library are there, with photos inside."""
        tables = [name for name in self.siblings if name.lower().endswith(DATA_SUFFIXES)]
        if not tables:
            return None
        return (
            f"{self.where} holds no photos as files, but tables that may hold them inside: "
            f"{', '.join(tables[:3])}",
            INSIDE_REMEDY,
        )


DATA_SUFFIXES = (".parquet", ".arrow", ".tfrecord")
INSIDE_REMEDY = (
    "save each photo as a file (in the `datasets` library: `row['image'].save('0.png')`), in one "
    "folder per subject"
)
ARCHIVE_SUFFIXES = (".zip", ".rar", ".7z", ".tar", ".tgz", ".gz", ".bz2", ".xz")


def is_photo_name(name: str) -> bool:
    """Whether a file is treated as a photo, by its suffix."""
    return posixpath.splitext(name)[1].lower() in PHOTO_SUFFIXES


def has_magic(path: str) -> bool:
    """Whether a path may be a pattern."""
    return bool(_MAGIC & set(path))


def _sorted_out(names: Mapping[str, str], where: str) -> Listing:
    """A listing of a folder's or archive's names, sorted into photos and others, without litter."""
    listing = Listing(where, siblings={name: names[name] for name in sorted(names)})
    others = other_forms(listing.siblings, filter(is_photo_name, listing.siblings))
    listing.masks = masks_among(filter(is_photo_name, listing.siblings))
    for name, uri in listing.siblings.items():
        if name in others or name in listing.masks:
            continue
        if is_photo_name(name):
            listing.files.append((name, uri))
        elif not is_quiet(name):
            listing.passed_over.append(name)
    return listing


# -- folders --------------------------------------------------------------------------------------


def list_folder(url: str, budget: LookBudget) -> Listing:
    """The files directly in a folder, local or remote."""
    looks = _Looks(url, budget)
    return _list_remote(url, looks) if "://" in url else _list_local(url, looks)


def _list_local(path: str, looks: _Looks) -> Listing:
    names, outside, folders, links = {}, [], [], Links(path)
    with os.scandir(path) as entries:
        for entry in entries:
            looks.count()
            if is_litter(entry.name):
                continue
            if entry.is_symlink() and links.leave(entry.name):
                outside.append(entry.name)
            elif _is_folder(entry):
                folders.append(entry.name)
            else:
                names[entry.name] = f"{path.rstrip('/')}/{entry.name}"
    listing = _sorted_out(names, path)
    listing.outside, listing.folders = sorted(outside), sorted(folders)
    return listing


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _list_remote(url: str, looks: _Looks) -> Listing:
    filesystem, path = filesystem_of(url)
    own = path.rstrip("/")
    names, folders = {}, []
    for entry in remote_entries(filesystem, path, looks.count):
        full = str(entry["name"])
        # a folder's marker is listed as an object of the folder's own name
        if full.rstrip("/") == own or is_litter(full.rsplit("/", 1)[-1] or full.rstrip("/")):
            continue
        if entry["type"] == "file" and not full.endswith("/"):
            name = full.rsplit("/", 1)[-1]
            names[name] = f"{url.rstrip('/')}/{name}"
        else:
            folders.append(full.rstrip("/").rsplit("/", 1)[-1])
    listing = _sorted_out(names, url.rstrip("/"))
    listing.folders = sorted(folders)
    return listing


def subfolders(url: str) -> list[str]:
    """The names of the folders in a folder, local or remote, sorted, without litter."""
    if "://" not in url:
        with os.scandir(url) as entries:
            return sorted(one.name for one in entries if one.is_dir() and not is_litter(one.name))
    filesystem, path = filesystem_of(url)
    own = path.rstrip("/")
    found = filesystem.ls(path, detail=True)
    full = [str(one["name"]).rstrip("/") for one in found if one["type"] == "directory"]
    names = sorted(name.rsplit("/", 1)[-1] for name in full if name != own)
    return [name for name in names if not is_litter(name)]


def has_photos(url: str) -> bool:
    """Whether a folder, local or remote, holds photos directly; False if it cannot be listed."""
    try:
        return bool(list_folder(url, LookBudget()).files)
    except Exception:  # each filesystem raises errors of its own
        return False


# -- globs ----------------------------------------------------------------------------------------


def list_glob(base: str, pattern: str, budget: LookBudget) -> Listing:
    """The photos that match a pattern below a folder, and everything beside them.

    Args:
        base: the folder that the pattern starts from, taken literally; empty where the pattern is
            absolute.
    """
    if "://" in (base or pattern):
        shown = f"{base.rstrip('/')}/{pattern}" if base else pattern
        return _remote_glob(base, pattern, _Looks(shown, budget))
    shown = os.path.join(base, pattern) if base else pattern
    return _local_glob(base, pattern, _Looks(shown, budget))


def _local_glob(base: str, pattern: str, looks: _Looks) -> Listing:
    shown = looks.shown
    literal = _literal_folder(pattern)
    root = os.path.join(base, literal) or "/"
    links = Links(root)
    found = _expanded(root, pattern.removeprefix(literal).strip("/").split("/"), looks, links)
    names = [name for name in dict.fromkeys(found) if not is_litter(name)]
    if not names:
        raise PhotoFault(f"nothing matches {shown}", PATTERN_REMEDY)
    outside = [name for name in names if links.leave(name)]
    matched = {name: os.path.join(root, name) for name in names if name not in set(outside)}
    beside: dict[str, str] = {}
    for folder in _around(names):
        for name in os.listdir(os.path.join(root, folder)):
            looks.count()
            path = os.path.join(folder, name)
            if not is_litter(name) and not links.leave(path):
                beside[path] = os.path.join(root, path)
    listing = _matched(matched, beside, root, shown)
    listing.outside = outside
    return listing


class _Looks:
    """Counts the names that one reference makes the check look at."""

    def __init__(self, shown: str, budget: LookBudget) -> None:
        self.shown, self._left, self._budget = shown, MAX_NAMES, budget

    def count(self) -> None:
        """Count one name.

        Raises:
            PhotoFault: beyond the limit of the reference, or of its manifest.
        """
        if self._left % LOOKS_TOGETHER == 0:
            self._budget.take(LOOKS_TOGETHER)
        self._left -= 1
        if self._left < 0:
            raise PhotoFault(
                f"{self.shown} covers more than {MAX_NAMES} names",
                "name the folder that holds the subject's photos",
            )


def _expanded(root: str, parts: list[str], looks: _Looks, links: Links) -> Iterator[str]:
    """The files below a folder that match a pattern's parts, by their paths from it.

    As Python's ``glob``, but bounded, and ``**`` does not follow links, which may form a loop.
    """
    waiting = [("", 0)]
    while waiting:
        folder, at = waiting.pop()
        part, is_last = parts[at], at == len(parts) - 1
        is_deep = part == "**"
        if is_deep and not is_last:
            waiting.append((folder, at + 1))
        elif not has_magic(part):
            looks.count()
            path = os.path.join(folder, part)
            if not is_last:
                waiting.append((path, at + 1))
            elif part and os.path.isfile(os.path.join(root, path)):
                yield path
            continue
        fits = re.compile("" if is_deep else translate(part)).match
        for entry in _entries(os.path.join(root, folder)):
            looks.count()
            if (entry.name.startswith(".") and not part.startswith(".")) or not fits(entry.name):
                continue
            path = os.path.join(folder, entry.name)
            kind = _kind_of(entry, links, path, is_deep=is_deep)
            if kind == "folder" and (is_deep or not is_last):
                waiting.append((path, at if is_deep else at + 1))
            elif kind == "outside" or (is_last and kind == "file"):
                yield path


def _kind_of(entry: os.DirEntry[str], links: Links, path: str, *, is_deep: bool) -> str:
    """``folder``, ``file``, ``outside`` for a linked folder elsewhere below ``**``, or ``""``."""
    try:
        if entry.is_dir(follow_symlinks=not is_deep):
            return "folder"
        if entry.is_file():
            return "file"
        return "outside" if is_deep and entry.is_symlink() and links.leave(path) else ""
    except OSError:  # it is gone, or may not be read
        return ""


def _entries(folder: str) -> Iterator[os.DirEntry[str]]:
    """A folder's entries; none if it cannot be read."""
    try:
        with os.scandir(folder or "/") as entries:
            yield from entries
    except OSError:
        return


def _remote_glob(base: str, pattern: str, looks: _Looks) -> Listing:
    whole = f"{glob.escape(base.rstrip('/'))}/{pattern}" if base else pattern
    filesystem, path = filesystem_of(whole)
    literal = _literal_folder(pattern)
    root = f"{base.rstrip('/')}/{literal}".rstrip("/") if base else literal
    inside = filesystem_of(root)[1].strip("/")
    fits = re.compile(glob_translate(path.strip("/"))).match
    try:
        found = remote_entries(filesystem, inside, looks.count, is_deep=True)
    except FileNotFoundError:
        found = []
    files = [str(one["name"]).strip("/") for one in found if one.get("type") != "directory"]
    names = [name.removeprefix(inside).lstrip("/") for name in files if fits(name)]
    names = [name for name in names if name and not is_litter(name)]
    if not names:
        message = f"nothing matches {looks.shown}, so it holds no photos"
        raise PhotoFault(message, PATTERN_REMEDY)
    beside: dict[str, str] = {}
    for folder in _around(names):
        listed = _list_remote(f"{root}/{folder}".rstrip("/"), looks)
        beside |= {posixpath.join(folder, name): uri for name, uri in listed.siblings.items()}
    return _matched({name: f"{root}/{name}" for name in names}, beside, root, looks.shown)


def _around(names: Iterable[str]) -> list[str]:
    """The folders of names, from where a pattern starts, and all above them, where a table may be.
    Empty if all are in that one folder, which ``Beside`` reads once for many subjects."""
    folders = {posixpath.dirname(name) for name in names}
    above = {str(one) for folder in folders for one in PurePosixPath(folder).parents if one.name}
    return sorted({"", *folders, *above}) if folders != {""} else []


def _literal_folder(pattern: str) -> str:
    """The folders of a pattern before its first wildcard."""
    literal = pattern[: min(pattern.index(mark) for mark in _MAGIC if mark in pattern)]
    return literal.rpartition("/")[0]


def _matched(names: Mapping[str, str], beside: Mapping[str, str], root: str, shown: str) -> Listing:
    listing = _sorted_out(names, shown)
    # photos are the names that matched; captions may be any name
    where = root if listing.files else shown
    listing.where, listing.siblings, listing.is_whole = where, beside, False
    return listing


# -- archives -------------------------------------------------------------------------------------


def list_archive(uri: str, budget: LookBudget) -> Listing:
    """The members of a zip archive, in all its folders."""
    budget.take(LOOKS_TOGETHER)
    with open_archive(uri) as archive:
        budget.take(len(archive.filelist))
        members = {
            _shown_member(archive.getinfo(name)): member_uri(name, uri)
            for name in archive_members(archive)
        }
    return _sorted_out(members, uri)


def _shown_member(entry: zipfile.ZipInfo) -> str:
    """A member's name with slashes, decoded as intended if the archive names no encoding."""
    name = entry.filename
    if not entry.flag_bits & 0x800:
        try:
            # macOS writes UTF-8 without setting its flag
            name = name.encode("cp437").decode("utf-8")
        except UnicodeError:
            name = entry.filename
    return name.replace("\\", "/")
