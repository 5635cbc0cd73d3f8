"""Finds the photos that `photos` names: folders, globs, archives, lists, URLs.

Owns the resolution of one reference of a manifest, and the captions beside its photos. Names are
listed in ``listings.py``; nothing is decoded here.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from fnmatch import fnmatch
from pathlib import PurePosixPath
from threading import Lock

from farm.errors import Fault, FaultList, PhotoFault
from farm.intake.captions.above import Above, rows_above
from farm.intake.captions.files import Caption, Captions, is_table_name
from farm.intake.faults import similar_name
from farm.intake.photos.budget import LookBudget
from farm.intake.photos.bytes import PhotoReader
from farm.intake.photos.files import split_member_uri, words_of
from farm.intake.photos.listings import (
    Listing,
    has_magic,
    is_photo_name,
    list_archive,
    list_folder,
    list_glob,
)
from farm.intake.photos.uris import check_reference, filesystem_of, private_host_fault
from farm.intake.rows import CaptionStyle, join_url, parent_url

__all__ = ["MAX_PHOTOS", "Beside", "Found", "captions_around", "find_photos", "matches"]

MAX_PHOTOS = 10_000
"""Maximum number of photos of one subject."""
MAX_INNER = 8
"""Folders inside a folder of photos that are searched for more."""
_LIST_MARKS = re.compile(r"\s*[;,\n]\s*")
_DRIVE = re.compile(r"[A-Za-z]:[\\/]|\\\\\w")
"""The beginning of a Windows path: `C:\\photos`, `\\\\server\\photos`."""


@dataclass(slots=True)
class Found:
    """The result of one reference."""

    uris: list[str] = field(default_factory=list)
    captions: dict[str, Caption] = field(default_factory=dict)
    """Captions by URI, from files beside the photos."""
    passed_over: list[str] = field(default_factory=list)
    """Names that are neither photos nor known litter."""
    masks: Collection[str] = ()
    """Names of masks of photos, which are not used."""
    outside: list[str] = field(default_factory=list)
    """Links that lead out of the folder; they are not followed."""
    inner: list[str] = field(default_factory=list)
    """Folders inside the folder whose photos, or captions, are not used."""
    faults: FaultList = field(default_factory=FaultList)
    """Faults of the caption files, without a subject."""
    folder: str = ""
    """The folder that it names; empty if it names something else."""


class Beside:
    """What the references of one manifest share: a limit on what they look at, and the captions
    beside photos named one by one, whose folders are read once.

    Safe in several threads.
    """

    def __init__(self) -> None:
        self.budget = LookBudget()
        self._known: dict[tuple[str, CaptionStyle], tuple[Captions, Listing]] = {}
        self._around: dict[tuple[str, CaptionStyle], tuple[Captions, dict[str, str]]] = {}
        self._above: dict[str, Above] = {}
        self._lock = Lock()

    def above(self, folder: str) -> Above:
        """The rows with captions in the tables of a local folder that holds folders of photos."""
        with self._lock:
            if folder not in self._above:
                self._above[folder] = rows_above(folder, _read)
            return self._above[folder]

    def captions(self, folder: str, style: CaptionStyle) -> tuple[Captions, Listing]:
        """The captions of a folder, and its names."""
        with self._lock:
            if (folder, style) not in self._known:
                try:
                    is_archive = folder.lower().endswith(".zip")
                    listing = _listed(folder, self.budget, is_archive=is_archive)
                except Exception:  # a photo may be readable though its folder cannot be listed
                    listing = Listing(folder)
                listing.is_whole = False
                self._known[folder, style] = _captions_of(listing, style, _read), listing
            return self._known[folder, style]

    def around(self, folder: str, style: CaptionStyle) -> tuple[Captions, dict[str, str]]:
        """The captions in tables of a folder for the photos in its folders, and the URIs of these
        by their names from the tables."""
        with self._lock:
            if (folder, style) not in self._around:
                self._around[folder, style] = self._read_around(folder, style)
            return self._around[folder, style]

    def _read_around(self, folder: str, style: CaptionStyle) -> tuple[Captions, dict[str, str]]:
        tables: dict[str, str] = {}
        photos: dict[str, str] = {}
        with suppress(Exception):  # photos may be readable though the folder cannot be listed
            listing = list_folder(folder, self.budget)
            if style.has_tables:
                tables = {k: uri for k, uri in listing.siblings.items() if is_table_name(k)}
            for inner in listing.folders if tables else ():
                files = list_folder(f"{folder.rstrip('/')}/{inner}", self.budget).files
                photos |= {f"{inner}/{name}": uri for name, uri in files}
        return _captions_of(Listing(folder, siblings={**tables, **photos}), style, _read), photos


def captions_around(
    folders: Sequence[str], style: CaptionStyle, beside: Beside
) -> tuple[dict[str, Caption], list[Fault]]:
    """Captions by URI for the photos in several folders, from tables in the folder that holds them
    all, and the faults of these tables. If it holds more folders of photos, they are warnings."""
    around = {parent_url(folder) for folder in folders}
    if len(folders) < 2 or len(around) > 1:
        return {}, []
    (parent,) = around
    captions, photos = beside.around(parent, style)
    faults = captions.faults.whole()
    found = {}
    for name, uri in photos.items():
        if parent_url(uri) in folders and (caption := captions.of(name)) is not None:
            found[uri] = replace(caption, file=join_url(parent, caption.file))
    if not {parent_url(uri) for uri in photos.values()} <= set(folders):
        faults = [replace(fault, severity="warning") for fault in faults]
    return found, faults


def _listed(url: str, budget: LookBudget, *, is_archive: bool) -> Listing:
    return list_archive(url, budget) if is_archive else list_folder(url, budget)


def find_photos(
    reference: str,
    base: str,
    *,
    with_captions: bool = True,
    style: CaptionStyle | None = None,
    beside: Beside | None = None,
) -> Found:
    """Find the photos that one reference names, in the order of their names.

    Args:
        reference: a folder, glob, zip archive or photo; a path or a URL.
        base: folder or URL that relative paths start from.
        with_captions: also read the caption files beside them.
        style: which files are captions, and how they are read.
        beside: what the references of the manifest share.

    Raises:
        PhotoFault: if there is nothing, no photo, or an unsafe archive.
    """
    if _DRIVE.match(reference) and os.name != "nt":
        raise PhotoFault(
            f"{reference} is a path of Windows, and this machine has no drives",
            "copy the photos here and give their path on this machine, with slashes",
        )
    check_reference(reference, is_remote="://" in base)
    url = join_url(base, reference)
    if "\\" in reference and "://" not in url and os.name != "nt" and not os.path.exists(url):
        return find_photos(
            reference.replace("\\", "/"),
            base,
            with_captions=with_captions,
            style=style,
            beside=beside,
        )
    beside = beside or Beside()
    with _listing_faults(url):
        find = _find_remote if "://" in url else _find_local
        listing = find(url, base, reference, beside.budget)
    if not listing.files:
        raise PhotoFault(*listing.emptiness())
    if len(listing.files) > MAX_PHOTOS:
        raise PhotoFault(f"it holds {len(listing.files)} photos", f"give at most {MAX_PHOTOS}")
    uris = [uri for _, uri in listing.files]
    found = Found(uris, passed_over=listing.passed_over, outside=listing.outside)
    found.masks = listing.masks
    if listing.is_whole and not listing.where.lower().endswith(".zip"):
        found.folder = listing.where.rstrip("/")
    style = style or CaptionStyle()
    found.inner = _inner(listing, style, beside.budget)
    if with_captions:
        _add_captions(found, listing, style, beside)
    return found


def _inner(listing: Listing, style: CaptionStyle, budget: LookBudget) -> list[str]:
    """The folders in a folder of photos that hold photos too, or texts named as its photos."""
    stems = {PurePosixPath(name).stem for name, _ in listing.files}
    found = []
    for folder in listing.folders[:MAX_INNER] if listing.is_whole else ():
        try:
            inside = list_folder(f"{listing.where.rstrip('/')}/{folder}", budget)
        except Exception:  # each filesystem raises errors of its own
            continue
        texts = (name for name in inside.siblings if name.lower().endswith(style.suffixes))
        if inside.files or any(PurePosixPath(name).stem in stems for name in texts):
            found.append(folder)
    return found


def _add_captions(found: Found, listing: Listing, style: CaptionStyle, beside: Beside) -> None:
    with PhotoReader() as reader, _listing_faults(listing.where):
        names = dict(listing.files)
        if listing.siblings:
            captions = _captions_of(listing, style, reader.read)
            photos = (name for name in listing.siblings if is_photo_name(name))
            found.faults += captions.orphans(photos)
        elif listing.is_web:
            return
        else:
            captions, listing = beside.captions(listing.where, style)
        found.faults[:0] = captions.faults.whole()
        for name, uri in names.items():
            if (caption := captions.of(name, found.faults)) is not None:
                found.captions[uri] = replace(caption, file=join_url(listing.where, caption.file))
        if found.masks:
            _use_captioned(found, listing, captions, names)
    if not listing.is_whole:
        # the folder's other captions may be another subject's
        warnings = (replace(fault, severity="warning") for fault in found.faults.whole())
        found.faults = FaultList(warnings)


def _use_captioned(
    found: Found, listing: Listing, captions: Captions, names: dict[str, str]
) -> None:
    """Use the pictures with captions among those named as masks: they are photos."""
    for name in found.masks:
        uri, caption = listing.siblings.get(name), captions.of(name, found.faults)
        if uri is not None and caption is not None:
            names[name] = uri
            found.captions[uri] = replace(caption, file=join_url(listing.where, caption.file))
    found.masks = [name for name in found.masks if name not in names]
    found.uris = [names[name] for name in sorted(names)]


def _read(uri: str) -> bytes:
    with PhotoReader() as reader:
        return reader.read(uri)


def _captions_of(listing: Listing, style: CaptionStyle, read: Callable[[str], bytes]) -> Captions:
    return Captions(
        listing.siblings,
        lambda name: read(listing.siblings[name]),
        style,
        lambda name: join_url(listing.where, name),
    )


# -- what a reference is --------------------------------------------------------------------------


def _single(uri: str) -> Listing:
    """A photo named explicitly: accepted with any suffix."""
    folder, _, name = uri.rpartition("/")
    return Listing(folder or "/", [(name, uri)], is_whole=False)


def _find_local(path: str, base: str, reference: str, budget: LookBudget) -> Listing:
    path = os.path.abspath(os.path.expanduser(path))
    if os.path.isdir(path):
        return list_folder(path, budget)
    if os.path.isfile(path):
        return list_archive(path, budget) if path.lower().endswith(".zip") else _single(path)
    if has_magic(reference):
        is_relative = not reference.startswith(("/", "~"))
        start, pattern = (os.path.abspath(base), reference) if is_relative else ("", path)
        return list_glob(start, pattern, budget)
    if os.path.exists(path):
        raise PhotoFault(f"{path} is neither a file nor a folder", "name photos")
    if (other := _in_other_form(path, budget)) is not None:
        return _find_local(other, base, other, budget)
    raise PhotoFault(f"there is no {path}", _nearest_path(path, base, budget))


def _in_other_form(path: str, budget: LookBudget) -> str | None:
    """An existing path that differs only in Unicode normalisation."""
    if path.isascii():
        return None
    parts = [part for part in path.split("/") if part]
    found = ""
    for part in parts:
        if not os.path.exists(f"{found}/{part}"):
            try:
                names = os.listdir(found or "/")
            except OSError:
                return None
            budget.take(len(names))
            form = unicodedata.normalize("NFC", part)
            same = [name for name in names if unicodedata.normalize("NFC", name) == form]
            if not same:
                return None
            part = same[0]
        found = f"{found}/{part}"
    return found


def _find_remote(url: str, base: str, reference: str, budget: LookBudget) -> Listing:
    if url.startswith("file://"):
        path = url.removeprefix("file://")
        start, named = (text.removeprefix("file://") for text in (base, reference))
        return _find_local(path, start, named, budget)
    if url.startswith("zip://"):
        member, archive = split_member_uri(url)
        return Listing(archive, [(member, url)], is_whole=False)
    if url.startswith(("http://", "https://")):
        plain = url.split("?", 1)[0]
        if plain.lower().endswith(".zip"):
            return list_archive(url, budget)
        return Listing(url, [(plain.rsplit("/", 1)[-1], url)], is_web=True)
    if url.lower().endswith(".zip"):
        return list_archive(url, budget)
    if has_magic(reference):
        filesystem, path = filesystem_of(url)
        # `?` and `[` may be part of a key or mark a pattern
        if not filesystem.exists(path):
            is_relative = "://" not in reference
            start, pattern = (base, reference) if is_relative else ("", url)
            return list_glob(start, pattern, budget)
    if is_photo_name(url):
        return _single(url)
    return list_folder(url, budget)


def _nearest_path(path: str, base: str, budget: LookBudget) -> str:
    """A remedy that names the existing path nearest to a missing one."""
    if not budget.take_suggestion():
        return "correct the path, or put the photos there"
    start = os.path.abspath(base).rstrip("/") + "/"
    parts = path.removeprefix(start).split("/") if path.startswith(start) else []
    several = [one for one in _LIST_MARKS.split(path.removeprefix(start)) if one]
    if len(several) > 1 and all(os.path.exists(start + one) for one in several[:MAX_INNER]):
        return "give them as a list; in one cell of a table, divide them with `|`"
    for count in range(1, min(len(parts), MAX_INNER)):
        if os.path.exists(start + (tail := "/".join(parts[count:]))):
            return f"did you mean `{tail}`? Paths start from the manifest's folder, {start}"
    folder, name = os.path.split(path)
    is_inside = False
    while folder != "/" and not os.path.isdir(folder):
        folder, name = os.path.split(folder)
        is_inside = True
    try:
        with os.scandir(folder) as entries:
            names = (one.name for one in entries if not is_inside or "." not in one.name)
            close = similar_name(name, names)
    except OSError:
        close = None
    if close is not None:
        return f"did you mean {os.path.join(folder, close)}?"
    return f"{folder} holds no `{name}`; correct the path, or put the photos there"


@contextmanager
def _listing_faults(url: str) -> Iterator[None]:
    """Convert any error of a filesystem to a ``PhotoFault``."""
    try:
        yield
    except PhotoFault:
        raise
    except Exception as error:  # each filesystem raises errors of its own
        if (fault := private_host_fault(error)) is not None:
            raise fault from error
        if isinstance(error, FileNotFoundError):
            raise PhotoFault(f"there is no {url}", "correct the address") from error
        raise PhotoFault(
            f"{url} cannot be listed: {words_of(error)}", "correct the address"
        ) from error


def matches(name: str, pattern: str) -> bool:
    """Whether a caption's key matches a photo: its name, path or stem."""
    plain = PurePosixPath(name)
    return pattern in {name, plain.name, plain.stem} or fnmatch(name, f"*/{pattern}")
