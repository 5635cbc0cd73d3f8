"""Resolves a subject's `photos` and `captions` fields to photos with captions.

Owns the forms that the two fields accept and their faults. ``find.py`` resolves single references.
"""

from __future__ import annotations

import os
import posixpath
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import PurePosixPath
from typing import Literal

from pydantic import ValidationError

from farm.errors import Fault, PhotoFault
from farm.intake.captions.above import unread_above
from farm.intake.captions.files import Caption, Names
from farm.intake.faults import faults_of, similar_name, validated
from farm.intake.photos.find import MAX_PHOTOS, Beside, captions_around, find_photos, matches
from farm.intake.photos.listings import ARCHIVE_SUFFIXES, has_magic
from farm.intake.photos.litter import MASK_FOLDERS
from farm.intake.rows import ManifestRow, Path, join_url, parent_url
from farm.intake.schema import PhotoEntry
from farm.intake.subject import MAX_CAPTION, Photo
from farm.text.listed import listed

__all__ = ["CaptionRule", "ListedPhoto", "class_captions", "list_photos", "list_uris"]

MAX_COMPARISONS = 1_000_000
"""Names that all keys of one `captions` mapping may be compared with."""
MAX_SUGGESTIONS = 20
CaptionRule = Mapping[str, str] | Literal["files", "none"]


@dataclass(frozen=True, slots=True)
class ListedPhoto:
    """A photo, and where it and its caption were written."""

    photo: Photo
    path: Path
    """Path of the reference in its row."""
    caption_file: Caption | None = None
    """The file that the caption came from; None if the manifest contains it."""


def list_photos(
    value: object,
    row: ManifestRow,
    rule: CaptionRule,
    faults: list[Fault],
    beside: Beside | None = None,
) -> list[ListedPhoto]:
    """All photos of a subject, each once, in the order they are written.

    Args:
        value: of the field `photos`.
        rule: of the field `captions`.
        faults: faults are added to it.
        beside: what the references of the manifest share.
    """
    beside = beside or Beside()
    beside.budget.add_subject()
    is_read = rule != "none"
    found: dict[str, ListedPhoto] = {}
    folders: dict[str, Path] = {}
    for path, entry in _entries(value, row, faults, beside):
        for photo in _found(path, entry, row, beside, faults, is_read=is_read, folders=folders):
            uri = photo.photo.uri
            if uri in found:
                message = f"{_short(uri)} is named twice"
                faults.append(row.fault(path, message, "remove one", severity="warning"))
            found.setdefault(uri, photo)
    if is_read:
        _take_from_around(folders, found, row, beside, faults)
    if isinstance(rule, Mapping):
        _apply(rule, found, row, faults)
    return list(found.values())


def list_uris(
    value: object,
    row: ManifestRow,
    path: Path,
    faults: list[Fault],
    beside: Beside | None = None,
) -> tuple[str, ...]:
    """The photos that a list of references resolves to, without captions."""
    uris: dict[str, None] = {}
    beside = beside or Beside()
    for index, reference in enumerate(value if isinstance(value, list) else [value]):
        for place, entry in _entry((*path, index), {"uri": str(reference)}, row, faults):
            for photo in _found(place, entry, row, beside, faults, is_read=False):
                uris.setdefault(photo.photo.uri)
    return tuple(uris)


def class_captions(value: object, row: ManifestRow, beside: Beside) -> list[Caption]:
    """The distinct captions of class images, if the row's form reads them; faults are ignored.

    The class images themselves are listed by ``list_uris``, which reports the faults.
    """
    texts: dict[str, Caption] = {}
    for index, reference in enumerate(value if isinstance(value, list) else [value]):
        path = ("class_images", index)
        if path not in row.styles:
            continue
        for place, entry in _entry(path, {"uri": str(reference)}, row, []):
            for one in _found(place, entry, row, beside, []):
                if one.caption_file is not None:
                    texts.setdefault(one.caption_file.text, one.caption_file)
    return list(texts.values())


