"""Files and folders of this machine: written whole, checked before the work, named if a disk fails.

Owns how a local file is written, and the errors of a folder or file that a command writes its
results to. ``farm.storage`` writes local stores in the same way and has errors of its own.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from farm.errors import OutputUnusable

__all__ = [
    "FULL",
    "PROBE",
    "check_file",
    "check_folder",
    "full_disk",
    "missing_folders",
    "reason_of",
    "write_aside",
    "write_file",
    "writing",
]

FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
LIMITED = FULL | {errno.EROFS, errno.EFBIG}
"""Errors that only the place of a write can have, not what is read meanwhile."""
NO_PLACE = frozenset(
    {errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG}
    | {errno.EACCES, errno.EPERM, errno.EIO, errno.ENOTEMPTY}
)
"""Errors of a path that can become no file or folder, or that denies access."""
PROBE = bytes(1 << 16)
"""Written to check a place: an empty file fits on a full disk."""
RUST_FULL = "os error 28"
"""How libraries in Rust, such as safetensors, report a full disk."""


# -- writing -------------------------------------------------------------------------------------


def write_aside(path: str | Path, data: bytes) -> Path:
    """Write a file beside a path, under a hidden name; nothing is left of one that fails."""
    target = Path(path)
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


def write_file(path: Path, data: bytes) -> None:
    """Write a result, complete or not at all; a device or pipe is written as it is.

    Raises:
        OutputUnusable: if it cannot be written.
    """
    with writing(path):
        if path.exists() and not path.is_file():
            path.write_bytes(data)
            return
        target = Path(os.path.realpath(path))
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(write_aside(target, data), target)


@contextmanager
def writing(out: Path) -> Iterator[None]:
    """Name the folder or file of the results if its disk fails meanwhile.

    Raises:
        OutputUnusable: if it is full, read-only or denies access.
    """
    try:
        yield
    except Exception as error:
        if not _is_of_disk(error, out):
            raise
        raise _refused(out, error) from error


def full_disk(error: BaseException) -> OutputUnusable | None:
    """The error of a command that met a full disk; None for other errors."""
    if not isinstance(error, OSError) or error.errno not in FULL:
        return None
    name = re.sub(r"(^|/)\.([^/]+)\.[0-9a-f]{32}$", r"\1\2", str(error.filename or ""))
    place = f"cannot write {name}: " if name else ""
    return OutputUnusable(
        f"{place}a disk is full",
        f"free space where the output, the cache and temporary files ({tempfile.gettempdir()}) are",
    )


# -- checking ------------------------------------------------------------------------------------


def check_folder(out: Path) -> None:
    """Check that a folder exists or can be created, and that its disk has space. Leaves nothing.

    Raises:
        OutputUnusable: if results cannot be written there.
    """
    folder = Path(os.path.abspath(out))
    missing, aside = missing_folders(folder), None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        aside = write_aside(folder / "probe", PROBE)
    except OSError as error:
        raise _refused(out, error) from error
    finally:
        with suppress(OSError):
            if aside is not None:
                aside.unlink()
        for one in missing:
            with suppress(OSError):  # another process uses it already
                one.rmdir()


def check_file(path: Path) -> None:
    """Check that a file can be written or replaced. Leaves nothing.

    Raises:
        OutputUnusable: if it cannot.
    """
    if path.is_dir():
        raise OutputUnusable(f"cannot write {path}: it is a folder", "name a file in it")
    if os.path.exists(path) and not path.is_file():  # a device or a pipe
        return
    if path.is_file() and not os.access(path, os.W_OK):
        raise _refused(path, PermissionError(errno.EACCES, os.strerror(errno.EACCES)))
    if link := _broken_link(path):
        raise OutputUnusable(
            f"cannot write {path}: {link}", "remove the link, or name another file"
        )
    check_folder(Path(os.path.realpath(path)).parent)


def missing_folders(path: str | Path) -> list[Path]:
    """A folder and those above it that do not exist, innermost first."""
    return [one for one in (Path(path), *Path(path).parents) if not os.path.lexists(one)]


def reason_of(error: BaseException, folder: Path) -> str:
    """Why a folder could not be created or written, in words."""
    number = getattr(error, "errno", None)
    if number in FULL or number is None:
        return "the disk is full"
    if number == errno.EROFS:
        return "its file system is read-only"
    for one in (folder, *folder.parents):
        if link := _broken_link(one):
            return link
        if number in (errno.ENOTDIR, errno.EEXIST) and os.path.isfile(one):
            return f"{one} is a file"
    return os.strerror(number)


def _broken_link(path: Path) -> str:
    """A description of a link to nothing; empty for other paths."""
    if not os.path.islink(path) or os.path.exists(path):
        return ""
    return f"{path} is a link to {os.readlink(path)}, which does not exist"


def _is_of_disk(error: Exception, out: Path) -> bool:
    """Whether an error says that the results cannot be written."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in LIMITED or (error.errno in NO_PLACE and bool(_place_in(out, error)))
    if RUST_FULL in str(error):
        return True
    # numpy's and Pillow's errors of a write do not say why
    return isinstance(error, OSError) and _free_bytes(out) < len(PROBE)


def _place_in(out: Path, error: OSError) -> str:
    """The path that an error names, if it is the results' or one above or below; else empty."""
    root = os.path.abspath(out)
    for name in (error.filename2, error.filename):
        place = os.path.abspath(os.fsdecode(name)) if isinstance(name, str | bytes) else ""
        if place and os.path.commonpath((root, place)) in (root, place):
            return place
    return ""


def _free_bytes(path: Path) -> int:
    there = next(one for one in (path, *path.absolute().parents) if os.path.exists(one))
    return shutil.disk_usage(there).free


def _refused(out: Path, error: BaseException) -> OutputUnusable:
    root = os.path.abspath(out)
    place = _place_in(out, error) if isinstance(error, OSError) else ""
    reason = reason_of(error, Path(place or root))
    if place and len(place) > len(root) and place not in reason and "disk" not in reason:
        reason = f"{place}: {reason}"
    remedy = "name a place that you can write to"
    if reason == "the disk is full":
        remedy = "free space, or name another place"
    return OutputUnusable(f"cannot write {out}: {reason}", remedy)
