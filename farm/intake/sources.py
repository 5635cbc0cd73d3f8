"""Which reader a manifest goes to: by its suffix, or by what a folder holds.

Owns opening the file and the head-plus-table form, in which a YAML or JSON head names a table of
subjects.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import fsspec

from farm.errors import Fault, ManifestError
from farm.intake.folder import MANIFEST_NAMES, TABLE_NAMES, read_folder
from farm.intake.imagefolder import read_imagefolder
from farm.intake.json_rows import read_json, read_jsonl
from farm.intake.kohya import read_kohya
from farm.intake.rows import Row, Rows, join_url, parent_url
from farm.intake.table_rows import read_csv, read_parquet
from farm.intake.yaml_rows import read_yaml

__all__ = ["MAX_MANIFEST_BYTES", "open_rows"]

MAX_MANIFEST_BYTES = 512 * 2**20
"""A million subjects fit."""

TextReader = Callable[[str, str, str], Rows]
TEXT_READERS: dict[str, TextReader] = {
    ".yaml": read_yaml,
    ".yml": read_yaml,
    ".json": read_json,
    ".jsonl": lambda text, file, base: read_jsonl(text.splitlines(), file, base),
    ".ndjson": lambda text, file, base: read_jsonl(text.splitlines(), file, base),
    ".csv": read_csv,
    ".tsv": read_csv,
    ".toml": read_kohya,
}


def open_rows(url: str) -> Rows:
    """Open a manifest: a file of any known form, or a folder of folders.

    Raises:
        ManifestError: if it is not there, not text, or of no known form.
    """
    rows = _open(url, MANIFEST_NAMES)
    table = rows.head.value.get("subjects")
    return _with_table(rows, table) if isinstance(table, str) else rows


def _open(url: str, names: Sequence[str]) -> Rows:
    """Open a file, or what speaks for a folder by one of some names."""
    url = os.path.expanduser(url.removeprefix("file://"))
    if "://" in url or not os.path.isdir(url):
        return _open_file(url)
    for name in names:
        if os.path.isfile(os.path.join(url, name)):
            return _open_file(os.path.join(url, name))
    return read_folder(url)


def _open_file(url: str) -> Rows:
    name = url.split("?", 1)[0]
    base = parent_url(url if "://" in url else os.path.abspath(url))
    suffix = os.path.splitext(name)[1].lower()
    if os.path.basename(name).startswith("metadata."):
        return read_imagefolder(_text(url), url, base)
    if suffix == ".parquet":
        return read_parquet(_binary(url), url, base)
    if suffix not in TEXT_READERS:
        raise ManifestError(
            f"{url} is no manifest by its name",
            f"give a folder, or a file that ends in {', '.join(TEXT_READERS)} or .parquet",
        )
    return TEXT_READERS[suffix](_text(url), url, base)


def _with_table(rows: Rows, table: str) -> Rows:
    """The subjects of a head that lie in a table or folder of their own."""
    try:
        # a folder's own manifest may be this very head
        inner = _open(join_url(rows.head.base, table), TABLE_NAMES)
    except ManifestError as error:
        rows.faults.append(rows.head.fault(("subjects",), error.message, error.remedy))
        return rows
    if inner.head.value:
        message = f"{table} has a head of its own, and so has this file"
        rows.faults.append(rows.head.fault(("subjects",), message, "keep one of the two heads"))

    def subjects() -> Iterator[Row]:
        yield from inner.subjects
        rows.faults.extend(inner.faults)

    head = {key: value for key, value in rows.head.value.items() if key != "subjects"}
    return Rows(replace(rows.head, value=head), subjects(), rows.faults)


def _binary(url: str) -> Any:
    """An open file that can seek."""
    try:
        return fsspec.open(url, "rb").open()
    except FileNotFoundError as error:
        raise ManifestError(f"there is no {url}", "correct the path of the manifest") from error
    except (OSError, ValueError, ImportError) as error:
        text = " ".join(str(error).split())[:200]
        raise ManifestError(f"{url} cannot be read: {text}", "correct the address") from error


def _text(url: str) -> str:
    with _binary(url) as file:
        data: bytes = file.read(MAX_MANIFEST_BYTES + 1)
    if len(data) > MAX_MANIFEST_BYTES:
        raise ManifestError(
            f"{url} is larger than {MAX_MANIFEST_BYTES // 2**20} MiB", "split it, or use Parquet"
        )
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        fault = Fault(url, "not UTF-8 text", "save it as UTF-8", line=line)
        raise ManifestError(f"{url} cannot be read", "save it as UTF-8", [fault]) from error
