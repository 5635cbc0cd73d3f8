"""Running the endpoint in this process.

Owns the life of the server, from loading the base to the drained shutdown, and the lines printed
meanwhile. The options belong to ``farm.cli.commands.serve``; ``serving_on_ray.py`` runs the
endpoint as an application of Ray Serve.
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

__all__ = ["serve_here"]

SWITCH_INTERVAL_S = 0.0005
"""How long a busy thread keeps the interpreter from another. The engine takes it back after each of
some hundred operations of a pass; with Python's 5 ms, a flood of requests would slow it tenfold."""


def serve_here(settings: EndpointConfig, host: str, port: int, drain_s: float) -> None:
    """Run engine and HTTP server in this process, until it is stopped."""
    import gc
    import secrets
    import sys
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
    metrics = PrometheusMetrics()
    services = build_services(settings, client, metrics, link_secret=secrets.token_bytes(32))
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
    gc.collect()  # what loading left; the server excludes the rest from collections
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    try:
        server.run(sockets)
    finally:
        engine.stop()
    num = metrics.total("farm_pictures", outcome="generated")
    report(f"stopped; {num} {'image' if num == 1 else 'images'} served")


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
