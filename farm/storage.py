"""The store: a folder or bucket, accessed through fsspec, that keeps all lasting state.

Owns atomic writes and exclusive creation. Transient faults are retried (``farm.retries``). Does not
know what the paths mean.

Readers see a write completely or not at all: local files are written aside and renamed, object
stores put an object in one piece. A result of several files needs a marker that its caller writes
last.
"""

from __future__ import annotations

import errno
import json
import os
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import fsspec
from fsspec.implementations.local import LocalFileSystem

from farm.errors import StoreError, StoreUnusable, UserError
from farm.local_files import PROBE, missing_folders, reason_of, write_aside, writing
from farm.retries import with_retries

__all__ = ["Store"]

Result = TypeVar("Result")
CLIENT_RETRIES = 2
"""Attempts of the S3 client below each of ours; its own defaults multiply to 25."""
S3_PREFIXES = ("s3://", "s3a://")
NO_FOLDER = frozenset(
    {errno.ENOENT, errno.EEXIST, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL}
)
"""Errors of a path that can never become a folder."""
PREFIX_LISTINGS = (*S3_PREFIXES, "gs://", "gcs://")
"""Stores whose client lists the objects whose names have a prefix."""


class Store:
    """A root URL and its fsspec filesystem. Pickling keeps only the URL."""

    def __init__(self, url: str | Path) -> None:
        """Open a store without accessing it.

        Args:
            url: a local folder, or any fsspec URL such as ``s3://bucket/prefix``.

        Raises:
            UserError: if the URL's protocol is unknown or its package is missing.
        """
        self.url = _normal_url(str(url))
        try:
            self._fs, self._root = fsspec.core.url_to_fs(
                self.url, use_listings_cache=False, **_client_options(self.url)
            )
        except TypeError:  # a filesystem without this option
            self._fs, self._root = fsspec.core.url_to_fs(self.url)
        except (ValueError, ImportError) as error:
            raise UserError(
                f"cannot open the store {self.url}: {error}",
                "use a folder, or install the fsspec package of this protocol",
            ) from error
        self._root = self._root.rstrip("/")
        if self.url.startswith(S3_PREFIXES):
            self._fs.retries = CLIENT_RETRIES

    def __reduce__(self) -> tuple[type[Store], tuple[str]]:
        return type(self), (self.url,)

    def __repr__(self) -> str:
        return f"Store({self.url!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Store) and other.url == self.url

    def __hash__(self) -> int:
        return hash(self.url)

    @property
    def is_local(self) -> bool:
        """Whether the store is a local folder."""
        return isinstance(self._fs, LocalFileSystem)

    def check_exists(self) -> None:
        """Check that a local store is a folder. Object stores have no folders to check.

        Raises:
            StoreUnusable: if it is missing or a file.
        """
        if not self.is_local or os.path.isdir(self._root):
            return
        what = "is a file, not a store" if os.path.exists(self._root) else "does not exist"
        raise StoreUnusable(
            f"the store {self.url} {what}",
            "correct its path, or train into it first with `farm run`",
        )

    def check_writable(self) -> None:
        """Check that a local store exists or can be created, and can be written. Leaves nothing.

        Raises:
            StoreUnusable: if it cannot.
        """
        if not self.is_local:
            return
        probe = self.full_path(f".{uuid.uuid4().hex}")
        missing = missing_folders(self._root)
        try:
            with_retries(self.url, lambda: _write_local(probe, PROBE), is_write=True)
        finally:
            with suppress(OSError):  # it was not written
                os.unlink(probe)
            for folder in missing:
                with suppress(OSError):  # another process uses it already
                    folder.rmdir()

    @property
    def filesystem(self) -> Any:
        """The fsspec filesystem, for libraries that take one (pyarrow)."""
        return self._fs

    def full_path(self, path: str) -> str:
        """The path in ``filesystem`` of a path in this store."""
        if path.startswith("/") or ".." in path.split("/"):
            raise ValueError(f"{path!r} leaves the store")
        return f"{self._root}/{path}" if path else self._root

    # -- whole objects ----------------------------------------------------------------------

    def write(self, path: str, data: bytes) -> None:
        """Write one object atomically; replaces an existing one."""
        full = self.full_path(path)
        if self.is_local:
            self._attempt(path, lambda: _write_local(full, data), is_write=True)
        else:
            self._attempt(path, lambda: self._fs.pipe_file(full, data), is_write=True)

    def read(self, path: str) -> bytes:
        """Read one object. Raises FileNotFoundError if there is none."""
        full = self.full_path(path)
        return bytes(self._attempt(path, lambda: self._fs.cat_file(full)))

    def create(self, path: str, data: bytes) -> bool:
        """Write one object if it does not exist; return whether this call created it.

        Atomic in local folders (``link``) and on stores whose fsspec driver supports exclusive
        creation (s3fs ``If-None-Match``); elsewhere the last of two concurrent writers wins. A
        retry after a lost response recognises its own data, so concurrent callers must write
        different bytes.
        """
        full = self.full_path(path)
        if self.is_local:
            return self._attempt(path, lambda: _create_local(full, data), is_write=True)
        if self.exists(path):
            return False

        def put() -> bool:
            try:
                self._fs.pipe_file(full, data, mode="create")
            except FileExistsError:
                # it is ours if the response to an earlier attempt was lost
                return bytes(self._fs.cat_file(full)) == data
            return True

        return self._attempt(path, put, is_write=True)

    def write_json(self, path: str, value: object) -> None:
        """Write a value as indented JSON, atomically."""
        self.write(path, json.dumps(value, indent=2, sort_keys=True).encode() + b"\n")

    def read_json(self, path: str) -> Any:
        """Read JSON. Raises FileNotFoundError, or StoreError if it is not JSON."""
        try:
            return json.loads(self.read(path))
        except ValueError as error:
            raise StoreError(
                f"{self.url}/{path} is not JSON: {error}",
                "restore the file from a copy, or remove it and run the command again",
            ) from error

    def upload(self, local: str | Path, path: str) -> None:
        """Copy a local file into the store, atomically."""
        full = self.full_path(path)
        if self.is_local:
            self._attempt(path, lambda: _write_local(full, Path(local).read_bytes()), is_write=True)
        else:
            self._attempt(path, lambda: self._fs.put_file(str(local), full), is_write=True)

    def download(self, path: str, local: str | Path) -> None:
        """Copy an object to a local file, atomically.

        Raises:
            OutputUnusable: if the local disk is full or read-only.
        """
        target = Path(local)
        aside = target.with_name(f".{target.name}.{uuid.uuid4().hex}")

        def get() -> None:
            with writing(target):
                target.parent.mkdir(parents=True, exist_ok=True)
                self._fs.get_file(self.full_path(path), str(aside))

        try:
            self._attempt(path, get)
            aside.replace(target)
        finally:
            aside.unlink(missing_ok=True)

    # -- names ------------------------------------------------------------------------------

    def exists(self, path: str) -> bool:
        """Whether an object or folder exists."""
        full = self.full_path(path)
        return bool(self._attempt(path, lambda: self._fs.exists(full)))

    def list(self, path: str = "") -> list[str]:
        """The sorted names directly in a folder; empty if there is no such folder."""
        full = self.full_path(path)

        def names() -> list[str]:
            try:  # for many names, three times faster than fsspec's own listing
                found = os.listdir(full) if self.is_local else self._fs.ls(full, detail=False)
            except (FileNotFoundError, NotADirectoryError):
                return []
            # local names that begin with a dot are unfinished writes
            return sorted(
                name
                for name in (str(entry).rstrip("/").rsplit("/", 1)[-1] for entry in found)
                if not name.startswith(".") and name
            )

        return self._attempt(path, names)

    def folders_with(self, path: str, name: str, *, prefixes: Sequence[str] = ("",)) -> set[str]:
        """The names of the folders directly in a folder that contain an object of this name.

        Lists all objects below ``path``: for many folders much faster than one look-up each.

        Args:
            prefixes: the folders' names begin with one of these; where the store can list by
                prefix, there is one listing for each, all at the same time.
        """
        full = self.full_path(path)
        if self.is_local:
            inside = self._attempt(path, lambda: _local_folders(full))
            return {folder for folder in inside if os.path.exists(f"{full}/{folder}/{name}")}

        def found(prefix: str) -> set[str]:
            options = {"prefix": prefix} if prefix else {}
            try:
                paths = map(str, self._attempt(path, lambda: self._fs.find(full, **options)))
            except FileNotFoundError:
                return set()
            parts = (one[len(full) + 1 :].split("/") for one in paths)
            return {part[0] for part in parts if len(part) == 2 and part[1] == name}

        if not self.url.startswith(PREFIX_LISTINGS):
            return found("")
        with ThreadPoolExecutor(len(prefixes)) as pool:
            return set().union(*pool.map(found, prefixes))

    def walk(self, path: str = "") -> Iterator[str]:
        """The paths of all objects below a folder, sorted."""
        full = self.full_path(path)

        def found() -> list[str]:
            try:
                return list(self._fs.find(full))
            except FileNotFoundError:
                return []

        start = len(self._root) + 1
        for name in sorted(self._attempt(path, found)):
            relative = str(name)[start:]
            if not relative.rsplit("/", 1)[-1].startswith("."):
                yield relative

    def size(self, path: str) -> int:
        """Size of one object in bytes. Raises FileNotFoundError."""
        full = self.full_path(path)
        return int(self._attempt(path, lambda: self._fs.size(full)))

    def version(self, path: str) -> str:
        """A token that changes when the object changes. Raises FileNotFoundError."""
        full = self.full_path(path)

        def facts() -> str:
            info = self._fs.info(full)
            return ":".join(str(info.get(name)) for name in ("size", "ETag", "mtime", "md5Hash"))

        return self._attempt(path, facts)

    def delete(self, path: str) -> None:
        """Remove an object, or a folder with everything below it; a missing one is no error."""
        full = self.full_path(path)

        def remove() -> None:
            try:
                self._fs.rm(full, recursive=True)
            except FileNotFoundError:
                return

        self._attempt(path, remove)

    def _attempt(self, path: str, call: Callable[[], Result], *, is_write: bool = False) -> Result:
        return with_retries(f"{self.url}/{path}", call, is_write=is_write)


