"""Captions from files beside photos: ``photo.txt``, ``photo.caption``, ``metadata.csv``.

Owns which file wins (the photo's own over the folder's), how names are matched, and the faults of
captions that belong to no photo. ``prompts/judge.py`` checks whether a caption names the subject.
"""

from __future__ import annotations

import posixpath
import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Literal
from urllib.parse import unquote

from farm.errors import MAX_SUBJECT_FAULTS, Fault, FaultList, PhotoFault
from farm.intake.captions.photo_table import (
    MAX_LISTED_ROWS,
    PhotoRow,
    PhotoTable,
    column_faults,
    is_image_name,
    read_photo_table,
)
from farm.intake.captions.unread import (
    TABLE_SUFFIXES,
    is_table_name,
    sidecars_among,
    unread_sidecars,
    unread_texts,
    unused_list,
)
from farm.intake.faults import similar_name
from farm.intake.parsing.text_files import TEXT_REMEDY, NotText, decoded
from farm.intake.rows import CaptionStyle

__all__ = ["TABLE_SUFFIXES", "Caption", "Captions", "Names", "is_table_name"]

CONTROL = re.compile(r"[\x00-\x1f\x7f]")
METADATA_STEM = "metadata"
"""A table of this name is meant for the photos beside it, as for Hugging Face's imagefolder."""
MAX_CAPTION_BYTES = 64 * 2**10
"""Maximum size of one sidecar file; the text encoder reads 77 tokens."""
MAX_TABLES = 20
"""Tables of captions read in one folder or archive."""
MAX_TABLE_BYTES = 64 * 2**20
"""Maximum size of a table of captions: ten thousand photos with a page of text each."""
CAPTION_WORDS = frozenset(("caption", "captions", "prompt", "prompts"))
"""Names of texts that are captions, whatever the photos are called."""
FEW_ORPHANS = 2
"""Minimum number of texts without a photo that count as captions; fewer may be the user's notes."""


@dataclass(frozen=True, slots=True)
class Caption:
    """A caption and where it was written."""

    text: str
    file: str
    line: int


class Names:
    """File names, matched with normalised Unicode, and without case if there is no exact match."""

    def __init__(self, names: Iterable[str]) -> None:
        self._exact: dict[str, str] = {}
        self._folded: defaultdict[str, list[str]] = defaultdict(list)
        for name in names:
            self._exact.setdefault(_nfc(name), name)
            self._folded[_nfc(name).casefold()].append(name)

    def __len__(self) -> int:
        return len(self._exact)

    def __iter__(self) -> Iterator[str]:
        return iter(self._exact.values())

    def find(self, name: str) -> str | None:
        """The matching name, or None."""
        if (found := self._exact.get(_nfc(name))) is not None:
            return found
        near = self._folded.get(_nfc(name).casefold(), [])
        return near[0] if len(near) == 1 else None


def _nfc(name: str) -> str:
    return unicodedata.normalize("NFC", name)


