"""The error for a photo or archive that cannot be used."""

from __future__ import annotations

from farm.errors import UserError

__all__ = ["PhotoFault"]


class PhotoFault(UserError):
    """A photo or archive that cannot be used; ``check`` turns it into a ``Fault`` with its place.

    Exit code 3, as any fault of a manifest. Takes a message that reads after the photo's name
    ("it is truncated") and a remedy.
    """

    exit_code = 3
