"""The autoscaling policy of the engines: as many as finish the backlog in time, and as fit.

Owns the number of engines. Where the cluster cannot grow, an engine that has no place is not asked
for: it would wait for resources, and take those of a lost ingress before its replacement does.
"""

from __future__ import annotations

import time
from typing import Any

import ray
from ray.serve.config import AutoscalingContext

from farm.serving.cluster.places import choose_ingresses, engines_beside
from farm.serving.cluster.routing import wanted_replicas
from farm.serving.settings import ReplicaConfig

__all__ = ["ScaleOnBacklog", "cluster_limit", "cluster_nodes", "scale_on_backlog"]

LOOK_EVERY_S = 5.0


def scale_on_backlog(context: AutoscalingContext) -> tuple[float, dict[str, Any]]:
    """Ray Serve's autoscaling policy: the number of engines for the current backlog.

    Engines report seconds of work, because a count of requests says little: one may be 12 steps at
    512 px, another 1,500 at 1024. A request that waits for any engine counts as one target.
    """
    config = context.config
    target_s = float(getattr(config, "target_ongoing_requests", None) or 10.0)
    reported = (context.aggregated_metrics or {}).get("backlog_s", {})
    backlog_s = sum(reported.values())
    unplaced = float(context.total_queued_requests or 0)
    wanted = wanted_replicas(context.current_num_replicas, backlog_s, target_s)
    floor = 1.0 if context.total_num_requests else 0.0
    return max(floor, wanted + min(unplaced, 1.0)), context.policy_state


class ScaleOnBacklog:
    """``scale_on_backlog``, with no more engines than fit beside the ingresses."""

    def __init__(self, **replicas: Any) -> None:
        self._replicas = ReplicaConfig.model_validate(replicas)
        self._fitting = 0.0
        self._looked_s = 0.0

    def __call__(self, context: AutoscalingContext) -> tuple[float, dict[str, Any]]:
        wanted, state = scale_on_backlog(context)
        return min(wanted, self._most()), state

    def _most(self) -> float:
        now_s = time.monotonic()
        if not self._looked_s or now_s - self._looked_s > LOOK_EVERY_S:
            self._looked_s = now_s
            self._fitting = float("inf") if cluster_limit() is not None else self._count()
        return self._fitting

    def _count(self) -> float:
        nodes = cluster_nodes()
        ingresses = choose_ingresses(nodes, self._replicas)
        return float(max(1, engines_beside(nodes, self._replicas, ingresses)))


def cluster_nodes() -> list[dict[str, float]]:
    """The resources of each living node, in use or not."""
    return [dict(node["Resources"]) for node in ray.nodes() if node["Alive"]]


def cluster_limit() -> dict[str, float] | None:
    """The resources that an autoscaling cluster could grow to; None for any other."""
    most = ray._private.state.state.get_max_resources_from_cluster_config()
    return None if most is None else {name: float(amount) for name, amount in most.items()}