class Captions:
    """The captions of one folder or archive. Tables are read at once; several threads may ask."""

    def __init__(
        self,
        names: Iterable[str],
        read: Callable[[str], bytes],
        style: CaptionStyle | None = None,
        place: Callable[[str], str] = str,
    ) -> None:
        """Look for captions among the names of a folder.

        Args:
            names: paths from the folder, including photos.
            read: returns the bytes of a name.
            style: which files are captions, and how they are read.
            place: a file's name in faults, from its path.
        """
        every = sorted(names)
        self._style = style or CaptionStyle()
        self._read, self._place = read, place
        suffixes = self._style.suffixes
        self._texts = Names(name for name in every if name.lower().endswith(suffixes))
        self._others = Names(name for name in every if not name.lower().endswith(suffixes))
        self._listed: dict[str, Caption] = {}
        self.faults = FaultList(limit=MAX_SUBJECT_FAULTS)
        """Of tables, and of files that are not read."""
        sidecars: list[str] = []
        if self._style.has_tables:
            sidecars = sidecars_among(every)
            tables = [name for name in every if is_table_name(name) and name not in sidecars]
            tables.sort(key=lambda one: (not _is_metadata(one), one))
            for name in tables[:MAX_TABLES]:
                self._take_table(name)
            if len(tables) > MAX_TABLES:
                message = f"there are {len(tables)} tables here; the first {MAX_TABLES} are read"
                remedy = "keep the captions in one table"
                self.add_fault(tables[MAX_TABLES], None, message, remedy, is_warning=True)
        self._report_unread(every, sidecars)

    def of(self, photo: str, faults: FaultList | None = None) -> Caption | None:
        """The caption of a photo, by its path from the folder; its faults are added to the list."""
        found = faults if faults is not None else FaultList()
        return self._beside(photo, found) or self._listed.get(photo)

    def orphans(self, photos: Iterable[str]) -> list[Fault]:
        """A warning of caption files that belong to none of the photos of the folder."""
        every = list(photos)
        owned = {text for photo in every for text in self._text_names(photo)}
        orphans = [name for name in self._texts if name not in owned]
        stems = {_nfc(posixpath.splitext(photo)[0]) for photo in every}
        bare = {posixpath.basename(stem) for stem in stems}
        # a single text is meant as a caption too: `0.caption.txt` beside `0.png`, or `texts/0.txt`
        is_meant = any(
            name.endswith(".caption")
            or _stem(name, 2) in stems
            or posixpath.basename(_stem(name, 1)) in bare
            for name in orphans
        )
        if len(orphans) < FEW_ORPHANS and not is_meant:
            with suppress(PhotoFault):
                found = (self._unused(name, self._read(name)) for name in orphans)
                if unused := [fault for fault in found if fault is not None]:
                    return unused
            if not any(_stem(name, 1).casefold() in CAPTION_WORDS for name in orphans):
                return []
        names = ", ".join(orphans[:3]) + ("…" if len(orphans) > 3 else "")
        count = f"{len(orphans)} caption file{'s' if len(orphans) > 1 else ''}"
        remedy = "put each beside its photo, with its name: `photo.txt` beside `photo.jpg`"
        return [self._fault(orphans[0], None, f"{count} without a photo: {names}", remedy, True)]

    def _text_names(self, photo: str) -> Iterator[str]:
        if not self._texts:
            return
        stem = posixpath.splitext(photo)[0]
        for suffix in self._style.suffixes:
            for wanted in (f"{stem}{suffix}", f"{photo}{suffix}"):
                if (name := self._texts.find(wanted)) is not None:
                    yield name

    def _beside(self, photo: str, faults: FaultList) -> Caption | None:
        for name in self._text_names(photo):
            try:
                text = decoded(self._read(name)[:MAX_CAPTION_BYTES], TEXT_REMEDY)
            except (PhotoFault, NotText) as fault:
                line = fault.line if isinstance(fault, NotText) else None
                faults.append(self._fault(name, line, fault.message, fault.remedy))
                continue
            lines = [words for line in text.splitlines() if (words := " ".join(line.split()))]
            if not lines:
                continue
            if CONTROL.search(" ".join(lines)):
                message, remedy = "it holds control characters", "save it as plain text"
                faults.append(self._fault(name, None, message, remedy))
                continue
            if not _nfc(photo).startswith(_nfc(posixpath.splitext(name)[0])):
                message = f"it is taken as the caption of {photo}, whose name differs in case"
                faults.append(self._fault(name, None, message, "spell both names alike", True))
            if len(lines) > 1:
                faults.append(self._lines_fault(name, len(lines)))
            words = lines[0] if self._style.takes_first_line else " ".join(lines)
            return Caption(self._style.finished(words), name, 1)
        return None

    def _lines_fault(self, name: str, count: int) -> Fault:
        if self._style.takes_first_line:
            message = f"it has {count} lines; the first is the caption, as for kohya's scripts"
        else:
            message = f"its {count} lines are joined into one caption"
        return self._fault(name, 1, message, "write the caption on one line", True)

    # -- tables -----------------------------------------------------------------------------------

    def _take_table(self, name: str) -> None:
        is_meant = _is_metadata(name)
        try:
            data = self._read(name)
        except PhotoFault as fault:
            self.add_fault(name, None, fault.message, fault.remedy)
            return
        if len(data) > MAX_TABLE_BYTES:
            message = f"it is larger than {MAX_TABLE_BYTES // 2**20} MiB"
            self.add_fault(
                name, None, message, "keep the photos' captions alone", is_warning=not is_meant
            )
            return
        table = read_photo_table(data, self._place(name))
        is_used = table.names_photos and table.has_captions
        if not is_used and (not is_meant or table.is_other):
            if (unused := self._unused(name, data)) is not None:
                self.faults.append(unused)
            return
        self.faults += table.faults
        if self._is_fit(table, name):
            _TableMatch(self, table, name).take()

    def _is_fit(self, table: PhotoTable, name: str) -> bool:
        """Whether a table names photos and holds captions; reports what it lacks."""
        if not table.rows:
            if not table.faults:
                self.add_fault(name, None, "it holds no rows", "remove it", is_warning=True)
            return False
        columns = ", ".join(f"`{column}`" for column in table.columns.values()) or "none"
        if not table.names_photos:
            message = f"no column names the photos; its columns are {columns}"
            self.add_fault(name, 1, message, "name the column of the photos `file_name`")
            return False
        if not table.has_captions:
            message = f"no column holds captions; its columns are {columns}"
            remedy = "name the column of the captions `text`"
            self.add_fault(name, 1, message, remedy, is_warning=True)
            return False
        return True

    def _unused(self, name: str, data: bytes) -> Fault | None:
        photos = [one for one in self._others if not is_table_name(one)]
        unused = unused_list(data[:MAX_CAPTION_BYTES], photos)
        return None if unused is None else self._fault(name, None, *unused, is_warning=True)

    # -- faults -----------------------------------------------------------------------------------

    def _fault(
        self, name: str, line: int | None, message: str, remedy: str, is_warning: bool = False
    ) -> Fault:
        severity: Literal["error", "warning"] = "warning" if is_warning else "error"
        return Fault(self._place(name), message, remedy, line, "caption", severity=severity)

    def add_fault(
        self, name: str, line: int | None, message: str, remedy: str, *, is_warning: bool = False
    ) -> None:
        """Add a fault of one file, which is named by its path in the folder."""
        self.faults.append(self._fault(name, line, message, remedy, is_warning))

    def _report_unread(self, every: list[str], sidecars: list[str]) -> None:
        photos = [name for name in self._others if is_image_name(name)]
        found = unread_texts(every, photos, self._style)
        if found is None and not any(True for _ in self._texts):
            found = unread_sidecars(sidecars, self._read)
        if found:
            self.add_fault(*found, is_warning=True)


