"""Environment variables of Ray Serve's proxies, and the bounds on connections that they install.

Owns how the bounded HTTP server and the repeating middleware get into proxies that Ray starts.
Imports nothing of Ray, whose environment must be set before it is imported.
"""

from __future__ import annotations

import os
from typing import Any

from starlette.middleware import Middleware

from farm.serving.cluster.proxy import RetryingProxy
from farm.serving.http.connections import (
    ConnectionBook,
    ConnectionLimits,
    connections_within,
    raise_file_limit,
)
from farm.serving.http_server import BoundedProtocol

__all__ = ["bound_ray_proxy", "proxy_environment", "ray_environment"]

CALLBACK = "farm.serving.cluster.environment:bound_ray_proxy"
RAY_PROXY_LIMITS = "FARM_CONNECTION_LIMITS"
"""The environment variable with the limits of the proxies' connections, as JSON."""
_RAY_BOOKS: list[ConnectionBook] = []


def bound_ray_proxy() -> list[Middleware]:
    """Bound the connections of a Ray Serve proxy in the same way.

    Ray calls it in each proxy process before the server is created, if the environment variable
    ``RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH`` is ``CALLBACK``. The limits are the defaults,
    unless ``FARM_CONNECTION_LIMITS`` sets others, as JSON.

    Returns:
        The middleware that repeats requests whose ingress is lost; the limits apply below it.
    """
    from uvicorn.config import HTTP_PROTOCOLS

    limits = ConnectionLimits.model_validate_json(os.environ.get(RAY_PROXY_LIMITS, "{}"))
    _RAY_BOOKS[:] = [ConnectionBook(limits, connections_within(limits, raise_file_limit()))]
    HTTP_PROTOCOLS["auto"] = "farm.serving.cluster.environment:_ray_protocol"
    return [Middleware(RetryingProxy)]


def proxy_environment(limits: ConnectionLimits) -> dict[str, str]:
    """Environment variables of Ray Serve's controller, and of the proxies that it starts: they
    bound the proxies' connections, and have a dead proxy replaced within seconds."""
    return {
        "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": CALLBACK,
        RAY_PROXY_LIMITS: limits.model_dump_json(),
        # a proxy is replaced after three failed checks; Ray's period of 10 s makes that 30 s
        "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "1",
        # Ray's 5 s end a proxy that starts on a busy machine, and its replacement too
        "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",
    }


def ray_environment(limits: ConnectionLimits) -> dict[str, str]:
    """Environment variables to set before Ray is imported: those of the proxies. If no cluster is
    named, they also make a local Ray require tokens and keep it, with its metrics port, on
    loopback, and start no processes that the endpoint does not use."""
    variables = proxy_environment(limits)
    if not os.environ.get("RAY_ADDRESS"):
        variables |= {
            "RAY_AUTH_MODE": "token",
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # its address is then loopback
            # Ray otherwise starts a process per core, and none of Ray Serve's, which have an
            # environment of their own, is run by one of those
            "RAY_prestart_worker_first_driver": "0",
        }
    return variables


def _ray_protocol(*arguments: Any, **named: Any) -> BoundedProtocol:
    return BoundedProtocol(*arguments, book=_RAY_BOOKS[0], **named)
