"""Single files of any storage: local paths, fsspec URLs, names of archive members.

Owns opening and reading them within limits, which links lead out of a folder, and how errors of a
filesystem become faults.
"""

from __future__ import annotations

import io
import os
import stat
import zipfile
from collections.abc import Callable, Iterator
from contextlib import aclosing, contextmanager
from typing import Any, BinaryIO

import fsspec

from farm.errors import PhotoFault
from farm.intake.photos.budget import MAX_PHOTO_BYTES, SMALL_BYTES
from farm.intake.photos.uris import private_host_fault

__all__ = [
    "Links",
    "filesystem_faults",
    "is_remote",
    "member_uri",
    "open_local",
    "read_bounded",
    "remote_entries",
    "split_member_uri",
    "too_many_bytes",
    "words_of",
]

LIST_S = 60.0
"""How long one listing of a store may take."""
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


class Links:
    """The symbolic links below a folder, whose own path may have links too.

    Every folder is resolved once: a pattern may find two hundred thousand names, also through links
    that form a loop.
    """

    def __init__(self, root: str) -> None:
        self._root = os.path.realpath(root)
        self._known = {"": (self._root, False)}
        """By a folder's path from the root: its real path, and whether a link is on the way."""

    def leave(self, name: str) -> bool:
        """Whether a link in a name's path leads out of the folder."""
        folder, _, last = name.rpartition("/")
        real, is_linked = self._resolved(self._folder(folder), last)
        return is_linked and os.path.commonpath([self._root, real]) != self._root

    def _folder(self, folder: str) -> tuple[str, bool]:
        if (known := self._known.get(folder)) is not None:
            return known
        found, path = self._known[""], ""
        for part in folder.split("/"):
            path = f"{path}/{part}" if path else part
            known = self._known.get(path)
            found = self._known[path] = known or self._resolved(found, part)
        return found

    @staticmethod
    def _resolved(folder: tuple[str, bool], name: str) -> tuple[str, bool]:
        real, is_linked = folder
        path = os.path.join(real, name)
        if os.path.islink(path):
            return os.path.realpath(path), True
        return (os.path.realpath(path) if name == ".." else path), is_linked


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


def remote_entries(
    filesystem: Any, path: str, count: Callable[[], None], *, is_deep: bool = False
) -> list[dict[str, Any]]:
    """The entries of a folder of a store, or with ``is_deep`` all files below it.

    S3 is listed page by page and other stores within ``LIST_S``, so that a prefix of millions of
    objects is never held.

    Args:
        count: called for each entry; raises beyond a limit.

    Raises:
        FileNotFoundError: if there are none.
    """
    if hasattr(filesystem, "_iterdir"):
        arguments = (filesystem, path, count)
        found = fsspec.asyn.sync(
            filesystem.loop, _pages, *arguments, is_deep=is_deep, timeout=LIST_S
        )
    elif getattr(filesystem, "async_impl", False):
        list_one = filesystem._find if is_deep else filesystem._ls
        found = fsspec.asyn.sync(filesystem.loop, list_one, path, detail=True, timeout=LIST_S)
    else:
        found = (filesystem.find if is_deep else filesystem.ls)(path, detail=True)
    if isinstance(found, dict):
        found = list(found.values())
    if not hasattr(filesystem, "_iterdir"):
        for _ in found:
            count()
    if not found:
        raise FileNotFoundError(path)
    return list(found)


async def _pages(
    filesystem: Any, path: str, count: Callable[[], None], *, is_deep: bool
) -> list[dict[str, Any]]:
    bucket, _, key = path.strip("/").partition("/")
    prefix = f"{key.rstrip('/')}/" if key else ""
    pages = filesystem._iterdir(bucket, delimiter="" if is_deep else "/", prefix=prefix)
    found = []
    try:
        async with aclosing(pages):
            async for entry in pages:
                count()
                found.append(entry)
    except PhotoFault:
        raise
    except Exception as error:
        from s3fs.errors import translate_boto_error

        raise translate_boto_error(error) from error
    return found


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
