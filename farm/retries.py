"""Retries of calls to a store, and the errors that remain.

Owns which faults are transient. Other faults are statements about the path, such as
FileNotFoundError, and reach the caller unchanged.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from tenacity import Retrying, retry_if_exception, stop_after_attempt, wait_random_exponential

from farm.errors import StoreError, UserError

__all__ = ["with_retries"]

Result = TypeVar("Result")
RETRY_ATTEMPTS = 5
RETRY_MAX_WAIT_S = 8.0
CLIENT_PACKAGES = frozenset({"botocore", "aiobotocore", "aiohttp", "urllib3", "requests"})
"""Packages whose errors, such as lost connections, fsspec does not always translate."""


def with_retries(url: str, call: Callable[[], Result]) -> Result:
    """Call a function of an object, again after transient faults.

    Args:
        url: the object, for messages.

    Raises:
        UserError: if access is denied.
        StoreError: if a transient fault persists.
    """
    try:
        for attempt in Retrying(
            stop=stop_after_attempt(RETRY_ATTEMPTS),
            wait=wait_random_exponential(multiplier=0.1, max=RETRY_MAX_WAIT_S),
            retry=retry_if_exception(_is_transient),
            reraise=True,
        ):
            with attempt:
                return call()
    except Exception as error:
        if _is_refusal(error):
            raise UserError(
                f"{url}: access denied: {error}",
                "check the credentials and permissions for this store",
            ) from error
        if _is_transient(error):
            raise StoreError(f"{url}: {error}", "the store did not respond; try again") from error
        raise
    raise AssertionError("unreachable")


def _is_transient(error: BaseException) -> bool:
    """Whether the same call may succeed later: any I/O fault but a statement about the path."""
    final = (
        FileNotFoundError,
        FileExistsError,
        PermissionError,
        NotADirectoryError,
        IsADirectoryError,
    )
    if isinstance(error, final) or _is_refusal(error):
        return False
    package = type(error).__module__.partition(".")[0]
    return isinstance(error, OSError | TimeoutError) or package in CLIENT_PACKAGES


def _is_refusal(error: BaseException) -> bool:
    """Whether the store denies access."""
    return isinstance(error, PermissionError) or "Credentials" in type(error).__name__
