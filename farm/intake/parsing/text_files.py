"""Text of files that other programs wrote: encodings, and detection of files that are not text.

Owns the decoding of text: UTF-8 with or without a byte order mark, and UTF-16, as spreadsheets and
editors save them. Anything else is refused, with its actual form in the message.
"""

from __future__ import annotations

import codecs
import io
import zipfile

__all__ = ["TEXT_REMEDY", "NotText", "decoded", "foreign_form", "is_parquet"]

_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    # UTF-32's mark begins with UTF-16's
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_AS_CSV = "save it as `CSV UTF-8` in the spreadsheet program"
_TABLE_REMEDY = "save it as UTF-8 (in Excel: the file type `CSV UTF-8`)"
TEXT_REMEDY = "save it as UTF-8, with the option of that name in the editor"
_FORMS = (
    (b"\xd0\xcf\x11\xe0", "an Excel workbook (.xls)", _AS_CSV),
    (b"PAR1", "a Parquet table", "name it `….parquet`"),
    (b"%PDF", "a PDF document", "save it as plain text"),
    (b"{\\rtf", "a rich text document (RTF)", "save it as plain text"),
    (b"\x1f\x8b", "compressed with gzip", "unpack it"),
    (b"7z\xbc\xaf", "a 7z archive", "unpack it"),
    (b"Rar!", "a RAR archive", "unpack it"),
    (b"SQLite format 3", "an SQLite database", "export the table as CSV"),
    (b"\xff\xd8\xff", "a JPEG photo", "give the table or text itself"),
    (b"\x89PNG", "a PNG picture", "give the table or text itself"),
    (b"<?xml", "an XML file, as old spreadsheets are", _AS_CSV),
    (b"version https://git-lfs", "a Git LFS pointer", "run `git lfs pull`"),
    (b"<!DOCTYPE html", "a web page", "download the file itself"),
    (b"<!doctype html", "a web page", "download the file itself"),
    (b"<html", "a web page", "download the file itself"),
)
MAX_DIRECTORY_BYTES = 2**20
"""Maximum size of the directory of an archive that is looked into."""
_INSIDE = (
    ("xl/", "an Excel workbook (.xlsx)", _AS_CSV),
    ("word/", "a Word document (.docx)", "save it as plain text in UTF-8"),
    ("Index/", "a Numbers or Pages document", "export it as CSV or plain text"),
    ("content.xml", "an OpenDocument file (.ods, .odt)", _AS_CSV),
)
"""Forms of zip archives, by the names of their members."""


class NotText(ValueError):
    """Bytes that are not readable text; with what they are and the remedy."""

    def __init__(self, message: str, remedy: str, line: int | None = None) -> None:
        super().__init__(message, remedy, line)
        self.message, self.remedy, self.line = message, remedy, line


def decoded(data: bytes, remedy: str = _TABLE_REMEDY) -> str:
    """The text of a file in UTF-8 or UTF-16, without its byte order mark.

    Args:
        remedy: for text in another encoding.

    Raises:
        NotText: if it is in another encoding or another form.
    """
    if (form := foreign_form(data)) is not None:
        raise NotText(f"it is {form[0]}, not text", form[1])
    encoding = _encoding(data)
    try:
        return data.decode(encoding).removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        width = {"utf-8": 1, "utf-32": 4}.get(encoding, 2)
        line = data.count(b"\n", 0, error.start) + 1 if width == 1 else None
        raise NotText("it is not UTF-8 text", remedy, line) from error


def _encoding(data: bytes) -> str:
    for mark, name in _MARKS:
        if data.startswith(mark):
            return name
    head = data[:4096]
    head = head[: len(head) // 2 * 2]
    if head:
        # Latin text in UTF-16 has a zero in every second byte; UTF-8 text has none at all
        even, odd = head[::2].count(0), head[1::2].count(0)
        if odd > len(head) // 4 and not even:
            return "utf-16-le"
        if even > len(head) // 4 and not odd:
            return "utf-16-be"
    return "utf-8"


def is_parquet(data: bytes) -> bool:
    """Whether a file is Parquet by its content."""
    return data.startswith(b"PAR1")


def foreign_form(data: bytes) -> tuple[str, str] | None:
    """The form of a file that is not text, and the remedy; None if it may be text."""
    for signature, what, remedy in _FORMS:
        if data.startswith(signature):
            return what, remedy
    if not data.startswith(b"PK\x03\x04"):
        return None
    names = _member_names(data)
    for start, what, remedy in _INSIDE:
        if any(name.startswith(start) for name in names):
            return what, remedy
    return "a zip archive", "unpack it"


class _BoundedReads(io.BytesIO):
    """An archive whose directory, which ``zipfile`` reads in one call, is not read if it is large:
    its entries would take ten times its size."""

    def read(self, size: int | None = -1) -> bytes:
        if size is not None and size > MAX_DIRECTORY_BYTES:
            raise zipfile.BadZipFile("its directory is too large")
        return super().read(size)


def _member_names(data: bytes) -> list[str]:
    """The names of a zip archive's members; none if it is damaged, or has very many."""
    try:
        with zipfile.ZipFile(_BoundedReads(data)) as archive:
            return archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return []
