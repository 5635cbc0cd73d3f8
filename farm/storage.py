"""The store: a folder or bucket, reached through fsspec, that holds the truth.

Owns atomic writes, exclusive creation and retries of transient faults. Knows nothing of what the
paths mean; see DESIGN §6 for the layout.

A write is seen whole or not at all: local files are written aside and renamed, object stores put
an object in one piece. Multi-file results write their marker last; that is the caller's part.
"""

from __future__ import annotations

import errno
import json
import os
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import fsspec
from fsspec.implementations.local import LocalFileSystem
from tenacity import Retrying, retry_if_exception, stop_after_delay, wait_random_exponential

from farm.errors import StoreError, StoreUnusable, UserError

__all__ = ["OUTAGE_BUDGET_S", "Store", "remedy_of_reading"]

Result = TypeVar("Result")
CALL_BUDGET_S = 15.0
"""How long one call is retried. Short, because others wait for it; who can wait longer, such as
the publisher of adapters, calls again."""
OUTAGE_BUDGET_S = 600.0
"""How long a run waits for a store that does not answer before it ends."""
RETRY_MAX_WAIT_S = 4.0
CLIENT_RETRIES = 2
"""Attempts of the S3 client below each of ours; its own defaults multiply to 25."""


class Store:
    """A root URL and the fsspec filesystem behind it. Picklable: only the URL travels."""

    def __init__(self, url: str | Path) -> None:
        """Open a store without touching it.

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
        except TypeError:  # a filesystem that takes no such option
            self._fs, self._root = fsspec.core.url_to_fs(self.url)
        except (ValueError, ImportError) as error:
            raise UserError(
                f"cannot open the store {self.url}: {error}",
                "use a folder, or install the fsspec package for this protocol",
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
        """Whether the store is a folder of this machine."""
        return isinstance(self._fs, LocalFileSystem)

    @property
    def filesystem(self) -> Any:
        """The fsspec filesystem, for readers that take one (pyarrow)."""
        return self._fs

    def full_path(self, path: str) -> str:
        """The path inside ``filesystem`` of a path of this store."""
        if path.startswith("/") or ".." in path.split("/"):
            raise ValueError(f"{path!r} leaves the store")
        return f"{self._root}/{path}" if path else self._root

    # -- whole objects ----------------------------------------------------------------------

    def write(self, path: str, data: bytes) -> None:
        """Write one object, whole or not at all; replaces what was there."""
        full = self.full_path(path)
        if self.is_local:
            self._attempt(path, lambda: _write_local(full, data))
        else:
            self._attempt(path, lambda: self._fs.pipe_file(full, data), is_write=True)

    def read(self, path: str) -> bytes:
        """Read one object. Raises FileNotFoundError where there is none."""
        full = self.full_path(path)
        return bytes(self._attempt(path, lambda: self._fs.cat_file(full)))

    def create(self, path: str, data: bytes) -> bool:
        """Write one object only if none is there; say whether this call made it.

        Atomic on local folders (``link``) and on stores whose fsspec driver has exclusive
        creation (s3fs ``If-None-Match``); elsewhere the last of two racing writers wins. A retry
        after a lost answer recognises its own data, so callers that race write distinct bytes.
        """
        full = self.full_path(path)
        if self.is_local:
            return self._attempt(path, lambda: _create_local(full, data))
        if self.exists(path):
            return False

        def put() -> bool:
            try:
                self._fs.pipe_file(full, data, mode="create")
            except FileExistsError:
                # ours, if the answer to an earlier try (ours or the driver's own) got lost
                return bytes(self._fs.cat_file(full)) == data
            return True

        return self._attempt(path, put, is_write=True)

    def write_json(self, path: str, value: object) -> None:
        """Write a value as indented JSON, whole or not at all."""
        self.write(path, json.dumps(value, indent=2, sort_keys=True).encode() + b"\n")

    def read_json(self, path: str) -> Any:
        """Read a JSON object. Raises FileNotFoundError, or StoreError if it is not JSON."""
        try:
            return json.loads(self.read(path))
        except ValueError as error:
            raise StoreError(f"{self.url}/{path} is not JSON: {error}") from error

    def upload(self, local: str | Path, path: str) -> None:
        """Copy a local file in, whole or not at all."""
        full = self.full_path(path)
        if self.is_local:
            self._attempt(path, lambda: _write_local(full, Path(local).read_bytes()))
        else:
            self._attempt(path, lambda: self._fs.put_file(str(local), full), is_write=True)

    def download(self, path: str, local: str | Path) -> None:
        """Copy an object out to a local file, whole or not at all."""
        target = Path(local)
        target.parent.mkdir(parents=True, exist_ok=True)
        aside = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
        try:
            self._attempt(path, lambda: self._fs.get_file(self.full_path(path), str(aside)))
            aside.replace(target)
        finally:
            aside.unlink(missing_ok=True)

    # -- names ------------------------------------------------------------------------------

    def exists(self, path: str) -> bool:
        """Whether an object (or folder) is there."""
        full = self.full_path(path)
        return bool(self._attempt(path, lambda: self._fs.exists(full)))

    def list(self, path: str = "") -> list[str]:
        """The names directly under a folder, sorted; empty where there is no such folder."""
        full = self.full_path(path)

        def names() -> list[str]:
            try:
                found = self._fs.ls(full, detail=False)
            except (FileNotFoundError, NotADirectoryError):
                return []
            # local names beginning with a dot are writes that are not finished
            return sorted(
                name
                for name in (str(entry).rstrip("/").rsplit("/", 1)[-1] for entry in found)
                if not name.startswith(".") and name
            )

        return self._attempt(path, names)

    def walk(self, path: str = "") -> Iterator[str]:
        """Every object below a folder, as paths of this store, sorted."""
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
        """Bytes of one object. Raises FileNotFoundError."""
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
        """Remove an object or a folder with all below it; nothing there is no error."""
        full = self.full_path(path)

        def remove() -> None:
            try:
                self._fs.rm(full, recursive=True)
            except FileNotFoundError:
                return

        self._attempt(path, remove)

    # -- retries ----------------------------------------------------------------------------

    def _attempt(self, path: str, call: Callable[[], Result], *, is_write: bool = False) -> Result:
        """Call until it succeeds, for ``CALL_BUDGET_S`` at most.

        Args:
            is_write: an object that cannot be written for want of a place has no bucket.
        """
        try:
            for attempt in Retrying(
                stop=stop_after_delay(CALL_BUDGET_S),
                wait=wait_random_exponential(multiplier=0.1, max=RETRY_MAX_WAIT_S),
                retry=retry_if_exception(_is_transient),
                reraise=True,
            ):
                with attempt:
                    return call()
        except Exception as error:
            diagnosis = _diagnose(error, is_write=is_write)
            if diagnosis is not None:
                what, remedy = diagnosis
                raise StoreUnusable(f"{self.url}/{path}: {what} ({error})", remedy) from error
            if _is_transient(error):
                raise StoreError(
                    f"{self.url}/{path}: {error}", "see whether the store answers; try again"
                ) from error
            raise
        raise AssertionError("unreachable")


S3_PREFIXES = ("s3://", "s3a://")


def _client_options(url: str) -> dict[str, Any]:
    """Options of the client that leave the retries to us; the user's own fsspec settings win."""
    if not url.startswith(S3_PREFIXES):
        return {}
    own = fsspec.config.conf.get("s3", {}).get("config_kwargs", {})
    return {"config_kwargs": {"retries": {"max_attempts": 0}, **own}}


