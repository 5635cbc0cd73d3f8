"""Running the endpoint as an application of Ray Serve, on a cluster or on this machine alone.

Owns the environment that Ray needs, the signals, and the lines printed meanwhile. The steps are
those of ``farm.serving.cluster.deploy``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from farm.cli.listening import bind_sockets
from farm.cli.views.serve_start import StartLines, inventory_beside, what_is_served

if TYPE_CHECKING:
    from farm.serving.settings import EndpointConfig

__all__ = ["RayRun", "serve_with_ray"]


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


def serve_with_ray(settings: EndpointConfig, run: RayRun) -> None:
    """Run the endpoint on a cluster, or on a local one started for it.

    On a shared cluster the applications of others keep running when this one ends.

    Raises:
        UserError: if the cluster cannot be reached, or its resources can never suffice.
        FarmError: if the endpoint is not ready by the deadline.
    """
    import os

    from farm.serving.cluster.environment import ray_environment

    if run.address:
        os.environ["RAY_ADDRESS"] = run.address
    # Ray reads these when it is imported, and so do the processes that it starts
    for name, value in ray_environment(settings.connections).items():
        os.environ.setdefault(name, value)

    import ray

    from farm.serving.cluster.places import check_fits
    from farm.training.cluster.start import start_ray

    if not (run.address and run.port):  # proxies of a cluster may already listen
        run = replace(run, port=_free_port(run.host, run.port))
    report = StartLines()
    if not run.address:
        check_fits(_this_machine(), settings.replicas)
    report(f"starting Ray Serve with the base {settings.base} …")
    _hush_ray()
    start_ray(log_to_driver=False, **({"address": run.address} if run.address else {}))
    try:
        _serve(settings, run, report)
    finally:
        ray.shutdown()


def _serve(settings: EndpointConfig, run: RayRun, report: StartLines) -> None:
    """Deploy, serve until a signal, drain, and remove."""
    import contextlib

    import ray

    from farm.serving.app import build_app
    from farm.serving.cluster import deploy

    ends = _Ends()  # Ray sets signal handlers of its own when it starts
    inventory = inventory_beside(settings.store)
    settings = deploy.place_ingresses(settings)
    deploy.deploy(build_app(settings), settings, run.host, run.port)
    try:
        is_up = deploy.wait_ready(
            settings.replicas,
            run.start_timeout_s,
            report,
            cluster_words=_cluster_words,
            stop=ends.asked,
        )
        if is_up:
            for line in what_is_served(inventory, settings, deploy.served_base().fingerprint):
                report(line)
            report(f"serving {settings.public_base} at http://{run.host}:{run.port}")
            ends.asked.wait()
            report("stopping; a second signal does not wait for the running requests")
            within_s = settings.replicas.drain_s if run.drain_s is None else run.drain_s
            left = deploy.drain(settings.replicas, within_s, report, ends.hurry)
            report(f"unfinished requests: {left}")
    finally:
        if run.address:  # a Ray of its own ends with this process
            with contextlib.suppress(ray.exceptions.RayError, TimeoutError):
                deploy.remove()
    report("stopped")


class _Ends:
    """Signals as events: the first asks for the end, the second hurries it."""

    def __init__(self) -> None:
        import signal
        import threading

        self.asked, self.hurry = threading.Event(), threading.Event()
        for sign in (signal.SIGTERM, signal.SIGINT):  # a requested stop is not an error
            signal.signal(sign, self._take)

    def _take(self, *_: object) -> None:
        (self.hurry if self.asked.is_set() else self.asked).set()


def _this_machine() -> list[dict[str, float]]:
    """The resources that Ray will find here, so that a faulty config fails before Ray starts."""
    import torch
    from ray._private.utils import get_num_cpus

    return [{"CPU": float(get_num_cpus()), "GPU": float(torch.cuda.device_count())}]


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
    """Keep Ray Serve's log lines off the terminal; they are in Ray's logs."""
    import logging
    import os

    if os.environ.get("FARM_DEBUG"):
        return
    import ray.serve  # noqa: F401 - its import sets the level of its logger

    logging.getLogger("ray.serve").setLevel(logging.ERROR)


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
