"""The endpoint on Ray Serve: ingress processes in front of engine replicas.

Owns the deployments: what a replica does and when replicas are added. An image depends on its
request alone, so another replica generates a lost image again without the caller noticing; see
``cluster/client.py``.

    build_app(config)   for `serve run`, `serve deploy` and jobs/serve.yaml
"""

from __future__ import annotations

import contextlib
import os
import secrets
import time
from collections.abc import AsyncGenerator, Mapping
from dataclasses import replace
from typing import Any

import ray
from fastapi import FastAPI
from ray import serve
from ray.serve.config import AutoscalingConfig, AutoscalingPolicy, RequestRouterConfig
from ray.serve.handle import DeploymentHandle

from farm.errors import FarmError
from farm.model_imports.lean import keep_imports
from farm.serving.build import build_engine, build_services
from farm.serving.client import ImageEvent, ServedBase, flat_stats, generate_with
from farm.serving.cluster.client import ENGINE, ReplicaClient
from farm.serving.cluster.deploy import INGRESS
from farm.serving.cluster.metrics import RayMetrics
from farm.serving.cluster.places import choose_ingresses
from farm.serving.cluster.router import AdapterRouter
from farm.serving.cluster.scaling import cluster_nodes
from farm.serving.http.app import create_app
from farm.serving.http.services import Services
from farm.serving.metrics import observe_stats
from farm.serving.request import GenerationRequest, Picture
from farm.serving.settings import EndpointConfig, ReplicaConfig

__all__ = ["EngineReplica", "Ingress", "ReplicaClient", "build_app"]

LINK_SECRET_VARIABLE = "FARM_LINK_SECRET"
HEALTH_PERIOD_S = 2.0
"""A dead replica is replaced at its next health check; Ray Serve's period is 10 s."""


# -- engines -------------------------------------------------------------------------------------


class EngineReplica:
    """One engine in one process, on its share of a GPU."""

    def __init__(self, config: EndpointConfig) -> None:
        keep_imports()
        self._config = config
        self._engine, self._facts = build_engine(config)
        self._engine.start()
        self._metrics = RayMetrics()
        self._name = serve.get_replica_context().replica_id.unique_id

    async def facts(self) -> ServedBase:
        """Describe the base."""
        return self._facts

    async def generate(self, requests: tuple[GenerationRequest, ...]) -> list[Picture]:
        """Generate images in parallel; cancelling the call cancels them."""
        pictures: dict[int, Picture] = {}
        async with contextlib.aclosing(generate_with(self._engine, requests, listen=False)) as news:
            async for index, item in news:
                if isinstance(item, Picture):
                    pictures[index] = item
        return [self._signed(pictures[index]) for index in range(len(requests))]

    async def generate_listening(
        self, requests: tuple[GenerationRequest, ...]
    ) -> AsyncGenerator[ImageEvent]:
        """As ``generate``, as a stream with progress."""
        async with contextlib.aclosing(generate_with(self._engine, requests, listen=True)) as news:
            async for index, item in news:
                yield index, self._signed(item) if isinstance(item, Picture) else item

    def _signed(self, picture: Picture) -> Picture:
        """The image with this engine's name added to its metadata."""
        return replace(picture, metadata={**picture.metadata, "engine": self._name})

    async def check_health(self) -> None:
        """Called by Ray Serve, which replaces the replica if this raises."""
        if not self._engine.healthy:
            raise RuntimeError("the engine's loop has stopped or is stuck")

    async def record_routing_stats(self) -> dict[str, Any]:
        """Sent to every ingress by Ray Serve, every ``stats_every_s``."""
        stats = self._engine.stats()
        flat = flat_stats(stats)
        observe_stats(self._metrics, flat)
        return {"wait_s": stats.wait_s, "at_s": time.time(), "stats": flat}

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """The input of ``cluster/scaling.py``."""
        return {"backlog_s": self._engine.stats().backlog_s}

    def __del__(self) -> None:
        engine = getattr(self, "_engine", None)
        if engine is not None:
            # Ray Serve has waited for the requests in flight; nothing is left to drain
            engine.stop()


