"""Running the endpoint: in this process, or as an application of Ray Serve.

Owns the life of the server, from loading the base to the drained shutdown, and the lines printed
meanwhile. The options belong to ``farm.cli.commands.serve``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from farm.cli.listening import bind_sockets
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

__all__ = ["serve_here", "serve_with_ray"]

APPLICATION = "farm"
"""Name of the application on Ray Serve."""


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
    sockets = bind_sockets(host, port)
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
            timeout_graceful_shutdown=max(1, int(drain_s)),
        ),
        client,
        f"{settings.public_base} and the adapters of {settings.store}",
        report,
    )
    try:
        server.run(sockets)
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


def serve_with_ray(settings: EndpointConfig, host: str, port: int) -> None:
    """Run the Ray Serve application on a cluster, or on a local one started for it.

    On a shared cluster the applications of others keep running when this one ends.
    """
    import contextlib
    import os
    import signal
    import threading

    from farm.serving.http_server import ray_environment

    # Ray reads these when it is imported, and so do the processes that it starts
    for name, value in ray_environment(settings.connections).items():
        os.environ.setdefault(name, value)

    import ray
    from ray import serve as ray_serve

    from farm.serving.app import build_app
    from farm.serving.cluster.client import ENGINE
    from farm.training.cluster.auth import use_token_if_there_is_one
    from farm.training.cluster.ray_folder import ray_folder_options

    use_token_if_there_is_one()
    port = _free_port(host, port)
    report = StartLines()
    inventory = inventory_beside(settings.store)
    report(f"starting Ray Serve with the base {settings.base} …")
    folder = {} if os.environ.get("RAY_ADDRESS") else ray_folder_options()
    ray.init(ignore_reinit_error=True, log_to_driver=False, **folder)
    try:
        ray_serve.start(http_options={"host": host, "port": port})
        ray_serve.run(build_app(settings), name=APPLICATION, route_prefix="/")
        stop = threading.Event()
        for sign in (signal.SIGTERM, signal.SIGINT):  # a requested stop is not an error
            signal.signal(sign, lambda *_: stop.set())
        engine = ray_serve.get_deployment_handle(ENGINE, APPLICATION)
        facts = engine.facts.remote().result(timeout_s=60)
        for line in what_is_served(inventory, settings, facts.fingerprint):
            report(line)
        report(f"serving {settings.public_base} at http://{host}:{port}")
        stop.wait()
    finally:
        with contextlib.suppress(ray.exceptions.RayError):
            ray_serve.delete(APPLICATION)
            if not ray_serve.status().applications:
                ray_serve.shutdown()
        ray.shutdown()


def _free_port(host: str, port: int) -> int:
    """The port, once it is known to be free; any free one for 0.

    Raises:
        UserError: as ``bind_sockets``.
    """
    bound = bind_sockets(host, port)
    chosen = int(bound[0].getsockname()[1])
    for one in bound:
        one.close()
    return chosen
