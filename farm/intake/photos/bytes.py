"""The bytes of a photo, wherever it lies: local files, fsspec URLs, members of archives.

Owns the limits on bytes and the rules that make an archive safe to read: nothing is ever unpacked
to disk, sizes are bounded before and while reading. What the bytes show is for ``photos.py``.
"""

from __future__ import annotations

import os
import stat
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, BinaryIO, cast

import fsspec
from tenacity import Retrying, retry_if_exception, stop_after_attempt, wait_random_exponential

from farm.intake.errors import PhotoFault
from farm.intake.photos.litter import is_litter

__all__ = [
    "MAX_ARCHIVE_MEMBERS",
    "MAX_PHOTO_BYTES",
    "PhotoReader",
    "archive_members",
    "is_remote",
    "member_uri",
    "open_archive",
    "read_photo_bytes",
    "split_member_uri",
    "words_of",
]

MAX_PHOTO_BYTES = 256 * 2**20
"""A 100-megapixel raw TIFF fits; more is a mistake or an attack."""
MAX_ARCHIVE_MEMBERS = 10_000
"""Of one subject's archive, whatever they are."""
MAX_ARCHIVE_BYTES = 2 * 2**30
"""Of an archive that must be fetched whole."""
MAX_ARCHIVE_RATIO = 200
"""Unpacked over packed size of a member; photos are packed already and barely shrink further."""
READ_ATTEMPTS = 4
"""Of a remote photo; stores and web servers fail now and then."""
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


def read_photo_bytes(uri: str) -> bytes:
    """Read one photo's bytes, at most ``MAX_PHOTO_BYTES``.

    Raises:
        PhotoFault: if it is missing, unreadable or too large; says what mends it.
    """
    with PhotoReader() as reader:
        return reader.read(uri)


class PhotoReader:
    """Reads photos one after the other; members of one archive in a row open it once."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._archive: tuple[str, zipfile.ZipFile] | None = None

    def __enter__(self) -> PhotoReader:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def read(self, uri: str) -> bytes:
        """The bytes of one photo; see ``read_photo_bytes``."""
        if uri.startswith(_ZIP):
            member, archive = split_member_uri(uri)
            return _read_member(self._opened(archive), member)
        if "://" not in uri or uri.startswith("file://"):
            with _told():
                return _read_local(uri.removeprefix("file://"))
        with _told():
            return _read_remote(uri)

    def _opened(self, archive: str) -> zipfile.ZipFile:
        if self._archive is None or self._archive[0] != archive:
            self._archive = None
            self._stack.close()
            self._archive = archive, self._stack.enter_context(open_archive(archive))
        return self._archive[1]


@contextmanager
def _told() -> Iterator[None]:
    """What a filesystem may raise, as a fault."""
    try:
        yield
    except FileNotFoundError as error:
        raise PhotoFault("there is no such file", "correct the path, or remove it") from error
    except PermissionError as error:
        raise PhotoFault(
            "it may not be read", "give this user the right to read it, or the store's credentials"
        ) from error
    except IsADirectoryError as error:
        raise PhotoFault("it is a folder, not a photo", "name the folder in `photos`") from error
    except (PhotoFault, zipfile.BadZipFile, EOFError):
        raise
    except Exception as error:  # filesystems of a dozen packages raise what they like
        raise PhotoFault(f"it cannot be read: {words_of(error)}", "correct the address") from error


def _open_at_once(path: str, flags: int) -> int:
    """Open without waiting for a writer, as a named pipe would."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def _read_local(path: str) -> bytes:
    with open(path, "rb", opener=_open_at_once) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise PhotoFault("it is not a regular file", "name a photo")
        return _read_bounded(file)


def _read_remote(uri: str) -> bytes:
    def transient(error: BaseException) -> bool:
        final = (FileNotFoundError, PermissionError, IsADirectoryError)
        return isinstance(error, OSError | TimeoutError) and not isinstance(error, final)

    for attempt in Retrying(
        stop=stop_after_attempt(READ_ATTEMPTS),
        wait=wait_random_exponential(multiplier=0.1, max=4.0),
        retry=retry_if_exception(transient),
        reraise=True,
    ):
        with attempt:
            filesystem, path = fsspec.core.url_to_fs(uri)
            if uri.startswith(("http://", "https://")):
                # block size 0 streams, so that a server without ranges is bounded too
                with filesystem.open(path, "rb", block_size=0) as file:
                    return _read_bounded(file)
            size = filesystem.size(path)
            if size is None:
                with filesystem.open(path, "rb") as file:
                    return _read_bounded(file)
            if size > MAX_PHOTO_BYTES:
                raise _too_many_bytes()
            # an object that grew meanwhile is bounded too
            return bytes(filesystem.cat_file(path, start=0, end=size))
    raise AssertionError("unreachable")


