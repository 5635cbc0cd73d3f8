"""Running the endpoint: in this process, or as an application of Ray Serve.

Owns the life of the server, from loading the base to the drained shutdown, and the lines printed
meanwhile. The options belong to ``farm.cli.commands.serve``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from farm.cli.views.serve_start import (
    StartLines,
    inventory_beside,
    print_batch_limit,
    what_is_served,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from farm.serving.client import LocalEngine
    from farm.serving.settings import EndpointConfig

__all__ = ["RayRun", "serve_here", "serve_with_ray"]


def serve_here(settings: EndpointConfig, host: str, port: int, drain_s: float) -> None:
    """Run engine and HTTP server in this process, until it is stopped."""
    import secrets
    import threading

    from farm.serving.build import build_engine, build_services
    from farm.serving.client import LocalEngine
    from farm.serving.http.app import create_app
    from farm.serving.http_server import bounded_config
    from farm.serving.metrics import PrometheusMetrics

    report = StartLines()
    inventory = inventory_beside(settings.store)
    report(f"loading the base {settings.base} …")
    engine, facts = build_engine(settings)
    report(f"loaded on {engine.base.device}; starting …")
    engine.start()
    for line in what_is_served(inventory, settings, facts.fingerprint):
        report(line)
    if not engine.wait_until_measured(0):
        report("measuring the batch limit of this base on this machine in the background, once")
        threading.Thread(target=print_batch_limit, args=(engine, report), daemon=True).start()
    client = LocalEngine(engine, facts)
    services = build_services(
        settings, client, PrometheusMetrics(), link_secret=secrets.token_bytes(32)
    )
    server = _draining_server(
        bounded_config(
            create_app(services),
            settings.connections,
            host=host,
            port=port,
            timeout_graceful_shutdown=max(1, int(drain_s)),
        ),
        client,
        f"{settings.public_base} and the adapters of {settings.store}",
        report,
    )
    try:
        server.run()
    finally:
        engine.stop()


def _draining_server(
    config: Any, client: LocalEngine, what: str, report: Callable[[str], None]
) -> Any:
    """A server that reports its address, and drains its requests before it stops."""
    import signal

    import uvicorn

    class DrainingServer(uvicorn.Server):
        async def startup(self, sockets: Any = None) -> None:
            await super().startup(sockets=sockets)
            if self.started:
                for server in self.servers:
                    address = server.sockets[0].getsockname()
                    report(f"serving {what} at http://{address[0]}:{address[1]}")

        def handle_exit(self, sig: int, frame: Any) -> None:
            # a requested stop is not an error, so the signal is not raised again afterwards
            client.drain()
            self.force_exit = self.should_exit and sig == signal.SIGINT
            self.should_exit = True

    return DrainingServer(config)


def serve_with_ray(settings: EndpointConfig, run: RayRun) -> None:
    """Run the Ray Serve application on a cluster, or on a local one started for it.

    On a shared cluster the applications of others keep running when this one ends.

    Raises:
        UserError: if the cluster cannot be reached, or its resources can never suffice.
        FarmError: if the endpoint is not ready by the deadline.
    """
    import contextlib
    import os

    from farm.serving.http_server import ray_environment

    if run.address:
        os.environ["RAY_ADDRESS"] = run.address
    # Ray reads these when it is imported, and so do the processes that it starts
    for name, value in ray_environment(settings.connections).items():
        os.environ.setdefault(name, value)

    import ray
    from ray import serve as ray_serve

    from farm.serving.app import build_app
    from farm.serving.cluster import deploy
    from farm.serving.cluster.client import ENGINE
    from farm.training.cluster.start import start_ray

    report = StartLines()
    ends = _Ends(report)
    inventory = inventory_beside(settings.store)
    port = run.port or _free_port(run.host)
    report(f"starting Ray Serve with the base {settings.base} …")
    _hush_ray()
    named = {"address": run.address} if run.address else {}
    start_ray(log_to_driver=False, **named)
    try:
        settings = deploy.place_ingresses(settings)
        deploy.deploy(build_app(settings), settings, run.host, port)
        try:
            is_up = deploy.wait_ready(
                settings.replicas,
                run.start_timeout_s,
                report,
                cluster_words=_cluster_words,
                stop=ends.asked,
            )
            if is_up:
                engine = ray_serve.get_deployment_handle(ENGINE, deploy.APPLICATION)
                facts = engine.facts.remote().result(timeout_s=60)
                for line in what_is_served(inventory, settings, facts.fingerprint):
                    report(line)
                report(f"serving {settings.public_base} at http://{run.host}:{port}")
                ends.asked.wait()
                within_s = settings.replicas.drain_s if run.drain_s is None else run.drain_s
                left = deploy.drain(settings.replicas, within_s, report, ends.hurry)
                if left:
                    report(f"{left} unfinished requests are ended")
        finally:
            with contextlib.suppress(ray.exceptions.RayError, TimeoutError):
                deploy.remove()
    finally:
        ray.shutdown()


@dataclass(frozen=True, slots=True)
class RayRun:
    """How ``farm serve --ray`` runs."""

    host: str
    port: int
    address: str | None
    """The cluster; None starts one on this machine."""
    start_timeout_s: float
    drain_s: float | None
    """None is the config's ``replicas.drain_s``."""


class _Ends:
    """Signals as events: the first asks for the end, a second one hurries it."""

    def __init__(self, report: Callable[[str], None]) -> None:
        import signal
        import threading

        self.asked, self.hurry = threading.Event(), threading.Event()
        self._report = report
        for sign in (signal.SIGTERM, signal.SIGINT):  # a requested stop is not an error
            signal.signal(sign, self._take)

    def _take(self, *_: object) -> None:
        if self.asked.is_set():
            self.hurry.set()
            return
        self._report("stopping; once more ends the running requests too")
        self.asked.set()


def _cluster_words() -> str:
    """The cluster's nodes, what is free, and its autoscaler's state."""
    import ray

    from farm.training.cluster.watch import autoscaler_words, nodes_words

    nodes = [node for node in ray.nodes() if node["Alive"]]
    free = ray.available_resources()
    left = " and ".join(f"{free[name]:g} {name}" for name in ("CPU", "GPU") if free.get(name))
    words = f"the cluster has {nodes_words(nodes)}, {left or 'nothing'} free"
    scaler = autoscaler_words(str(ray.get_runtime_context().gcs_address))
    return f"{words}; {scaler}" if scaler else words


def _hush_ray() -> None:
    """Keep Ray's reports of dead workers and retries off the terminal. The endpoint answers for
    them, and they are in Ray's logs. ``log_to_driver`` does not cover them."""
    import logging
    import os

    if os.environ.get("FARM_DEBUG"):
        return
    import ray._private.worker

    ray._private.worker.print_to_stdstream = lambda *_, **__: None
    logging.getLogger("ray.serve").setLevel(logging.ERROR)


def _free_port(host: str) -> int:
    import socket

    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as free:
        free.bind((host, 0))
        return int(free.getsockname()[1])
