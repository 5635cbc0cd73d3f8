"""Files beside photos that hold captions, but not in a form that is read.

Owns the warnings about them, so that captions never disappear without a word, and which names are
those of tables. Reads nothing but the bytes that it is given.
"""

from __future__ import annotations

import posixpath
import re
import unicodedata
from collections.abc import Callable, Iterable

from farm.errors import PhotoFault
from farm.intake.captions.photo_table import caption_key, is_image_name
from farm.intake.parsing.text_files import NotText, decoded
from farm.intake.rows import CaptionStyle

__all__ = [
    "TABLE_SUFFIXES",
    "is_table_name",
    "sidecars_among",
    "unread_sidecars",
    "unread_texts",
    "unused_list",
]

TABLE_SUFFIXES = (".csv", ".tsv", ".json", ".jsonl", ".ndjson", ".parquet")
"""Suffixes of tables that may caption the photos beside them."""
TEXT_SUFFIXES = (".txt", ".caption")
"""Suffixes of texts that other tools write as captions."""
_YAML_CAPTION = re.compile(rb"^[\"']?(main_prompt|caption|prompt|text|tags)[\"']? *:", re.MULTILINE)
FEW_NAMED = 2
"""Fewest photos that a list of captions names; a phone's file of facts names one."""


def is_table_name(name: str) -> bool:
    """Whether a file may be a table of captions, by its suffix."""
    return name.lower().endswith(TABLE_SUFFIXES)


def sidecars_among(names: Iterable[str]) -> list[str]:
    """JSON and YAML files named after one photo each, as tools for data sets and phones write
    them."""
    every = list(names)
    files = (name for name in every if not is_table_name(name) and not _is_sidecar_name(name))
    others = [unicodedata.normalize("NFC", name) for name in files]
    owners = {*others, *(posixpath.splitext(name)[0] for name in others)}
    return [
        name
        for name in every
        if _is_sidecar_name(name)
        and unicodedata.normalize("NFC", posixpath.splitext(name)[0]) in owners
    ]


def _is_sidecar_name(name: str) -> bool:
    return name.lower().endswith((".json", ".yaml", ".yml"))


def unread_sidecars(
    sidecars: list[str], read: Callable[[str], bytes]
) -> tuple[str, None, str, str] | None:
    """File, message and remedy for captions in such files beside photos; looks into the first."""
    if not sidecars:
        return None
    try:
        data = read(sidecars[0])
    except PhotoFault:
        return None
    is_json = sidecars[0].lower().endswith(".json")
    match = None if is_json else _YAML_CAPTION.search(data)
    key = caption_key(data) if is_json else match and match[1].decode()
    if key is None:
        return None
    form = "JSON" if is_json else "YAML"
    files = f"1 {form} file" if len(sidecars) == 1 else f"{len(sidecars)} {form} files"
    message = f"captions in {files} beside the photos are not read"
    remedy = f"write each `{key}` into a text file: `photo.txt` beside `photo.jpg`"
    return sidecars[0], None, message, remedy


def unread_texts(
    names: Iterable[str], photos: Iterable[str], style: CaptionStyle
) -> tuple[str, None, str, str] | None:
    """File, message and remedy for texts named as photos that the style does not read, or of which
    another text of the same photo is read instead."""
    stems: dict[str, list[str]] = {}
    for name in names:
        stem, suffix = posixpath.splitext(name)
        if suffix.lower() in TEXT_SUFFIXES or suffix.lower() in style.suffixes:
            stems.setdefault(stem, []).append(name)
    read, unread = [], []
    for photo in photos:
        for stem in (posixpath.splitext(photo)[0], photo):
            texts = sorted(stems.get(stem, []), key=lambda name: _rank(name, style))
            chosen = bool(texts) and _rank(texts[0], style) < len(style.suffixes)
            read += texts[:chosen]
            unread += texts[chosen:]
    unread = list(dict.fromkeys(unread))
    if not unread:
        return None
    suffix = posixpath.splitext(unread[0])[1]
    count = f"{len(unread)} `{suffix}` file{'s' if len(unread) > 1 else ''}"
    verb = "are" if len(unread) > 1 else "is"
    if style.unread_suffix and suffix.lower() == style.unread_suffix:
        message = (
            f"{count} {verb} not read: `caption_extension` is `{style.suffixes[0]}` where it is "
            "not given"
        )
        remedy = f'add `caption_extension = "{style.unread_suffix}"` to read them as captions'
    elif not style.has_tables:
        if read:
            return None  # the extension was chosen among those that are there
        message = f"{count} {verb} not read: `caption_extension` is `{style.suffixes[0]}`"
        remedy = f'write `caption_extension = "{suffix}"` to read them as captions'
    else:
        other = posixpath.splitext(read[0])[1] if read else style.suffixes[0]
        message = f"{count} {verb} not read: the `{other}` file of the same name wins"
        remedy = f"keep one kind of captions; to use the `{suffix}` files, move the others away"
    return unread[0], None, message, remedy


def _rank(name: str, style: CaptionStyle) -> int:
    """The place of a text's suffix among those that a style reads; their number if it is none."""
    suffix = posixpath.splitext(name)[1].lower()
    return style.suffixes.index(suffix) if suffix in style.suffixes else len(style.suffixes)


def unused_list(data: bytes, photos: Iterable[str]) -> tuple[str, str] | None:
    """Message and remedy for a file that lists photos, but in no form that captions them."""
    try:
        text = unicodedata.normalize("NFC", decoded(data))
    except NotText:
        return None
    names = {unicodedata.normalize("NFC", posixpath.basename(photo)) for photo in photos}
    num_named = sum(
        name in text or f'"{posixpath.splitext(name)[0]}"' in text
        for name in names
        if is_image_name(name)
    )
    if num_named < FEW_NAMED:
        return None
    return (
        f"it names {num_named} of the photos, but is not read as their captions",
        "make it a table `metadata.csv` with the columns `file_name` and `text`",
    )
