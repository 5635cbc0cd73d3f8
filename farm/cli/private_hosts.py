"""``--allow-private-hosts``, for the commands that read a manifest."""

from __future__ import annotations

import os
from typing import Annotated

import typer

__all__ = ["PrivateHostsOption"]


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