def _entries(
    value: object, row: ManifestRow, faults: list[Fault], beside: Beside
) -> Iterator[tuple[Path, PhotoEntry]]:
    """The references under `photos`, each with its path in the row."""
    if value is None:
        yield from _beside_the_manifest(row, faults, beside)
    elif isinstance(value, str):
        yield from _entry(("photos",), {"uri": value}, row, faults)
    elif isinstance(value, dict) and "uri" in value:
        yield from _entry(("photos",), value, row, faults)
    elif isinstance(value, list | dict) and len(value) > MAX_PHOTOS:
        message = f"`photos` names {len(value)} places"
        faults.append(row.fault(("photos",), message, f"give at most {MAX_PHOTOS}"))
    elif isinstance(value, dict) and value:
        for uri, caption in value.items():
            yield from _entry(("photos", uri), {"uri": uri, "caption": caption}, row, faults)
    elif isinstance(value, list) and value:
        for index, item in enumerate(value):
            item = {"uri": item} if isinstance(item, str) else item
            yield from _entry(("photos", index), item, row, faults)
    else:
        what = "empty" if value in ([], {}, "") else "no place of photos"
        remedy = "give a folder or a list"
        if isinstance(value, int | float) and not isinstance(value, bool):
            remedy += f'; a name of digits needs quotes: "{value}"'
        faults.append(row.fault(("photos",), f"`photos` is {what}", remedy))


def _beside_the_manifest(
    row: ManifestRow, faults: list[Fault], beside: Beside
) -> Iterator[tuple[Path, PhotoEntry]]:
    name = str(row.value.get("id", ""))
    folder = join_url(row.base, name)
    if not name:
        return  # its id is missing, which is a fault of its own
    if "://" in folder or os.path.isdir(folder):
        yield ("photos",), PhotoEntry(uri=folder)
        return
    names = _folders_in(row.base)
    if (other := names.find(name)) is not None:
        if unicodedata.normalize("NFC", other) != unicodedata.normalize("NFC", name):
            message = f"the folder `{other}` is taken for `{name}`, whose name differs in case"
            faults.append(row.fault(("photos",), message, "spell both alike", severity="warning"))
        yield ("photos",), PhotoEntry(uri=join_url(row.base, other))
        return
    remedy = "give a folder, a glob, a zip archive, or a list"
    if os.path.isfile(f"{folder}.zip"):
        remedy = f"add `photos` with the archive that is there: `{name}.zip`"
    close = similar_name(name, names) if beside.budget.take_suggestion() else None
    if close is not None:
        remedy = f"did you mean the folder `{close}`? Else {remedy}"
        if close.strip() != close and close.strip() == name:
            remedy = f"rename the folder `{close}`, whose name begins or ends with a blank"
    message = f"`photos` is missing, and there is no folder `{name}` beside the manifest"
    faults.append(row.fault(("photos",), message, remedy))


def _folders_in(base: str) -> Names:
    try:
        return _known_folders(base, os.stat(base).st_mtime_ns)
    except OSError:
        return Names(())


@lru_cache(maxsize=4)
def _known_folders(base: str, changed: int) -> Names:
    """The folders in a folder, listed once for all rows of a manifest."""
    with os.scandir(base) as entries:
        return Names(sorted(entry.name for entry in entries if entry.is_dir()))


def _entry(
    path: Path, value: object, row: ManifestRow, faults: list[Fault]
) -> Iterator[tuple[Path, PhotoEntry]]:
    try:
        yield path, PhotoEntry.model_validate(value)
    except ValidationError as error:
        faults += faults_of(error, row, PhotoEntry, path)