def _client_options(url: str) -> dict[str, Any]:
    """Options of the client that leave the retries to us; the user's own fsspec settings win."""
    if not url.startswith(S3_PREFIXES):
        return {}
    own = fsspec.config.conf.get("s3", {}).get("config_kwargs", {})
    return {"config_kwargs": {"retries": {"max_attempts": 0}, **own}}


def _normal_url(url: str) -> str:
    """The URL, absolute for local paths, so that it means the same in every process."""
    if "://" in url and not url.startswith("file://"):
        return url.rstrip("/")
    return os.path.abspath(os.path.expanduser(url.removeprefix("file://")))


def _make_folder(folder: Path) -> None:
    """Create a folder and those above it.

    Raises:
        StoreUnusable: if the path can be no folder: a file is in the way, or its file system, such
            as ``/proc``, creates none.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        if error.errno not in NO_FOLDER:
            raise
        raise StoreUnusable(
            f"the folder {folder} cannot be created: {reason_of(error, folder)}",
            "name a store in a folder that you can write to",
        ) from error


def _local_folders(full: str) -> list[str]:
    try:
        with os.scandir(full) as entries:
            return [entry.name for entry in entries if not entry.name.startswith(".")]
    except (FileNotFoundError, NotADirectoryError):
        return []


def _write_aside(full: str, data: bytes) -> Path:
    _make_folder(Path(full).parent)
    return write_aside(full, data)


def _write_local(full: str, data: bytes) -> None:
    os.replace(_write_aside(full, data), full)


def _create_local(full: str, data: bytes) -> bool:
    aside = _write_aside(full, data)
    try:
        os.link(aside, full)
    except FileExistsError:
        return False
    finally:
        aside.unlink()
    return True
