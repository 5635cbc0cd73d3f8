"""The bytes of a photo, wherever it is stored: local files, fsspec URLs, members of archives.

Owns reading with retries, and the memory reserved for the bytes of photos. Decoding is in
``decode.py``.
"""

from __future__ import annotations

import os
import zipfile
from contextlib import ExitStack

from tenacity import Retrying, retry_if_exception, stop_after_attempt, wait_random_exponential

from farm.errors import PhotoFault
from farm.file_facts import local_version, object_version
from farm.intake.photos.archives import open_archive, read_member
from farm.intake.photos.budget import MAX_PHOTO_BYTES, READING, reading_bytes
from farm.intake.photos.files import (
    filesystem_faults,
    is_remote,
    member_uri,
    open_local,
    read_bounded,
    split_member_uri,
    too_many_bytes,
)
from farm.intake.photos.uris import filesystem_of

__all__ = [
    "MAX_PHOTO_BYTES",
    "PhotoReader",
    "is_remote",
    "member_uri",
    "read_photo_bytes",
    "split_member_uri",
    "version_of",
]

READ_ATTEMPTS = 4
"""Attempts at a remote photo; stores and web servers fail occasionally."""


def read_photo_bytes(uri: str) -> bytes:
    """Read one photo's bytes, at most ``MAX_PHOTO_BYTES``.

    Raises:
        PhotoFault: if it is missing, unreadable or too large.
    """
    with PhotoReader() as reader:
        return reader.read(uri)


def version_of(uri: str) -> str | None:
    """A token that changes with a photo, or with its archive; None if its storage has none, as web
    servers, or does not answer."""
    place = split_member_uri(uri)[1] if uri.startswith("zip://") else uri
    if "://" not in place or place.startswith("file://"):
        return local_version(place.removeprefix("file://"))
    if place.startswith(("http://", "https://")):
        return None
    try:
        filesystem, path = filesystem_of(place)
        return object_version(filesystem.info(path))
    except Exception:  # each filesystem raises errors of its own; reading reports them
        return None


class PhotoReader:
    """Reads photos one after the other; consecutive members of one archive open it once.

    A photo keeps its reservation of the shared memory until the next one is read.
    """

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._memory = ExitStack()
        self._archive: tuple[str, zipfile.ZipFile] | None = None

    def __enter__(self) -> PhotoReader:
        return self

    def __exit__(self, *_: object) -> None:
        self._memory.close()
        self._stack.close()

    def read(self, uri: str) -> bytes:
        """The bytes of one photo; see ``read_photo_bytes``."""
        self._memory.close()
        if uri.startswith("zip://"):
            member, archive = split_member_uri(uri)
            return read_member(self._opened(archive), member, self._reserve)
        with filesystem_faults():
            if "://" not in uri or uri.startswith("file://"):
                return self._read_local(uri.removeprefix("file://"))
            return self._read_remote(uri)

    def _reserve(self, num_bytes: int) -> None:
        """Wait until there is memory for a photo of this size."""
        self._memory.close()
        if num_bytes > MAX_PHOTO_BYTES:
            raise too_many_bytes()
        self._memory.enter_context(READING.reserve(reading_bytes(num_bytes)))

    def _opened(self, archive: str) -> zipfile.ZipFile:
        if self._archive is None or self._archive[0] != archive:
            self._archive = None
            self._stack.close()
            self._archive = archive, self._stack.enter_context(open_archive(archive))
        return self._archive[1]

    def _read_local(self, path: str) -> bytes:
        with open_local(path, "name a photo") as file:
            self._reserve(os.fstat(file.fileno()).st_size)
            return read_bounded(file)

    def _read_remote(self, uri: str) -> bytes:
        for attempt in Retrying(
            stop=stop_after_attempt(READ_ATTEMPTS),
            wait=wait_random_exponential(multiplier=0.1, max=4.0),
            retry=retry_if_exception(_is_transient),
            reraise=True,
        ):
            with attempt:
                return self._read_remote_once(uri)
        raise AssertionError("unreachable")

    def _read_remote_once(self, uri: str) -> bytes:
        filesystem, path = filesystem_of(uri)
        if uri.startswith(("http://", "https://")):
            # block size 0 streams, so that a server without ranges is bounded too
            with filesystem.open(path, "rb", block_size=0) as file:
                return read_bounded(file, self._reserve)
        size = filesystem.size(path)
        if size is None:
            with filesystem.open(path, "rb") as file:
                return read_bounded(file, self._reserve)
        if size > MAX_PHOTO_BYTES:
            raise too_many_bytes()
        self._reserve(size)
        # an object that grew since is bounded too
        data = bytes(filesystem.cat_file(path, start=0, end=size))
        if len(data) > size:
            raise PhotoFault("it is longer than its store says", "upload it again")
        return data


def _is_transient(error: BaseException) -> bool:
    final = (FileNotFoundError, PermissionError, IsADirectoryError, TimeoutError)
    return isinstance(error, OSError) and not isinstance(error, final)