class _TableMatch:
    """Matches the rows of one table to the photos that they name."""

    def __init__(self, captions: Captions, table: PhotoTable, name: str) -> None:
        self._owner, self._table, self._name = captions, table, name
        self._names = captions._others
        self._folder = posixpath.dirname(name)
        self._stems: defaultdict[str, list[str]] = defaultdict(list)
        for one in self._names:
            self._stems[_nfc(posixpath.splitext(one)[0])].append(one)
        files = [_plain(file) for row in table.rows for file in row.files]
        folders = {posixpath.dirname(file) for file in files}
        self._shared = folders.pop() if len(folders) == 1 else ""
        """The folder that all rows name, if they name the same one."""
        self._has_reported_shared = False

    def take(self) -> None:
        """Apply every row; report those that caption no photo."""
        lost = [
            (row, file)
            for row in self._table.rows
            for file in row.files or ("",)
            if not self._take(row, file)
        ]
        is_meant = _is_metadata(self._name)
        for row, *words, is_warning in column_faults(self._table.rows):
            self._owner.add_fault(
                self._name, row.line, *words, is_warning=is_warning or not is_meant
            )
        for row, file in lost[:MAX_LISTED_ROWS]:
            message = f"`{file}` is not a photo here, so its row captions none"
            if not file:
                message = "it names no photo"
            self._owner.add_fault(
                self._name, row.line, message, self._remedy(file), is_warning=not is_meant
            )
        if len(lost) > MAX_LISTED_ROWS:
            message = f"{len(lost) - MAX_LISTED_ROWS} more rows from here on caption no photo"
            line = lost[MAX_LISTED_ROWS][0].line
            remedy = "correct the file names, or remove the rows"
            self._owner.add_fault(self._name, line, message, remedy, is_warning=not is_meant)

    def _take(self, row: PhotoRow, file: str) -> bool:
        photo = self._found(_plain(file), row.line) if file else None
        if photo is None:
            # no caption is lost with a row that has none
            return not row.caption
        if not row.caption:
            return True
        if CONTROL.search(row.caption):
            message, remedy = (
                f"the caption of `{file}` holds control characters",
                "write plain text",
            )
            self._owner.add_fault(self._name, row.line, message, remedy)
            return True
        if row.choices > 1:
            message = f"it has {row.choices} captions; the first is taken"
            self._owner.add_fault(
                self._name, row.line, message, "give each photo one caption", is_warning=True
            )
        text = self._owner._style.finished(row.caption)
        caption = Caption(text, self._name, row.line)
        first = self._owner._listed.setdefault(photo, caption)
        if first.text != text:
            message = f"`{file}` has another caption in {first.file}, line {first.line}, which wins"
            self._owner.add_fault(self._name, row.line, message, "remove one", is_warning=True)
        return True

    def _found(self, file: str, line: int) -> str | None:
        path = posixpath.normpath(posixpath.join(self._folder, file))
        photo = self._names.find(path)
        if photo is not None:
            if _nfc(photo) != _nfc(path):
                message = f"`{file}` is taken for {photo}, whose name differs in case"
                self._owner.add_fault(
                    self._name, line, message, "spell both names alike", is_warning=True
                )
            return photo
        if (stems := self._stems.get(_nfc(path), [])) and not is_image_name(path):
            return stems[0] if len(stems) == 1 else None
        plain = unquote(file)
        return self._without_folder(file) or (self._found(plain, line) if plain != file else None)

    def _without_folder(self, file: str) -> str | None:
        """A photo by its bare name, if all rows name one folder that does not exist here, or this
        row names a folder of this one's name on another machine."""
        around = posixpath.dirname(file)
        own = posixpath.basename(posixpath.dirname(self._owner._place(self._name)))
        is_own = bool(own) and posixpath.basename(around) == own
        if not self._shared and not is_own:
            return None
        name = posixpath.join(self._folder, posixpath.basename(file))
        photo = self._names.find(name)
        if photo is not None and not self._has_reported_shared:
            self._has_reported_shared = True
            message = f"its file names are read without their folder `{self._shared or around}`"
            remedy = "write them as seen from the table"
            self._owner.add_fault(self._name, None, message, remedy, is_warning=True)
        return photo

    def _remedy(self, file: str) -> str:
        photos = (one for one in self._names if not is_table_name(one))
        names = (posixpath.relpath(one, self._folder or ".") for one in photos)
        if (close := similar_name(_plain(file), names)) is not None:
            return f"did you mean `{close}`?"
        return "correct the name, add the photo, or remove the row"


def _stem(name: str, count: int) -> str:
    """A name without its last suffixes."""
    for _ in range(count):
        name = posixpath.splitext(name)[0]
    return _nfc(name)


def _plain(file: str) -> str:
    """A file name with slashes, to compare paths of other systems."""
    return file.replace("\\", "/").removeprefix("file://")


def _is_metadata(name: str) -> bool:
    return PurePosixPath(name).stem.casefold() == METADATA_STEM