def _found(
    path: Path,
    entry: PhotoEntry,
    row: ManifestRow,
    beside: Beside,
    faults: list[Fault],
    *,
    is_read: bool = True,
    folders: dict[str, Path] | None = None,
) -> Iterator[ListedPhoto]:
    """The photos that one entry resolves to, with their captions if these are read.

    Args:
        folders: the folder that it names, if it is one and captions are read, is added to it.
    """
    style = row.style(path)
    is_read = is_read and entry.caption is None
    try:
        found = find_photos(entry.uri, row.base, with_captions=is_read, style=style, beside=beside)
    except PhotoFault as fault:
        faults.append(row.fault(path, fault.message, fault.remedy))
        return
    faults += found.faults
    if folders is not None and is_read and found.folder:
        folders.setdefault(found.folder, path)
    if found.outside:
        message = f"links in {_short(entry.uri)} lead out of it: {', '.join(found.outside[:3])}"
        remedy = "they are not followed; copy the photos into the folder"
        faults.append(row.fault(path, message, remedy, severity="warning"))
    if found.inner:
        names = ", ".join(found.inner[:3]) + ("…" if len(found.inner) > 3 else "")
        place = entry.uri.removeprefix(f"{row.base}/").rstrip("/")
        message = f"folders in {_short(entry.uri)} are not read: {names}"
        remedy = f"move their files up, or name `{place}/**/*` in `photos` to use all photos below"
        if all(name.lower() in MASK_FOLDERS for name in found.inner):
            remedy = "nothing to do if they hold masks, which are not used"
        faults.append(row.fault(path, message, remedy, severity="warning"))
    if found.masks:
        names = listed(sorted(found.masks), 3)
        message = f"masks in {_short(entry.uri)} are not used: {names}"
        remedy = "nothing to do if they are masks; rename those that are photos of the subject"
        faults.append(row.fault(path, message, remedy, severity="warning"))
    passed_over = [name for name in found.passed_over if not name.lower().endswith(style.suffixes)]
    if passed_over:
        names = ", ".join(passed_over[:3]) + ("…" if len(passed_over) > 3 else "")
        message = f"passed over in {_short(entry.uri)}, no photos by their names: {names}"
        faults.append(row.fault(path, message, _remedy_of_others(passed_over), severity="warning"))
    _drop_long(found.captions, row, faults)
    for uri in found.uris:
        caption = found.captions.get(uri)
        text = entry.caption or (caption.text if caption is not None else style.fallback)
        yield ListedPhoto(Photo(uri, text), path, caption)


def _take_from_around(
    folders: Mapping[str, Path],
    found: dict[str, ListedPhoto],
    row: ManifestRow,
    beside: Beside,
    faults: list[Fault],
) -> None:
    """Give photos in several folders, which have no captions of their own, those of tables in the
    folder that holds these folders. Tables beside the manifest are reported with it."""
    styles = {row.style(path) for path in folders.values()}
    base = row.base if "://" in row.base else os.path.abspath(row.base)
    if len(styles) != 1 or any(parent_url(folder) == base.rstrip("/") for folder in folders):
        return
    style = styles.pop()
    if len(folders) == 1 and style.has_tables:
        faults += _unread_above(next(iter(folders)), found, beside)
    captions, own = captions_around(list(folders), style, beside)
    faults += own
    _drop_long(captions, row, faults)
    for uri, caption in captions.items():
        photo = found.get(uri)
        if photo is None:
            continue
        if photo.caption_file is None and folders.get(parent_url(uri)) == photo.path:
            with_text = replace(photo.photo, caption=caption.text)
            found[uri] = ListedPhoto(with_text, photo.path, caption)


def _unread_above(folder: str, found: Mapping[str, ListedPhoto], beside: Beside) -> Iterator[Fault]:
    """A warning if a table above a local folder captions its photos without captions."""
    silent = (uri for uri, one in found.items() if one.photo.caption is None)
    names = [posixpath.basename(uri) for uri in silent if parent_url(uri) == folder]
    rows = beside.above(parent_url(folder)) if names and "://" not in folder else {}
    if (fault := unread_above(folder, names, rows)) is not None:
        yield fault


def _drop_long(captions: dict[str, Caption], row: ManifestRow, faults: list[Fault]) -> None:
    """Drop captions of files that are too long, with the fault of a manifest's own caption."""
    for uri, caption in list(captions.items()):
        if len(caption.text) <= MAX_CAPTION:
            continue
        written = ManifestRow({"id": row.value.get("id", "")}, caption.file, "", caption.line)
        _, own = validated(PhotoEntry, {"uri": uri, "caption": caption.text}, written)
        faults += own
        del captions[uri]


