"""``--allow-private-hosts``, for the commands that read a manifest."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer

__all__ = ["PrivateHostsOption", "private_hosts"]


@contextmanager
def private_hosts(allowed: bool) -> Iterator[None]:
    """Allow photo URLs that lead to private addresses for as long as the block lasts."""
    from farm.intake.photos.uris import ALLOW_PRIVATE_HOSTS

    before = os.environ.get(ALLOW_PRIVATE_HOSTS)
    _allow(allowed)
    try:
        yield
    finally:
        if allowed:
            os.environ.pop(ALLOW_PRIVATE_HOSTS)
            os.environ |= {ALLOW_PRIVATE_HOSTS: before} if before is not None else {}


def _allow(value: bool) -> bool:
    from farm.intake.photos.uris import ALLOW_PRIVATE_HOSTS

    if value:
        # the environment, so that Ray's workers inherit it
        os.environ[ALLOW_PRIVATE_HOSTS] = "1"
    return value


PrivateHostsOption = Annotated[
    bool,
    typer.Option(
        "--allow-private-hosts",
        envvar="FARM_ALLOW_PRIVATE_HOSTS",
        callback=_allow,
        help="Let photo URLs lead to private, loopback and link-local addresses.",
    ),
]
