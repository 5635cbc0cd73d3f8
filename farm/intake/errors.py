"""The error for a photo or archive that cannot be used."""

from __future__ import annotations

from farm.errors import UserError

__all__ = ["PhotoFault"]


class PhotoFault(UserError):
    """A photo or archive that cannot be used; ``check`` converts it to a ``Fault`` with its place.

    Exit code 3, like any fault of a manifest. Its message follows the photo's name ("it is
    truncated").
    """

    exit_code = 3
