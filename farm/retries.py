"""Retries of calls to a store, and the errors that remain.

Owns which faults are transient, which are permanent errors of the store itself, and how long a call
and a run wait. Other faults are statements about the path, such as FileNotFoundError, and reach the
caller unchanged.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import TypeVar

from tenacity import Retrying, retry_if_exception, stop_after_delay, wait_random_exponential

from farm.errors import StoreError, StoreUnusable
from farm.local_files import FULL

__all__ = ["OUTAGE_BUDGET_S", "remedy_of_reading", "with_retries"]

Result = TypeVar("Result")
CALL_BUDGET_S = 15.0
"""How long one call is retried. Short, because others wait for it; a caller that can wait longer,
such as the publisher of adapters, calls again."""
OUTAGE_BUDGET_S = 600.0
"""How long a run waits for a store that does not respond before it ends."""
RETRY_MAX_WAIT_S = 4.0
CLIENT_PACKAGES = frozenset({"botocore", "aiobotocore", "aiohttp", "urllib3", "requests"})
"""Packages whose errors, such as lost connections, fsspec does not always translate."""
FULL_CODES = ("XMinioStorageFull", "QuotaExceeded", "InsufficientStorage")


def with_retries(url: str, call: Callable[[], Result], *, is_write: bool = False) -> Result:
    """Call a function of an object until it succeeds, for ``CALL_BUDGET_S`` at most.

    Args:
        url: the object, for messages.
        is_write: whether the call writes; a write that finds no place has no bucket.

    Raises:
        StoreUnusable: for an error that the same call would meet again.
        StoreError: if a transient fault persists.
    """
    try:
        for attempt in Retrying(
            stop=stop_after_delay(CALL_BUDGET_S),
            wait=wait_random_exponential(multiplier=0.1, max=RETRY_MAX_WAIT_S),
            retry=retry_if_exception(_is_transient),
            reraise=True,
        ):
            with attempt:
                return call()
    except Exception as error:
        diagnosis = _diagnose(error, is_write=is_write, url=url)
        if diagnosis is not None:
            what, remedy = diagnosis
            # a local error only says the same in other words, with the name of a hidden file
            is_local = "://" not in url and getattr(error, "errno", None) is not None
            more = "" if is_local else f" ({error})"
            raise StoreUnusable(f"{url}: {what}{more}", remedy) from error
        if _is_transient(error):
            raise StoreError(
                f"{url}: {error}", "check whether the store responds, then try again"
            ) from error
        raise
    raise AssertionError("unreachable")


def remedy_of_reading(error: BaseException) -> str:
    """What to do about a file outside the store that cannot be read."""
    diagnosis = _diagnose(error)
    return diagnosis[1] if diagnosis is not None else "correct the address"


def _is_transient(error: BaseException) -> bool:
    """Whether the same call may succeed later: any I/O fault but a statement about the path."""
    final = (FileNotFoundError, FileExistsError, NotADirectoryError, IsADirectoryError)
    if isinstance(error, final) or _diagnose(error) is not None:
        return False
    package = type(error).__module__.partition(".")[0]
    return isinstance(error, OSError | TimeoutError) or package in CLIENT_PACKAGES


def _diagnose(
    error: BaseException, *, is_write: bool = False, url: str | None = None
) -> tuple[str, str] | None:
    """A permanent error of the store itself and its remedy; None for any other error.

    Args:
        url: the object in the store; None for a file outside it.
    """
    number, text = getattr(error, "errno", None), str(error)
    # a path may contain anything, such as an adapter's name
    is_coded = not isinstance(error, FileNotFoundError) and any(c in text for c in FULL_CODES)
    if number in FULL or is_coded:
        return "the store is full", "free space or raise the quota"
    if number == errno.EROFS:
        return "the store is read-only", "mount it writable, or name another store"
    if "Credentials" in type(error).__name__:
        return (
            "there are no credentials for the store",
            "provide them on this machine and on every node, such as AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY, or an instance profile",
        )
    if isinstance(error, PermissionError):
        if url is not None and "://" not in url:
            able = "writable" if is_write else "readable"
            return "access denied", f"make the folder {able} for this user"
        return "access denied", "check the credentials and their rights"
    is_write = is_write and url is not None and "://" in url  # a local folder is no bucket
    if isinstance(error, FileNotFoundError) and (is_write or "bucket does not exist" in text):
        return "there is no such bucket", "create the bucket, or correct the store's URL"
    return None
