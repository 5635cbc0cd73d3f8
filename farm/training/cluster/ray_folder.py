"""The folder for the sockets of a Ray cluster that starts on this machine.

Owns one limit: the path of a Unix socket holds 107 bytes (103 on macOS), and Ray adds 64 bytes to
the temporary folder. With a long ``TMPDIR``, as batch schedulers and macOS set, Ray does not
start. The sockets are then put in a short private folder, and large files stay in ``TMPDIR``.
"""

from __future__ import annotations

import atexit
import os
import shutil
import sys
import tempfile
from typing import Any

from farm.errors import UserError

__all__ = ["ray_folder_options"]

MAX_SOCKET_BYTES = 107 if sys.platform.startswith("linux") else 103
SOCKET_BYTES = len("/ray/session_2026-11-27_13-39-35_123456_4194304/sockets/plasma_store")
"""Bytes that Ray adds to the temporary folder's path; process ids have at most 7 digits."""
SHORT_ROOT = "/tmp"


def ray_folder_options() -> dict[str, Any]:
    """Options of ``ray.init`` for Ray on this machine: empty if Ray's default folder is short
    enough, else a short private folder that is removed when this process ends.

    Raises:
        UserError: if ``RAY_TMPDIR`` itself is too long, or no short folder can be made.
    """
    named = os.environ.get("RAY_TMPDIR")
    root = named or os.environ.get("TMPDIR") or SHORT_ROOT
    if _fits(root):
        return {}
    if named is not None:
        raise _too_long("RAY_TMPDIR", root)
    try:
        folder = tempfile.mkdtemp(prefix="farm-ray-", dir=SHORT_ROOT)
    except OSError as error:
        raise _too_long("TMPDIR", root) from error
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return {"_temp_dir": folder, "object_spilling_directory": os.path.join(root, "ray-objects")}


def _fits(root: str) -> bool:
    return len(os.fsencode(os.path.abspath(root))) + SOCKET_BYTES <= MAX_SOCKET_BYTES


def _too_long(variable: str, root: str) -> UserError:
    most = MAX_SOCKET_BYTES - SOCKET_BYTES
    return UserError(
        f"{variable}={root} is too long for Ray's sockets, whose paths hold "
        f"{MAX_SOCKET_BYTES} bytes",
        f"set RAY_TMPDIR to a folder whose path has at most {most} bytes, such as /tmp",
    )
