"""Selects the reader of a manifest: by its suffix, or by the contents of a folder.

Owns opening the file and the head-plus-table form, in which a YAML or JSON head names a table of
subjects.
"""

from __future__ import annotations

import os
import posixpath
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import chain
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from farm.errors import FarmError, Fault, ManifestError, PhotoFault
from farm.intake.captions.photo_table import is_image_name, is_photo_manifest, photo_row
from farm.intake.faults import similar_name
from farm.intake.formats.concepts import CONCEPTS_NAME, is_concept, read_concepts
from farm.intake.formats.contents import is_dataset_config, is_yaml
from farm.intake.formats.folder import (
    MANIFEST_NAMES,
    TABLE_NAMES,
    data_folder,
    read_folder,
    train_split,
    unused_class_images,
)
from farm.intake.formats.imagefolder import read_imagefolder
from farm.intake.formats.kohya import read_kohya, read_kohya_config
from farm.intake.formats.other_tools import concept_of, settings_of
from farm.intake.formats.plain_rows import plain_rows
from farm.intake.formats.tables import is_table, read_csv, read_parquet
from farm.intake.formats.unread_tables import unread_tables
from farm.intake.formats.web import can_seek, held, is_web, remedy_of_sheet, suffix_of
from farm.intake.parsing.json import is_json_lines, read_json, read_jsonl
from farm.intake.parsing.text_files import TEXT_REMEDY, NotText, decoded, is_parquet
from farm.intake.parsing.yaml import read_yaml
from farm.intake.photos.budget import LookBudget
from farm.intake.photos.files import open_local, words_of
from farm.intake.photos.listings import (
    ARCHIVE_SUFFIXES,
    is_photo_name,
    list_folder,
    subfolders,
)
from farm.intake.photos.litter import is_litter
from farm.intake.photos.uris import check_reference, filesystem_of, private_host_fault
from farm.intake.rows import ManifestRow, ManifestRows, join_url, parent_url
from farm.retries import remedy_of_reading

__all__ = ["MAX_MANIFEST_BYTES", "open_rows"]

MAX_MANIFEST_BYTES = 64 * 2**20
"""Maximum size of a text manifest; half a million subjects fit. Parquet is read in batches."""

MAX_HEAD = 10_000
"""Characters of a text by which it is recognised as a table."""
_OF_ONE = frozenset(("id", "class_noun", "photos"))
_ONE_REMEDY = "put it into a list: `- id: …` and the rest below it, or in JSON inside `[` and `]`"
TABLES = frozenset((".csv", ".tsv"))
WORKBOOK_SUFFIXES = frozenset((".xlsx", ".xls", ".xlsm", ".ods", ".numbers"))
TextReader = Callable[[str, str, str], ManifestRows]


def _read_lines(text: str, file: str, base: str) -> ManifestRows:
    return read_jsonl(text.split("\n"), file, base)


