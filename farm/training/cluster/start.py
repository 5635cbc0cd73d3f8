"""Starts Ray here or connects to a cluster: with a token, clear errors and quiet logs.

Owns the environment that Ray reads when it starts.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import ray
import ray._private.parameter
import ray._private.services
import ray._private.worker
import ray.exceptions

from farm.errors import HeadLost, LaneLost, UserError
from farm.training.cluster.auth import TOKEN_REMEDY, require_token, use_token_if_there_is_one
from farm.training.cluster.ray_folder import ray_folder_options

__all__ = ["is_connected", "keep_ray_stopped", "quiet_ray", "start_ray"]

Print = Callable[[dict[str, Any], bool], None]

RAY_STARTS = 4
CONNECT_S = 10.0
"""How long a named head may take to accept a connection. Ray itself waits for many minutes."""


def start_ray(**options: Any) -> None:
    """``ray.init``, retried if starting Ray on a busy machine timed out.

    With ``log_to_driver=False``, nothing of Ray reaches the terminal.

    Raises:
        UserError: if the named cluster cannot be reached.
        HeadLost: if the cluster's head dies while this process connects.
        LaneLost: if Ray does not start here.
    """
    quiet_ray()
    if options.get("address"):
        _require_head(str(options["address"]))
        use_token_if_there_is_one()
    else:  # not a cluster that happens to run on this machine
        options = {**ray_folder_options(), **options, "address": "local"}
        require_token()
    for attempt in range(1, RAY_STARTS + 1):
        try:
            with (
                _hushed_stderr(),
                _hushed_reports(is_hushed=options.get("log_to_driver") is False),
                _needed_processes_only(options),
            ):
                ray.init(logging_level="error", **options)
            return
        except ray.exceptions.AuthenticationError as error:
            raise UserError(
                f"the Ray cluster at {options['address']} refuses this token", TOKEN_REMEDY
            ) from error
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise UserError(
                f"no Ray cluster at {options['address']}: {error}",
                f"check --address and RAY_ADDRESS; for a cluster with tokens, {TOKEN_REMEDY}",
            ) from error
        except Exception as error:  # Ray has no exception class for it
            ray.shutdown()
            if options["address"] != "local":
                raise HeadLost(
                    f"the Ray cluster at {options['address']} stopped answering: {error}",
                    "once its head (or a new one) runs, the same command resumes",
                ) from error
            if attempt == RAY_STARTS:
                raise LaneLost(
                    f"Ray did not start within 30 s, {attempt} times: {error}",
                    "the machine is too busy; try again, or use --in-process",
                ) from error


def is_connected(address: str | None) -> bool:
    """Whether this process is already connected to the cluster at ``address``, or, if None, to any.

    Raises:
        UserError: if it is connected to another cluster: a process can only use one.
    """
    if not ray.is_initialized():
        return False
    current = ray.get_runtime_context().gcs_address
    if address not in (None, "auto") and _resolved(str(address)) != _resolved(current):
        raise UserError(
            f"this process is already connected to the Ray cluster at {current}, not {address}",
            "call ray.shutdown() first, or leave out the address",
        )
    return True


def _resolved(address: str) -> str:
    """``host:port`` with the host's first IP address, if it has one; others as they are."""
    host, colon, port = address.rpartition(":")
    try:
        return socket.gethostbyname(host) + colon + port
    except OSError:
        return address


def keep_ray_stopped() -> None:
    """Let calls of Ray after its shutdown fail, in threads that outlive it.

    Ray otherwise starts a second Ray for such a call, with its own lines on the terminal. Explicit
    ``ray.init`` still works.
    """
    from ray._private import auto_init_hook  # the environment variable is read on import only

    auto_init_hook.enable_auto_connect = False
    if not os.environ.get("FARM_DEBUG"):  # Ray Data logs the failing call with its whole stack
        logging.getLogger("ray.data").setLevel(logging.CRITICAL)


@contextmanager
def _needed_processes_only(options: Mapping[str, Any]) -> Iterator[None]:
    """Where Ray starts here without a dashboard, leave out the autoscaler, the dashboard's server,
    and the process that sends workers' logs to a driver that wants none: 2.2 CPU seconds.

    ``ray start`` has options for them, ``ray.init`` has none.
    """
    if options["address"] != "local" or options.get("include_dashboard") is not False:
        yield
        return
    parameter, services = ray._private.parameter, ray._private.services
    of_node, start_server = parameter.RayParams, services.start_api_server
    with_logs = options.get("log_to_driver") is not False
    parameter.RayParams = partial(of_node, no_monitor=True, include_log_monitor=with_logs)
    services.start_api_server = lambda *_, **__: (None, None)  # as where it may fail and does
    try:
        yield
    finally:
        parameter.RayParams, services.start_api_server = of_node, start_server


@contextmanager
def _hushed_stderr() -> Iterator[None]:
    """Silence file descriptor 2: Ray's core writes its log level there; errors are exceptions."""
    if os.environ.get("FARM_DEBUG"):
        yield
        return
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    os.close(nowhere)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


@contextmanager
def _hushed_reports(*, is_hushed: bool) -> Iterator[None]:
    """Keep the reports that Ray prints to stdout off it, for the connection made inside: workers
    that died, retries, the autoscaler's events. ``log_to_driver`` does not cover them; they are in
    Ray's logs, and their consequences in the ledger."""
    if not is_hushed or os.environ.get("FARM_DEBUG"):
        yield
        return
    module = ray._private.worker
    before: Print = getattr(module.print_to_stdstream, "before", module.print_to_stdstream)
    hushed: list[object] = []

    def print_others(data: dict[str, Any], ignore_prefix: bool) -> None:
        # the subscriber is created with each connection: a later one of the caller's own prints
        if hushed and _subscriber() is not hushed[0]:
            before(data, ignore_prefix)

    print_others.before = before  # type: ignore[attr-defined]
    module.print_to_stdstream = print_others
    try:
        yield
    finally:
        hushed.append(_subscriber())


def _subscriber() -> object:
    return getattr(ray._private.worker.global_worker, "gcs_error_subscriber", None)


def quiet_ray() -> None:
    """Set the environment that Ray reads when it starts, so that dead lanes are noticed early and
    the terminal stays quiet."""
    defaults = {
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
        "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "900",
        "RAY_TRAIN_METRICS_ENABLED": "0",
        "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
        "RAY_CHDIR_TO_TRIAL_DIR": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_AIR_NEW_OUTPUT": "0",
        "RAY_DEDUP_LOGS": "1",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        # Ray's default of 15 starves lanes, and even the dispatcher, next to any busy process
        "RAY_worker_niceness": "5",
        # else a process per core, most of which no run uses
        "RAY_prestart_worker_first_driver": "0",
    }
    if not os.environ.get("FARM_DEBUG"):
        # below "fatal", Ray's core writes advice about Ray Data's actors to the terminal
        defaults["RAY_BACKEND_LOG_LEVEL"] = "fatal"
    for name, value in defaults.items():
        os.environ.setdefault(name, value)


def _require_head(address: str) -> None:
    """Connect to the head's port, for an address such as ``10.0.0.1:6379``.

    Raises:
        UserError: if nothing listens there.
    """
    host, separator, port = address.rpartition(":")
    if not separator or not port.isdigit() or "://" in address:
        return  # such as `auto` or `ray://`, which Ray resolves
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_S).close()
    except OSError as error:
        raise UserError(
            f"no Ray cluster at {address}: {error}",
            "check --address and RAY_ADDRESS, and that the head is running",
        ) from error