CLIENT_PACKAGES = frozenset({"botocore", "aiobotocore", "aiohttp", "urllib3", "requests"})
"""Their own errors (lost connections, half answers) reach us where fsspec does not translate
them."""


def _is_transient(error: BaseException) -> bool:
    """Whether the same call may succeed later: any I/O fault but a statement about the path."""
    final = (FileNotFoundError, FileExistsError, NotADirectoryError, IsADirectoryError)
    if isinstance(error, final) or _diagnose(error) is not None:
        return False
    package = type(error).__module__.partition(".")[0]
    return isinstance(error, OSError | TimeoutError) or package in CLIENT_PACKAGES


FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
FULL_CODES = ("XMinioStorageFull", "QuotaExceeded", "InsufficientStorage")


def remedy_of_reading(error: BaseException) -> str:
    """What to do about a file elsewhere that cannot be read."""
    diagnosis = _diagnose(error)
    return diagnosis[1] if diagnosis is not None else "correct the address"


def _diagnose(error: BaseException, *, is_write: bool = False) -> tuple[str, str] | None:
    """A permanent error of the store itself and its remedy; None for any other error."""
    number, text = getattr(error, "errno", None), str(error)
    if number in FULL or any(code in text for code in FULL_CODES):
        return "the store is full", "free space or raise the quota"
    if number == errno.EROFS:
        return "the store is read-only", "mount it writable, or name another store"
    if "Credentials" in type(error).__name__:
        return (
            "there are no credentials for the store",
            "provide them on this machine and on every node, such as AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY, or an instance profile",
        )
    if isinstance(error, PermissionError):
        return "access denied", "check the credentials and their rights"
    if isinstance(error, FileNotFoundError) and (is_write or "bucket does not exist" in text):
        return "there is no such bucket", "create the bucket, or correct the store's URL"
    return None


def _normal_url(url: str) -> str:
    """Absolute for local paths, so that a store means the same in every process."""
    if "://" in url and not url.startswith("file://"):
        return url.rstrip("/")
    return os.path.abspath(os.path.expanduser(url.removeprefix("file://")))


def _write_aside(full: str, data: bytes) -> Path:
    target = Path(full)
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
    try:
        with open(aside, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except OSError:  # on a full disk, half a file would take what space there is
        aside.unlink(missing_ok=True)
        raise
    return aside


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