TEXT_SUFFIXES = (".yaml", ".yml", ".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".toml")
FORM_SUFFIXES = frozenset((*TEXT_SUFFIXES, *WORKBOOK_SUFFIXES, ".parquet"))


def open_rows(url: str) -> ManifestRows:
    """Open a manifest: a file of any known form, or a folder of folders.

    Raises:
        ManifestError: if it is missing, not text, or of an unknown form.
    """
    with _reachable(url):
        return plain_rows(_whole(url))


def _whole(url: str) -> ManifestRows:
    """The rows of a manifest and of the table that its head names."""
    rows = _open(url, (*MANIFEST_NAMES, CONCEPTS_NAME))
    if (refusal := settings_of(rows.head.value)) is not None:
        raise ManifestError(f"{url}: {refusal[0]}", refusal[1])
    if "subjects" not in rows.head.value and len(rows.head.value.keys() & _OF_ONE) > 1:
        rows.faults.append(rows.head.fault((), "it is a single subject, not a list", _ONE_REMEDY))
        return replace(rows, head=replace(rows.head, value={}))
    table = rows.head.value.get("subjects")
    if isinstance(table, dict):
        message, remedy = "`subjects` is a mapping, not a list", "write `- id: …` for each subject"
        rows.faults.append(rows.head.fault(("subjects",), message, remedy))
    table = rows.head.value.get("subjects")
    if isinstance(table, str):
        return _with_table(rows, table)
    rows.faults += _beside(url, rows)
    return rows


def _beside(url: str, rows: ManifestRows) -> Iterator[Fault]:
    """Warnings about tables of captions beside a manifest that is a single file."""
    folder = rows.head.base
    is_file = rows.head.file == os.path.expanduser(url.removeprefix("file://"))
    if not is_file or rows.names_photos or rows.folder or url.startswith("http"):
        return
    try:
        files = _file_names(folder)
    except Exception:  # a manifest may be readable though its folder cannot be listed
        return
    present = [name for name in TABLE_NAMES if name.startswith("metadata.") and name in files]
    yield from unread_tables(folder, present, [os.path.basename(url)])


def _open(url: str, names: Sequence[str], *, trusted: bool = True) -> ManifestRows:
    """Open a file, or the file that represents a folder.

    Args:
        names: of files that may represent a folder; the first present is opened.
        trusted: whether the operator named the URL; hosts named in a manifest are checked.
    """
    url = os.path.expanduser(url.removeprefix("file://"))
    if "\\" in url and "://" not in url and not os.path.exists(url):
        url = url.replace("\\", "/")
    if "://" not in url and os.path.isdir(url):
        return _open_folder(os.path.abspath(url), url, names)
    is_file = suffix_of(url, FORM_SUFFIXES) in FORM_SUFFIXES or is_web(url)
    if "://" in url and not is_file:
        with _reachable(url):
            filesystem, path = fsspec.core.url_to_fs(url)
            if filesystem.isdir(path):
                return _open_folder(url.rstrip("/"), url, names)
            if not filesystem.exists(path):
                raise _missing(url)
    return _open_file(url, trusted=trusted)


def _open_folder(
    folder: str, shown: str, names: Sequence[str], *, is_split: bool = False
) -> ManifestRows:
    with _reachable(shown):
        files = _file_names(folder)
        by_fold = {name.casefold(): name for name in sorted(files)}
        present = [by_fold[name] for name in names if name in by_fold]
        if present:
            rows = _open_file(f"{shown.rstrip('/')}/{present[0]}")
            others = present[1:]
            tables = {name for name in others if name.casefold().startswith("metadata.")}
            used = [name for name in present if name not in tables]
            unread = list(unread_tables(folder, files, used))
            reported = {posixpath.basename(one.file) for one in unread}
            rows.faults += _unread(others, reported, rows.head)
            rows.faults += unread
            if present[0].casefold().startswith(("subjects.", "metadata.")):
                rows.folder = folder
            return rows
        inner = subfolders(folder)
    if (deeper := data_folder(folder, inner)) is not None:
        return _open_folder(deeper, deeper, names)
    split = train_split(folder, inner)
    if split is not None and not is_split:
        rows = _open_folder(split[0], split[0], names, is_split=True)
        for other in split[1]:
            message = f"the split `{other}` is not trained on"
            remedy = f"nothing to do, unless you want it trained; then name {folder}/{other}"
            rows.faults.append(Fault(folder, message, remedy, severity="warning"))
        return rows
    rows = read_folder(folder, inner, is_split=is_split)
    rows.faults[:0] = [*_workbooks(folder), *unread_tables(folder, files, ())]
    if (fault := unused_class_images(folder)) is not None:
        rows.faults.append(fault)
    return rows


def _unread(others: Sequence[str], reported: Collection[str], head: ManifestRow) -> Iterator[Fault]:
    """Warnings about tables and manifests beside the one that represents the folder, whose rows are
    not reported one by one."""
    for name in others:
        if name in reported or name == str(head.value.get("subjects")).removeprefix("./"):
            continue
        message = f"{name} beside it is not read"
        remedy = "keep one of them, or name the file itself"
        if name.casefold().startswith("metadata."):
            remedy = "put the captions into the folders of the photos, or remove it"
        yield head.fault((), message, remedy, severity="warning")


def _open_file(url: str, *, trusted: bool = True) -> ManifestRows:
    named = url.partition("?")[0] if is_web(url) else url
    base = parent_url(named if "://" in url else os.path.abspath(url))
    suffix = suffix_of(url, FORM_SUFFIXES)
    if suffix in WORKBOOK_SUFFIXES:
        raise ManifestError(
            f"{url} is a spreadsheet file, which is not supported",
            "export it from the spreadsheet program as `CSV UTF-8`",
        )
    if suffix not in FORM_SUFFIXES and not (is_web(url) and not suffix):
        if "://" not in url and not os.path.exists(url):
            raise _missing(url)
        raise ManifestError(f"{url} has an unknown manifest extension", _remedy_of_other(suffix))
    # the suffix is a hint; the content decides
    file = _binary(url, trusted=trusted)
    head = file.read(4)
    file.seek(0)
    if suffix == ".parquet" or is_parquet(head):
        return read_parquet(file, url, base)
    rows = _text_reader(text := _text(file, url, suffix), suffix)(text, url, base)
    return _grouped(rows)


def _remedy_of_other(suffix: str) -> str:
    """What to do about a file whose suffix is not a manifest's."""
    if is_photo_name(f"photo{suffix}"):
        return (
            "it is a photo: name the folder that holds one folder of photos per subject, and a "
            "subjects.csv"
        )
    if suffix in ARCHIVE_SUFFIXES:
        return (
            "it is an archive: unpack it and name the folder; one subject's photos may stay in a "
            "zip archive that a manifest names in `photos`"
        )
    return f"give a folder, or a file that ends in {', '.join(TEXT_SUFFIXES)} or .parquet"


def _workbooks(folder: str) -> Iterator[Fault]:
    """Spreadsheets that look like the table of a folder, which only a CSV file can be."""
    for name in sorted(_file_names(folder)):
        stem, suffix = os.path.splitext(name.casefold())
        if suffix in WORKBOOK_SUFFIXES and stem in {"subjects", "manifest", "metadata"}:
            yield Fault(
                f"{folder.rstrip('/')}/{name}",
                "it is a spreadsheet file, which is not read",
                f"export it from the spreadsheet program as `CSV UTF-8`, to {stem}.csv beside it",
            )


def _text_reader(text: str, suffix: str) -> TextReader:
    """The reader for a suffix, or the one that the content requires."""
    start = text.lstrip()[:1]
    if is_dataset_config(text):
        return read_kohya
    if suffix in {".yaml", ".yml"}:
        return read_csv if is_table(text[:MAX_HEAD]) else read_yaml
    if suffix == ".toml":
        return read_kohya
    if is_yaml(text):
        return read_yaml
    if suffix in TABLES:
        return {"[": read_json, "{": _read_lines}.get(start, read_csv)
    if start not in {"[", "{"} and (not suffix or is_table(text[:MAX_HEAD])):
        return read_csv
    if suffix in {"", ".json"}:
        return _read_lines if start == "{" and is_json_lines(text) else read_json
    return read_json if start == "[" else _read_lines


def _grouped(rows: ManifestRows) -> ManifestRows:
    """Rows of photos as rows of subjects; others as they are."""
    if isinstance(rows.head.value.get("datasets"), list) and "subjects" not in rows.head.value:
        return read_kohya_config(rows.head.value, rows.head.lines, replace(rows.head, value={}))
    first = next(rows.subjects, None)
    if first is None:
        return rows
    if is_concept(first.value):
        return read_concepts(chain([first], rows.subjects), rows.head, rows.faults)
    if (refusal := concept_of(first.value)) is not None:
        raise ManifestError(f"{first.file}: {refusal[0]}", refusal[1])
    every = chain([first], rows.subjects)
    if is_photo_manifest(first.value, first.file) and not first.terms and not _is_subject(first):
        return read_imagefolder(every, rows.head, rows.faults)
    return replace(rows, subjects=every)


def _is_subject(row: ManifestRow) -> bool:
    """Whether a row names a folder of photos, under a name that columns of photos have too."""
    files = photo_row(row.value, 1).files
    has_photo = any(is_image_name(file) or "://" in file for file in files)
    return bool(files) and not has_photo and bool({"id", "name", "class_noun"} & row.value.keys())


def _with_table(rows: ManifestRows, table: str) -> ManifestRows:
    """The subjects of a head that are in a separate table or folder."""
    try:
        check_reference(table)
        # a folder's own manifest may be this head
        inner = _open(join_url(rows.head.base, table), TABLE_NAMES, trusted=False)
    except (ManifestError, PhotoFault) as error:
        rows.faults.append(rows.head.fault(("subjects",), error.message, error.remedy))
        return rows
    if inner.head.value:
        message = f"{table} has a head of its own, and so has this file"
        rows.faults.append(rows.head.fault(("subjects",), message, "keep one of the two heads"))

    own = join_url(rows.head.base, os.path.basename(rows.head.file))

    def subjects() -> Iterator[ManifestRow]:
        yield from inner.subjects
        # this head may be in that folder, under any name
        rows.faults.extend(fault for fault in inner.faults if fault.file != own)

    head = {key: value for key, value in rows.head.value.items() if key != "subjects"}
    return ManifestRows(replace(rows.head, value=head), subjects(), rows.faults)


@contextmanager
def _reachable(url: str) -> Iterator[None]:
    """Convert any error of a filesystem to a ``ManifestError``."""
    try:
        yield
    except FarmError:
        raise
    except Exception as error:  # each filesystem raises errors of its own
        if (fault := private_host_fault(error)) is not None:
            raise ManifestError(f"{url}: {fault.message}", fault.remedy) from error
        if isinstance(error, FileNotFoundError):
            raise _missing(url) from error
        message = f"{url} cannot be read: {words_of(error)}"
        raise ManifestError(message, remedy_of_reading(error)) from error


def _missing(url: str) -> ManifestError:
    if not url.strip():
        return ManifestError("no manifest is named", "name a manifest or a folder")
    remedy = "correct the path of the manifest or folder"
    folder, name = os.path.split(url.rstrip("/"))
    if os.path.islink(url):
        return ManifestError(f"{url} is a link to a file that is missing", "correct the link")
    if "://" not in url and os.path.isdir(folder or "."):
        names = {one: os.path.splitext(one)[0] for one in os.listdir(folder or ".")}
        stem = similar_name(os.path.splitext(name)[0], sorted(names.values()))
        close = next((one for one in sorted(names) if names[one] == stem), None)
        if close is not None and not is_litter(close):
            remedy = f"did you mean {os.path.join(folder, close)}?"
    return ManifestError(f"there is no {url}", remedy)


def _file_names(folder: str) -> set[str]:
    if "://" not in folder:
        with os.scandir(folder) as entries:
            return {entry.name for entry in entries if entry.is_file()}
    return set(list_folder(folder, LookBudget()).siblings)


def _binary(url: str, *, trusted: bool) -> Any:
    """An open file that can seek."""
    with _reachable(url):
        filesystem, path = fsspec.core.url_to_fs(url) if trusted else filesystem_of(url)
        if isinstance(filesystem, LocalFileSystem):
            try:
                with open_local(path, "name a file"):
                    pass
            except PhotoFault as fault:
                raise ManifestError(f"{url}: {fault.message}", fault.remedy) from fault
        file = filesystem.open(path, "rb")
        return file if can_seek(file) else held(file, MAX_MANIFEST_BYTES)


def _text(file: Any, url: str, suffix: str) -> str:
    with file:
        data: bytes = file.read(MAX_MANIFEST_BYTES + 1)
    if len(data) > MAX_MANIFEST_BYTES:
        raise ManifestError(
            f"{url} is larger than {MAX_MANIFEST_BYTES // 2**20} MiB", "split it, or use Parquet"
        )
    try:
        return decoded(data) if suffix in TABLES else decoded(data, TEXT_REMEDY)
    except NotText as error:
        remedy = remedy_of_sheet(url) or error.remedy
        fault = Fault(url, error.message, remedy, line=error.line)
        raise ManifestError(f"{url} cannot be read", remedy, [fault]) from error