def _remedy_of_others(names: list[str]) -> str:
    """What to do about files in a folder that are not photos by their names."""
    remedy = "convert them to JPEG or PNG, or move them away"
    if any("." not in posixpath.basename(name) for name in names):
        remedy = (
            "name photos with their suffix, such as .jpg; convert others to JPEG or PNG, or move "
            "them away"
        )
    more = (
        (
            (".xlsx", ".xls", ".xlsm", ".ods", ".numbers"),
            "export tables of captions as `CSV UTF-8`",
        ),
        ((".docx", ".doc", ".rtf", ".odt", ".pages"), "save captions as plain text, `photo.txt`"),
        ((".text", ".tags", ".cap", ".prompt"), "name captions as their photo, `photo.txt`"),
        (ARCHIVE_SUFFIXES, "unpack archives"),
        ((".mov", ".mp4", ".avi", ".mkv", ".webm"), "take still frames of videos"),
        ((".icloud",), "download photos that end in .icloud from iCloud first"),
        ((".lnk", ".webloc"), "copy the photos themselves here: shortcuts do not lead to them"),
        ((".crdownload", ".part", ".download"), "finish downloads"),
    )
    for suffixes, hint in more:
        if any(name.lower().endswith(suffixes) for name in names):
            remedy += f"; {hint}"
    return remedy


def _apply(
    rule: Mapping[str, str], found: dict[str, ListedPhoto], row: ManifestRow, faults: list[Fault]
) -> None:
    """Apply the subject's `captions` mapping to the photos."""
    keys = _CaptionKeys(found)
    for key, text in rule.items():
        try:
            uris = keys.photos(key)
        except PhotoFault as fault:
            faults.append(row.fault(("captions", key), fault.message, fault.remedy))
            return
        for uri in uris:
            photo = replace(found[uri].photo, caption=text)
            found[uri] = ListedPhoto(photo, ("captions", key))
        if not uris:
            close = keys.similar(key)
            remedy = f"did you mean `{close}`?" if close else "remove it, or add the photo"
            faults.append(row.fault(("captions", key), "it captions no photo", remedy))


class _CaptionKeys:
    """Finds the photos that the keys of a `captions` mapping name, with a limit on the work."""

    def __init__(self, uris: Iterable[str]) -> None:
        self._names = {uri: _name(uri) for uri in uris}
        self._by_base: dict[str, list[str]] = {}
        for uri, name in self._names.items():
            plain = PurePosixPath(name)
            for base in {plain.name, plain.stem}:
                self._by_base.setdefault(base, []).append(uri)
        self._shorts = {_short(uri): uri for uri in self._names}
        self._near = Names(self._shorts)
        self._comparisons_left = MAX_COMPARISONS
        self._suggestions_left = MAX_SUGGESTIONS

    def photos(self, key: str) -> list[str]:
        """The photos of a key: a name, a path's end, a stem, or a pattern.

        Raises:
            PhotoFault: if all keys together need too many comparisons.
        """
        base = key.rsplit("/", 1)[-1]
        among = list(self._names) if has_magic(key) else self._by_base.get(base, [])
        self._comparisons_left -= len(among)
        if self._comparisons_left < 0:
            raise PhotoFault("too many patterns for this many photos", "name the photos themselves")
        uris = [uri for uri in among if matches(self._names[uri], key)]
        if not uris and (name := self._near.find(key)) is not None:
            return [self._shorts[name]]  # differs only in case or Unicode normalisation
        return uris

    def similar(self, key: str) -> str | None:
        """A photo's name similar to a key that names none; only for the first such keys."""
        self._suggestions_left -= 1
        return similar_name(key, self._shorts) if self._suggestions_left >= 0 else None


def _name(uri: str) -> str:
    """The path of a photo, without the archive around a member."""
    name = uri.removeprefix("zip://").split("::", 1)[0]
    # elsewhere a question mark is part of the name
    return name.split("?", 1)[0] if name.startswith(("http://", "https://")) else name


def _short(uri: str) -> str:
    return _name(uri).rstrip("/").rsplit("/", 1)[-1]
