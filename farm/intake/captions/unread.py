"""Files beside photos that hold captions, but not in a form that is read.

Owns the warnings about them, so that captions never disappear without a word, and which names are
those of tables. Reads nothing but the bytes that it is given.
"""

from __future__ import annotations

import posixpath
import unicodedata
from collections.abc import Callable, Iterable

from farm.intake.captions.photo_table import caption_key
from farm.intake.errors import PhotoFault
from farm.intake.parsing.text_files import NotText, decoded
from farm.intake.rows import CaptionStyle

__all__ = [
    "TABLE_SUFFIXES",
    "is_table_name",
    "json_sidecars",
    "unread_sidecars",
    "unread_texts",
    "unused_list",
]

TABLE_SUFFIXES = (".csv", ".tsv", ".json", ".jsonl", ".ndjson", ".parquet")
"""Suffixes of tables that may caption the photos beside them."""
FEW_NAMED = 2
"""Fewest photos that a list of captions names; a phone's file of facts names one."""


def is_table_name(name: str) -> bool:
    """Whether a file may be a table of captions, by its suffix."""
    return name.lower().endswith(TABLE_SUFFIXES)


def json_sidecars(names: Iterable[str]) -> list[str]:
    """JSON files named after one photo each, as tools for data sets and phones write them."""
    every = list(names)
    others = [unicodedata.normalize("NFC", name) for name in every if not is_table_name(name)]
    owners = {*others, *(posixpath.splitext(name)[0] for name in others)}
    return [
        name
        for name in every
        if name.lower().endswith(".json")
        and unicodedata.normalize("NFC", posixpath.splitext(name)[0]) in owners
    ]


def unread_sidecars(
    sidecars: list[str], read: Callable[[str], bytes]
) -> tuple[str, None, str, str] | None:
    """File, message and remedy for captions in JSON files beside photos; looks into the first."""
    if not sidecars:
        return None
    try:
        key = caption_key(read(sidecars[0]))
    except PhotoFault:
        return None
    if key is None:
        return None
    files = "1 JSON file" if len(sidecars) == 1 else f"{len(sidecars)} JSON files"
    message = f"captions in {files} beside the photos are not read"
    remedy = f"write each `{key}` into a text file: `photo.txt` beside `photo.jpg`"
    return sidecars[0], None, message, remedy


def unread_texts(names: Iterable[str], style: CaptionStyle) -> tuple[str, None, str, str] | None:
    """File, message and remedy for text files that kohya's default extension leaves out."""
    unread = [name for name in names if name.lower().endswith(style.unread_suffix)]
    if not unread:
        return None
    message = (
        f"{len(unread)} `{style.unread_suffix}` files are not read: `caption_extension` is "
        f"`{style.suffixes[0]}` where it is not given"
    )
    remedy = f'add `caption_extension = "{style.unread_suffix}"` to read them as captions'
    return unread[0], None, message, remedy


def unused_list(data: bytes, photos: Iterable[str]) -> tuple[str, str] | None:
    """Message and remedy for a file that lists photos, but in no form that captions them."""
    try:
        text = unicodedata.normalize("NFC", decoded(data))
    except NotText:
        return None
    names = {unicodedata.normalize("NFC", posixpath.basename(photo)) for photo in photos}
    num_named = sum(name in text for name in names)
    if num_named < FEW_NAMED:
        return None
    return (
        f"it names {num_named} of the photos, but is not read as their captions",
        "make it a table `metadata.csv` with the columns `file_name` and `text`",
    )
