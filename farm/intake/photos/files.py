"""Single files of any storage: local paths, fsspec URLs, names of archive members.

Owns opening and reading them within limits, and how a filesystem's errors become faults.
"""

from __future__ import annotations

import io
import os
import stat
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import BinaryIO

from farm.intake.errors import PhotoFault
from farm.intake.photos.budget import MAX_PHOTO_BYTES, SMALL_BYTES
from farm.intake.photos.uris import private_host_fault

__all__ = [
    "filesystem_faults",
    "is_remote",
    "member_uri",
    "open_local",
    "read_bounded",
    "split_member_uri",
    "too_many_bytes",
    "words_of",
]

_ZIP = "zip://"


def is_remote(uri: str) -> bool:
    """Whether reading a URI leaves this machine."""
    inner = split_member_uri(uri)[1] if uri.startswith(_ZIP) else uri
    return "://" in inner and not inner.startswith(("file://", "memory://"))


def member_uri(member: str, archive: str) -> str:
    """The URI of one member of a zip archive, in fsspec's own notation."""
    return f"{_ZIP}{member}::{archive}"


def split_member_uri(uri: str) -> tuple[str, str]:
    """Member and archive of a ``zip://member::archive`` URI."""
    member, _, archive = uri.removeprefix(_ZIP).rpartition("::")
    return member, archive


@contextmanager
def filesystem_faults() -> Iterator[None]:
    """Convert any error of a filesystem to a ``PhotoFault``."""
    try:
        yield
    except (PhotoFault, zipfile.BadZipFile, EOFError):
        raise
    except Exception as error:  # each filesystem raises errors of its own
        raise (private_host_fault(error) or _read_fault(error)) from error


def _read_fault(error: Exception) -> PhotoFault:
    if isinstance(error, FileNotFoundError):
        return PhotoFault("there is no such file", "correct the path, or remove it")
    if isinstance(error, PermissionError):
        return PhotoFault(
            "access denied", "give this user permission to read it, or the store's credentials"
        )
    if isinstance(error, IsADirectoryError):
        return PhotoFault("it is a folder, not a photo", "name the folder in `photos`")
    return PhotoFault(f"it cannot be read: {words_of(error)}", "correct the address")


@contextmanager
def open_local(path: str, remedy: str) -> Iterator[BinaryIO]:
    """A regular local file; devices and pipes are refused without waiting for a writer."""

    def open_at_once(name: str, flags: int) -> int:
        return os.open(name, flags | getattr(os, "O_NONBLOCK", 0))

    with open(path, "rb", opener=open_at_once) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise PhotoFault("it is not a regular file", remedy)
        yield file


def read_bounded(file: BinaryIO, reserve: Callable[[int], None] | None = None) -> bytes:
    """A whole file, of at most ``MAX_PHOTO_BYTES``.

    Args:
        reserve: called with that limit once a file of unknown size turns out to be large.
    """
    whole = io.BytesIO()  # unlike joined parts, it is never held twice
    left = MAX_PHOTO_BYTES + 1
    is_small = True
    while left and (part := file.read(min(left, 2**20))):
        whole.write(part)
        left -= len(part)
        if is_small and MAX_PHOTO_BYTES - left > SMALL_BYTES:
            is_small = False
            if reserve is not None:
                reserve(MAX_PHOTO_BYTES)
    if not left:
        raise too_many_bytes()
    return whole.getvalue()


def too_many_bytes() -> PhotoFault:
    """The fault of a photo over the limit."""
    return PhotoFault(
        f"it is larger than {MAX_PHOTO_BYTES // 2**20} MiB", "save it smaller, for instance as JPEG"
    )


def words_of(error: BaseException) -> str:
    """An error in brief: the system's message, or its type. Server responses are left out."""
    if (status := getattr(error, "status", None)) is not None and isinstance(status, int):
        return f"the server answered {status}"
    if isinstance(error, OSError) and error.strerror and error.errno is not None:
        return error.strerror[:200]
    if isinstance(error, ImportError):
        return " ".join(str(error).split())[:200]
    return type(error).__name__
