"""Which addresses a manifest may name: a manifest may come from a stranger.

Owns the protocols that photos, archives and tables are read through. fsspec knows many more, some
of which run code, chain others, or read what the user was not given.
"""

from __future__ import annotations

from farm.intake.errors import PhotoFault
from farm.intake.photos.bytes import MAX_PHOTO_BYTES

__all__ = ["ALLOWED_PROTOCOLS", "check_reference"]

ALLOWED_PROTOCOLS = (
    *("file", "http", "https", "s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "memory"),
)
"""Of photos and tables; besides them a member of an archive there: `zip://member::archive`."""
_ZIP = "zip://"


def check_reference(reference: str, *, is_remote: bool = False) -> None:
    """Refuse an address through any other protocol, and chains of them.

    Paths without a protocol are as good as the folder or URL that they start from, which is the
    operator's own choice.

    Args:
        is_remote: whether a path without a protocol starts from a URL, in which `::` would chain.

    Raises:
        PhotoFault: names the protocol, and those that are read.
    """
    inner = reference
    if reference.startswith(_ZIP):
        member, mark, inner = reference.removeprefix(_ZIP).rpartition("::")
        if not mark or "://" in member or "::" in member:
            raise _refusal(reference, "it is no member of an archive")
    elif "::" in reference and (is_remote or "://" in reference):
        raise _refusal(
            reference,
            "it chains protocols, through which a photo larger than "
            f"{MAX_PHOTO_BYTES // 2**20} MiB could not be refused in time",
        )
    if "\0" in reference:
        raise _refusal(reference, "it holds a NUL character")
    if "://" not in inner:
        return
    protocol = inner.partition("://")[0]
    if protocol not in ALLOWED_PROTOCOLS:
        raise _refusal(reference, f"the protocol `{protocol[:20]}` is not read")


def _refusal(reference: str, why: str) -> PhotoFault:
    protocols = ", ".join(f"{name}://" for name in ("s3", "gs", "az", "https", "file"))
    shown = reference[:200].encode("unicode_escape").decode()
    return PhotoFault(
        f"{shown} is no address of photos: {why}",
        f"give a path, an address that begins with one of {protocols}, or "
        "`zip://member::archive` with one of these",
    )
