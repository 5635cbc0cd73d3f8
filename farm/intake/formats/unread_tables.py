"""Tables beside folders of photos that are not read, although they hold captions or subjects.

Owns the warnings about them, so that captions never disappear without a word.
"""

from __future__ import annotations

import posixpath
from collections.abc import Collection, Iterator

from farm.errors import Fault
from farm.intake.captions.photo_table import MAX_LISTED_ROWS, PhotoTable, read_photo_table
from farm.intake.captions.unread import is_table_name
from farm.intake.formats.contents import is_document
from farm.intake.parsing.text_files import NotText, decoded
from farm.intake.photos.files import open_local
from farm.intake.photos.uris import filesystem_of

__all__ = ["unread_tables"]

MAX_TABLES = 20
"""Tables of one folder that are looked into."""
MAX_BYTES = 2**22
"""Of each table: this concerns only warnings."""
DOCUMENT_SUFFIXES = (".yaml", ".yml", ".toml", ".json")
SUBJECT_STEMS = frozenset(("subject", "subjects", "manifest"))


def unread_tables(folder: str, names: Collection[str], used: Collection[str]) -> Iterator[Fault]:
    """Warnings about the tables of captions or subjects in a folder of folders.

    Args:
        folder: an absolute path or a URL.
        names: of its files.
        used: those of them that are read, or reported elsewhere.
    """
    base = folder.rstrip("/")
    others = sorted(name for name in names if name not in used and not name.startswith("."))
    for name in [one for one in others if is_table_name(one)][:MAX_TABLES]:
        table = read_photo_table(_head(f"{base}/{name}"), name)
        columns = table.columns.keys()
        if table.names_photos and table.has_captions and table.rows:
            yield from _unread_rows(f"{base}/{name}", table)
        elif not used and columns & {"subject", "id"} and columns & {"class", "class_noun"}:
            yield _warning(
                f"{base}/{name}",
                "it is a table of subjects, but not read under this name",
                f"rename it subjects.csv, or name the file itself, {base}/{name}"
                if name.lower().endswith((".csv", ".tsv"))
                else f"name the file itself, {base}/{name}",
            )
    documents = [name for name in others if name.lower().endswith(DOCUMENT_SUFFIXES)]
    for name in [] if used else documents[:MAX_TABLES]:
        if _is_document(f"{base}/{name}"):
            message = "it is a manifest, but not read under this name"
            yield _warning(f"{base}/{name}", message, f"name the file itself, {base}/{name}")
    for name in others:
        stem, suffix = posixpath.splitext(name.casefold())
        if not used and stem in SUBJECT_STEMS and suffix == ".txt":
            message = "it is not read: a table of subjects ends in .csv"
            yield _warning(f"{base}/{name}", message, "rename it subjects.csv")


def _is_document(url: str) -> bool:
    try:
        return is_document(decoded(_head(url)))
    except NotText:
        return False


def _unread_rows(file: str, table: PhotoTable) -> Iterator[Fault]:
    """A warning for each row with a caption; for the rows beyond a limit, one for all of them."""
    name = posixpath.basename(file)
    remedy = (
        "put the rows of each subject into a metadata.csv in the folder of its photos, with the "
        "names as seen from there"
    )
    rows = [row for row in table.rows if row.caption]
    for row in rows[:MAX_LISTED_ROWS]:
        message = (
            f"its captions are not read, here that of `{', '.join(row.files)}`: {name} is beside "
            "the folders of the photos"
        )
        yield _warning(file, message, remedy, row.line)
    if len(rows) > MAX_LISTED_ROWS:
        message = f"{len(rows) - MAX_LISTED_ROWS} more rows from here on caption no photo"
        yield _warning(file, message, remedy, rows[MAX_LISTED_ROWS].line)


def _head(url: str) -> bytes:
    """The first bytes of a table; empty if it cannot be read."""
    try:
        if "://" not in url:
            with open_local(url, "") as file:
                return file.read(MAX_BYTES)
        filesystem, path = filesystem_of(url)
        with filesystem.open(path, "rb") as file:
            return bytes(file.read(MAX_BYTES))
    except Exception:  # each filesystem raises errors of its own
        return b""


def _warning(file: str, message: str, remedy: str, line: int | None = None) -> Fault:
    return Fault(file, message, remedy, line, severity="warning")
