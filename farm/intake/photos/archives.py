"""Zip archives of photos, read in place: nothing is ever unpacked to disk.

Owns the rules that make an archive safe to read: the size of its directory, the number and names of
its members, and the limit of their expansion.
"""

from __future__ import annotations

import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, BinaryIO, cast

from farm.errors import PhotoFault
from farm.intake.photos.budget import MAX_PHOTO_BYTES
from farm.intake.photos.files import (
    filesystem_faults,
    open_local,
    read_bounded,
    too_many_bytes,
)
from farm.intake.photos.litter import is_litter
from farm.intake.photos.uris import filesystem_of

__all__ = [
    "MAX_ARCHIVE_MEMBERS",
    "OTHER_ARCHIVES",
    "TAR_MARK",
    "TAR_OFFSET",
    "UNPACK",
    "archive_members",
    "open_archive",
    "read_member",
]

MAX_ARCHIVE_MEMBERS = 10_000
"""Maximum number in one subject's archive, of any kind."""
MAX_ARCHIVE_BYTES = 2 * 2**30
"""Maximum size of an archive that must be fetched whole."""
MAX_ARCHIVE_RATIO = 200
"""Unpacked over packed size of a member; photos are packed already and barely shrink further."""
MAX_UNPACKED_BYTES = 8 * 2**30
"""Maximum total size of an archive's members."""
MAX_DIRECTORY_BYTES = 4 * 2**20
"""Maximum size of an archive's directory: ten thousand members of four hundred bytes."""

UNPACK = "unpack it and name the folder, or pack the photos as a zip archive"
OTHER_ARCHIVES = (
    (b"Rar!", "a RAR archive"),
    (b"7z\xbc\xaf", "a 7z archive"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"BZh", "a bzip2 archive"),
    (b"\xfd7zXZ", "an xz archive"),
)
"""First bytes of archives that are not read."""
TAR_OFFSET, TAR_MARK = 257, b"ustar"
_OTHER_FILES = (
    (b"\xff\xd8\xff", "a JPEG photo", "give it the suffix .jpg"),
    (b"\x89PNG", "a PNG photo", "give it the suffix .png"),
    (b"version https://git-lfs", "a Git LFS pointer", "run `git lfs pull`"),
    (b"<", "a web page", "download the archive itself, signed in if the site asks for it"),
    (b"{", "JSON text, such as a server's error message", "download the archive again"),
)
_METHODS = frozenset((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2))
"""LZMA is excluded: its header alone can make a reader allocate up to 4 GiB."""


class _BoundedDirectory:
    """An archive's file in which no single read is larger than a directory may be.

    ``zipfile`` reads the whole directory in one call, with the size that the archive claims.
    """

    def __init__(self, file: Any) -> None:
        self._file = file

    def read(self, size: int = -1) -> bytes:
        """Read as the file does.

        Raises:
            PhotoFault: if the size is over the limit of a directory.
        """
        if size > MAX_DIRECTORY_BYTES:
            raise PhotoFault(
                f"its directory is larger than {MAX_DIRECTORY_BYTES // 2**20} MiB",
                "pack only the subject's photos",
            )
        return bytes(self._file.read(size))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


@contextmanager
def open_archive(uri: str) -> Iterator[zipfile.ZipFile]:
    """A zip archive opened for reading, local or remote.

    Remote ones are read by ranges; from web servers without ranges they are fetched whole, into a
    temporary file that is removed with the archive.

    Raises:
        PhotoFault: if it is missing, too large to fetch, or not a zip archive.
    """
    with ExitStack() as stack:
        try:
            with filesystem_faults():
                file = stack.enter_context(_seekable(uri))
                archive = zipfile.ZipFile(cast("Any", _BoundedDirectory(file)))
        except (zipfile.BadZipFile, EOFError) as error:
            if (form := _other_form(file)) is not None:
                raise PhotoFault(f"it is {form[0]}, not a zip archive", form[1]) from error
            raise PhotoFault(f"it is not a whole zip archive: {error}", "make it again") from error
        yield stack.enter_context(archive)