# -- ingresses -----------------------------------------------------------------------------------

_ingress_services: list[Services] = []
"""The services of this process; a replica has one. The app is built after the replica's
constructor, by a function without arguments, which every version of Ray Serve supports."""


def _ingress_app() -> FastAPI:
    return create_app(_ingress_services[0], names_requests=False)


@serve.ingress(_ingress_app)
class Ingress:
    """One HTTP process: validates, resolves names, forwards, encodes. Holds no model and no GPU."""

    def __init__(
        self, config: EndpointConfig, link_secret: bytes, engines: DeploymentHandle
    ) -> None:
        client = ReplicaClient(engines, config.replicas)
        services = build_services(config, client, RayMetrics(), link_secret=link_secret)
        _ingress_services[:] = [services]


# -- the application -----------------------------------------------------------------------------


def build_app(args: Mapping[str, Any] | EndpointConfig) -> serve.Application:
    """The application for `serve run farm.serving.app:build_app store=…` and for config files.

    Raises:
        FarmError: if the config is wrong.
    """
    config = _parse(args)
    # Ray Serve builds the application on the cluster; elsewhere its nodes are not known
    nodes = cluster_nodes() if ray.is_initialized() else []
    num_ingresses = choose_ingresses(nodes, config.replicas)
    replicas = config.replicas.model_copy(update={"num_ingresses": num_ingresses})
    secret = os.environ.get(LINK_SECRET_VARIABLE, "").encode() or secrets.token_bytes(32)
    ingress = serve.deployment(
        Ingress,
        name=INGRESS,
        num_replicas=replicas.num_ingresses,
        ray_actor_options={"num_cpus": replicas.cpus_per_ingress},
        max_ongoing_requests=1000,
        health_check_period_s=HEALTH_PERIOD_S,
        health_check_timeout_s=30.0,
        graceful_shutdown_timeout_s=replicas.drain_s,
    )
    return ingress.bind(config, secret, _engine(replicas).bind(config))


def _engine(replicas: ReplicaConfig) -> serve.Deployment:
    """The deployment of the engines, which grows and shrinks with the backlog."""
    return serve.deployment(
        EngineReplica,
        name=ENGINE,
        ray_actor_options={
            "num_cpus": replicas.cpus_per_engine,
            "num_gpus": replicas.gpus_per_engine,
        },
        max_ongoing_requests=replicas.requests_per_engine,
        autoscaling_config=AutoscalingConfig(
            min_replicas=replicas.min_engines,
            max_replicas=replicas.max_engines,
            # read by ``scale_on_backlog`` as seconds of work for each engine
            target_ongoing_requests=replicas.target_wait_s,
            upscale_delay_s=replicas.upscale_delay_s,
            downscale_delay_s=replicas.downscale_delay_s,
            policy=AutoscalingPolicy(
                policy_function="farm.serving.cluster.scaling:ScaleOnBacklog",
                policy_kwargs=replicas.model_dump(),
            ),
        ),
        request_router_config=RequestRouterConfig(
            request_router_class=AdapterRouter,
            request_router_kwargs={"load_bound": replicas.load_bound},
            request_routing_stats_period_s=replicas.stats_every_s,
        ),
        health_check_period_s=HEALTH_PERIOD_S,
        health_check_timeout_s=30.0,
        graceful_shutdown_timeout_s=replicas.drain_s,
    )


def _parse(args: Mapping[str, Any] | EndpointConfig) -> EndpointConfig:
    if isinstance(args, EndpointConfig):
        return args
    from pydantic import ValidationError

    try:
        return EndpointConfig.model_validate(dict(args))
    except ValidationError as error:
        faults = "; ".join(
            f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors()
        )
        raise FarmError(
            f"the endpoint's config is wrong: {faults}", "docs/serving.md lists its fields"
        ) from None
