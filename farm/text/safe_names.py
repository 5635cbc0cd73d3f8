"""Which ids, names, namespaces and keys are safe in a path or a URL.

Owns the patterns. Those without anchors are meant as parts of larger patterns; use ``fullmatch``.
"""

from __future__ import annotations

import re

__all__ = [
    "JOB_KEY",
    "MAX_NAME_LENGTH",
    "NAME_PATTERN",
    "SAFE_NAME",
    "is_job_key",
    "is_safe_name",
    "names_of_base",
    "only_in_case",
    "public_base_id",
]

MAX_NAME_LENGTH = 128

NAME_PATTERN = r"^[A-Za-z0-9](?:[A-Za-z0-9_-]|\.[A-Za-z0-9_-])*$"
"""Names in manifests: ASCII letters, digits and ``_ - .``, starting with a letter or digit, without
two adjacent dots or a dot at the end; at most ``MAX_NAME_LENGTH``."""

SAFE_NAME = rf"[A-Za-z0-9_][A-Za-z0-9_.\-]{{0,{MAX_NAME_LENGTH - 1}}}"
"""Names in paths of the store and in requests. Wider than ``NAME_PATTERN``, because programs may
publish under names that manifests do not allow."""

JOB_KEY = r"[0-9a-f]{32}"
"""A key of ``farm.keys.key_of``."""

_NOT_PUBLIC = re.compile(r"[^A-Za-z0-9_.\-]+")


def only_in_case(name: str, other: str) -> str:
    """How two names are described that a disk which ignores case cannot keep apart."""
    return f"{name} differs only in case from {other}"


def is_safe_name(text: str) -> bool:
    """Whether a text may be one component of a path in the store."""
    return re.fullmatch(SAFE_NAME, text) is not None


def is_job_key(text: str) -> bool:
    """Whether a text has the form of a job key."""
    return re.fullmatch(JOB_KEY, text) is not None


def public_base_id(base: str) -> str:
    """The last part of a base's name, so that no path or bucket is revealed."""
    last = base.rstrip("/").rsplit("/", 1)[-1]
    return _NOT_PUBLIC.sub("-", last).strip("-.") or "base"


def names_of_base(base: str) -> tuple[str, str]:
    """What an endpoint takes for the base itself, so that no adapter may have these names."""
    return "base", public_base_id(base)
