"""Ray's token authentication, enabled wherever the farm starts Ray or connects to it.

Ray 2.60 enables it by default only for clusters that ``ray.init`` starts. Clients and drivers of a
named cluster do not send their token, and a cluster that requires one refuses them after a long
wait. The rule here is that of ``ray start --head``: if there is a token, it is used. A
``RAY_AUTH_MODE`` that is already set takes precedence. The token is read where Ray reads it:
``RAY_AUTH_TOKEN``, ``RAY_AUTH_TOKEN_PATH`` or ``~/.ray/auth_token``.
"""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["TOKEN_REMEDY", "has_token", "require_token", "use_token_if_there_is_one"]

MODE = "RAY_AUTH_MODE"
TOKEN_REMEDY = (
    "copy the cluster's token to ~/.ray/auth_token, or set RAY_AUTH_TOKEN; on the head, "
    "`ray get-auth-token` prints it"
)


def has_token() -> bool:
    """Whether this process finds a token where Ray looks for one."""
    if os.environ.get("RAY_AUTH_TOKEN"):
        return True
    path = os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token"
    try:
        return bool(Path(path).read_text().strip())
    except OSError:
        return False


def require_token() -> None:
    """Enable token authentication; if Ray starts here and there is no token, it generates one."""
    if MODE not in os.environ:
        os.environ[MODE] = "token"
        _reload()


def use_token_if_there_is_one() -> None:
    """Enable token authentication if there is a token; otherwise connect without one."""
    if MODE not in os.environ and has_token():
        require_token()


def _reload() -> None:
    """Make Ray read its environment again; it was read on import."""
    from ray._raylet import Config  # type: ignore[attr-defined]

    Config.initialize("")
