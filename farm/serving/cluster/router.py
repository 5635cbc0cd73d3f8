"""The request router of the engine deployment: adapter affinity inside Ray Serve.

Connects Ray Serve's router to ``routing.rank_replicas``. Load is counted here, in images sent and
not yet answered, because a replica's own report is up to a second old.
"""

from __future__ import annotations

import importlib
from collections import Counter
from collections.abc import Sequence
from typing import Any

from ray.serve.request_router import (
    PendingRequest,
    ReplicaID,
    RequestRouter,
    RunningReplica,
)

from farm.serving.cluster.routing import LOAD_BOUND, rank_replicas
from farm.serving.request import GenerationRequest

__all__ = ["ROUTERS", "AdapterRouter", "adapter_key", "requests_of"]


class AdapterRouter(RequestRouter):  # type: ignore[misc]
    """Sends a request to the replica that has its adapter, within a bound on the load.

    Not a ``FIFOMixin``, which would give the replica found for one request to the request that has
    waited longest and so defeat the affinity. Requests are matched by id instead, which is why an
    HTTP request makes one call for all its images.
    """

    def initialize_state(self, load_bound: float = LOAD_BOUND, **_: Any) -> None:
        """Called by Ray Serve with ``request_router_kwargs``."""
        self._load_bound = load_bound
        self._sent: Counter[str] = Counter()
        self._under_way: dict[str, tuple[str, int]] = {}
        _this_module().ROUTERS[self._deployment_id.name] = self

    async def choose_replicas(
        self,
        candidate_replicas: list[RunningReplica],
        pending_request: PendingRequest | None = None,
    ) -> list[list[RunningReplica]]:
        """The replicas in order, one per rank, so that Ray Serve keeps the order."""
        by_name = {replica.replica_id.unique_id: replica for replica in candidate_replicas}
        loads = {name: float(self._sent[name]) for name in by_name}
        key = _this_module().adapter_key(pending_request)
        order = rank_replicas(key, loads, bound=self._load_bound)
        if pending_request is not None:
            pending_request.routing_context.should_backoff = True
        return [[by_name[name]] for name in order]

    def on_request_routed(
        self, pending_request: PendingRequest, replica_id: ReplicaID, result: Any
    ) -> None:
        """Count requests that a replica has accepted."""
        count = len(_this_module().requests_of(pending_request))
        if count:
            name = replica_id.unique_id
            self._under_way[pending_request.metadata.internal_request_id] = (name, count)
            self._sent[name] += count

    def on_request_completed(self, replica_id: ReplicaID, internal_request_id: str) -> None:
        """Count requests that a replica has finished or lost."""
        name, count = self._under_way.pop(internal_request_id, ("", 0))
        self._sent[name] -= count
        if self._sent[name] <= 0:
            del self._sent[name]

    def replica_stats(self) -> list[dict[str, Any]]:
        """Each replica's latest report; see ``record_routing_stats`` in ``serving/app.py``."""
        return [dict(replica.routing_stats) for replica in list(self._replicas_list)]


def _this_module() -> Any:
    """This module as imported by the current process.

    Ray Serve ships the class by value, with copies of this module's globals. Entries in a copied
    table would be invisible to other code, and a copied class is not the class of the requests.
    """
    return importlib.import_module("farm.serving.cluster.router")


ROUTERS: dict[str, AdapterRouter] = {}
"""The routers of this process by deployment, so that the ingress can read its replicas' reports."""


def requests_of(pending: PendingRequest | None) -> Sequence[GenerationRequest]:
    """The images that a call requests; empty for other calls."""
    first = pending.args[0] if pending is not None and pending.args else None
    if isinstance(first, tuple) and all(isinstance(item, GenerationRequest) for item in first):
        return first
    return ()


def adapter_key(pending: PendingRequest | None) -> str:
    """The key of the first adapter of the request; empty for the bare base and for other calls."""
    requests = requests_of(pending)
    return requests[0].adapters[0][0].key if requests and requests[0].adapters else ""