def _other_form(file: Any) -> tuple[str, str] | None:
    """What a file is instead of a zip archive, and the remedy; None if it is unknown."""
    with suppress(OSError, ValueError):
        file.seek(0)
        head = file.read(TAR_OFFSET + len(TAR_MARK))
        if not head:
            return "an empty file", "copy it again"
        if head[TAR_OFFSET:] == TAR_MARK:
            return "a tar archive", UNPACK
        for start, what in OTHER_ARCHIVES:
            if head.startswith(start):
                return what, UNPACK
        for start, what, remedy in _OTHER_FILES:
            if head.startswith(start):
                return what, remedy
    return None


@contextmanager
def _seekable(uri: str) -> Iterator[Any]:
    local = uri.removeprefix("file://")
    if "://" not in local:
        with open_local(local, "name an archive") as file:
            yield file
        return
    filesystem, path = filesystem_of(uri)
    is_web = uri.startswith(("http://", "https://"))
    if not is_web or filesystem.info(path).get("partial"):
        with filesystem.open(path, "rb") as file:
            yield file
        return
    with tempfile.SpooledTemporaryFile(max_size=2**23) as copy:
        with filesystem.open(path, "rb", block_size=0) as file:
            while part := file.read(2**22):
                copy.write(part)
                if copy.tell() > MAX_ARCHIVE_BYTES:
                    message = f"it is larger than {MAX_ARCHIVE_BYTES // 2**30} GiB"
                    raise PhotoFault(message, "pack only the subject's photos")
        copy.seek(0)
        yield copy


def archive_members(archive: zipfile.ZipFile) -> list[str]:
    """The names of an archive's files, sorted, without folders and system litter.

    Raises:
        PhotoFault: if the archive holds too much, or a member's name leads out of it.
    """
    entries = archive.infolist()
    if len(entries) > MAX_ARCHIVE_MEMBERS:
        raise PhotoFault(
            f"it holds {len(entries)} files, more than {MAX_ARCHIVE_MEMBERS}",
            "pack only the subject's photos",
        )
    if sum(entry.file_size for entry in entries) > MAX_UNPACKED_BYTES:
        raise PhotoFault(
            f"it unpacks to more than {MAX_UNPACKED_BYTES // 2**30} GiB",
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


def read_member(
    archive: zipfile.ZipFile, member: str, reserve: Callable[[int], None] | None = None
) -> bytes:
    """The bytes of one member.

    Args:
        reserve: called with its size before it is unpacked.

    Raises:
        PhotoFault: if it is missing, encrypted, damaged, or expands too far.
    """
    try:
        entry = archive.getinfo(member)
    except KeyError as error:
        raise PhotoFault("the archive has no such member", "correct the name") from error
    if entry.flag_bits & 0x1:
        raise PhotoFault("it is encrypted", "pack the photos without a password")
    if entry.compress_type not in _METHODS:
        raise PhotoFault("it is packed by a method that is not read", "pack it as a plain zip")
    if entry.file_size > MAX_PHOTO_BYTES:
        raise too_many_bytes()
    if entry.file_size > MAX_ARCHIVE_RATIO * max(entry.compress_size, 1) + 2**20:
        ratio = entry.file_size / max(entry.compress_size, 1)
        raise PhotoFault(
            f"it unpacks to {ratio:.0f} times its packed size", "pack the photos again"
        )
    if reserve is not None:
        reserve(entry.file_size)
    try:
        with archive.open(entry) as file:
            # the size in the directory may be wrong; the read is bounded anyway
            return read_bounded(cast("BinaryIO", file))
    except PhotoFault:
        raise
    except Exception as error:  # zlib, lzma and bz2 each raise an error class of their own
        raise PhotoFault(f"it is damaged: {_words(error)}", "make the archive again") from error


def _words(error: BaseException) -> str:
    """The message of an archive reader's error, which never includes members' bytes."""
    text = " ".join(str(error).split())
    return text[:200] or type(error).__name__
