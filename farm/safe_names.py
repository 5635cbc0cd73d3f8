"""Which names may become a part of a path or a URL: ids, names, namespaces, keys.

Owns the patterns. Those without anchors are parts of larger ones; match them with ``fullmatch``.
"""

from __future__ import annotations

import re

__all__ = ["JOB_KEY", "MAX_NAME_LENGTH", "NAME_PATTERN", "SAFE_NAME", "is_job_key", "is_safe_name"]

MAX_NAME_LENGTH = 128

NAME_PATTERN = r"^[A-Za-z0-9](?:[A-Za-z0-9_-]|\.[A-Za-z0-9_-])*$"
"""What a manifest may name: ASCII letters, digits, ``_ - .``; the first is a letter or digit, no
two dots together, no dot at the end; at most ``MAX_NAME_LENGTH``."""

SAFE_NAME = rf"[A-Za-z0-9_][A-Za-z0-9_.\-]{{0,{MAX_NAME_LENGTH - 1}}}"
"""What is safe in a path of the store and in a request. Wider than ``NAME_PATTERN``: programs may
publish under other names than manifests."""

JOB_KEY = r"[0-9a-f]{32}"
"""A key of ``farm.keys.key_of``."""


def is_safe_name(text: str) -> bool:
    """Whether a text may be one part of a path in the store."""
    return re.fullmatch(SAFE_NAME, text) is not None


def is_job_key(text: str) -> bool:
    """Whether a text has the form of a job key."""
    return re.fullmatch(JOB_KEY, text) is not None