def _read_bounded(file: BinaryIO) -> bytes:
    parts: list[bytes] = []
    left = MAX_PHOTO_BYTES + 1
    while left and (part := file.read(min(left, 2**22))):
        parts.append(part)
        left -= len(part)
    if not left:
        raise _too_many_bytes()
    return b"".join(parts)


def _too_many_bytes() -> PhotoFault:
    return PhotoFault(
        f"it is larger than {MAX_PHOTO_BYTES // 2**20} MiB", "save it smaller, for instance as JPEG"
    )


@contextmanager
def open_archive(uri: str) -> Iterator[zipfile.ZipFile]:
    """A zip archive opened for reading, local or remote.

    Remote ones are read by ranges; from web servers without ranges they are fetched whole, into a
    temporary file that goes with the archive.

    Raises:
        PhotoFault: if it is missing, too large to fetch, or not a zip archive.
    """
    with ExitStack() as stack:
        try:
            with _told():
                archive = zipfile.ZipFile(stack.enter_context(_seekable(uri)))
        except (zipfile.BadZipFile, EOFError) as error:
            raise PhotoFault(f"it is not a whole zip archive: {error}", "make it again") from error
        yield stack.enter_context(archive)


@contextmanager
def _seekable(uri: str) -> Iterator[Any]:
    local = uri.removeprefix("file://")
    if "://" not in local:
        with open(local, "rb", opener=_open_at_once) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise PhotoFault("it is not a regular file", "name an archive")
            yield file
        return
    filesystem, path = fsspec.core.url_to_fs(uri)
    is_web = uri.startswith(("http://", "https://"))
    if not is_web or filesystem.info(path).get("partial"):
        with filesystem.open(path, "rb") as file:
            yield file
        return
    with tempfile.SpooledTemporaryFile(max_size=2**26) as copy:
        with filesystem.open(path, "rb", block_size=0) as file:
            while part := file.read(2**22):
                copy.write(part)
                if copy.tell() > MAX_ARCHIVE_BYTES:
                    message = f"it is larger than {MAX_ARCHIVE_BYTES // 2**30} GiB"
                    raise PhotoFault(message, "pack only the subject's photos")
        copy.seek(0)
        yield copy


def archive_members(archive: zipfile.ZipFile) -> list[str]:
    """The names of an archive's files, sorted; folders and system litter left out.

    Raises:
        PhotoFault: if the archive holds too much, or a member's name leaves the archive.
    """
    entries = archive.infolist()
    if len(entries) > MAX_ARCHIVE_MEMBERS:
        raise PhotoFault(
            f"it holds {len(entries)} files, more than {MAX_ARCHIVE_MEMBERS}",
            "pack only the subject's photos",
        )
    names = [entry.filename for entry in entries if not entry.is_dir()]
    for name in names:
        parts = name.replace("\\", "/").split("/")
        if ".." in parts or name.startswith(("/", "\\")) or ":" in parts[0] or "\0" in name:
            raise PhotoFault(
                f"its member {name!r} points out of the archive", "pack the photos by plain names"
            )
    return sorted(name for name in names if not is_litter(name))


def _read_member(archive: zipfile.ZipFile, member: str) -> bytes:
    try:
        entry = archive.getinfo(member)
    except KeyError as error:
        raise PhotoFault("the archive has no such member", "correct the name") from error
    if entry.flag_bits & 0x1:
        raise PhotoFault("it is encrypted", "pack the photos without a password")
    if entry.file_size > MAX_PHOTO_BYTES:
        raise _too_many_bytes()
    if entry.file_size > MAX_ARCHIVE_RATIO * max(entry.compress_size, 1) + 2**20:
        ratio = entry.file_size / max(entry.compress_size, 1)
        raise PhotoFault(
            f"it unpacks to {ratio:.0f} times its packed size",
            "such an archive is a trap or a mistake; pack the photos again",
        )
    try:
        with archive.open(entry) as file:
            # the size in the directory may lie; what is read is bounded all the same
            return _read_bounded(cast("BinaryIO", file))
    except (zipfile.BadZipFile, EOFError, NotImplementedError, OSError, ValueError) as error:
        raise PhotoFault(f"it is damaged: {_words(error)}", "make the archive again") from error
    except Exception as error:  # zlib, lzma and bz2 each raise an error class of their own
        if type(error).__module__ not in {"zlib", "_lzma", "lzma"}:
            raise
        raise PhotoFault(f"it is damaged: {_words(error)}", "make the archive again") from error


def words_of(error: BaseException) -> str:
    """An error in few words: the system's own, or its kind. What a server said is not repeated."""
    if (status := getattr(error, "status", None)) is not None and isinstance(status, int):
        return f"the server answered {status}"
    if isinstance(error, OSError) and error.strerror and error.errno is not None:
        return error.strerror[:200]
    if isinstance(error, ImportError):
        return " ".join(str(error).split())[:200]
    return type(error).__name__


def _words(error: BaseException) -> str:
    """What an archive's reader says; it never repeats members' bytes."""
    text = " ".join(str(error).split())
    return text[:200] or type(error).__name__
