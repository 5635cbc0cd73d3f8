"""Watches the cluster for the driver: dead nodes, draining nodes, and a head that does not answer.

Owns a thread that polls once a second, so that a silent head never blocks the driver. Also
describes the cluster's resources and its autoscaler's state.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from typing import Any

import ray

from farm.errors import HeadLost
from farm.training.cluster.hardware import BOOTSTRAP_CONFIG
from farm.training.plan.plan import Plan

__all__ = [
    "SILENCE_S",
    "ClusterWatch",
    "autoscaler_words",
    "end_actors",
    "end_controllers",
    "free_places_of_dead_controllers",
    "has_started",
    "head_patience_s",
    "is_autoscaling",
    "missing_words",
    "nodes_words",
    "num_fitting",
]

ASK_S = 1.0
SILENCE_S = 5.0
"""Silence of the head after which the user is informed."""
RAY_PATIENCE = "RAY_gcs_rpc_server_reconnect_timeout_s"
RAY_PATIENCE_S = 60.0
"""Ray's default: after this long without a head, Ray ends every process of the cluster."""
MARGIN_S = 15.0
"""How much earlier than Ray the driver ends the run, with a reason."""
LAST_RESORT_S = 8.0
"""How long after that a driver that is blocked in a Ray call is ended from this thread."""


def head_patience_s() -> float:
    """How long a head may be silent. With an external Redis (GCS fault tolerance), users raise
    Ray's limit with ``RAY_gcs_rpc_server_reconnect_timeout_s``; the driver's limit follows it."""
    whole = float(os.environ.get(RAY_PATIENCE, RAY_PATIENCE_S))
    return max(SILENCE_S, whole - MARGIN_S)


class ClusterWatch:
    """Polls the head for its nodes until ``end``."""

    def __init__(self) -> None:
        self.address = str(ray.get_runtime_context().gcs_address)
        self._ended = threading.Event()
        self._lock = threading.Lock()
        self._answered = time.monotonic()
        self._nodes: list[dict[str, Any]] = []
        self._news: dict[str, set[str]] = {"lost": set(), "draining": set()}
        self._known: dict[str, set[str]] = {"lost": set(), "draining": set()}
        self._thread = threading.Thread(target=self._run, name="cluster-watch", daemon=True)
        self._thread.start()

    def end(self) -> None:
        """Stop asking."""
        self._ended.set()
        self._thread.join(2 * ASK_S)

    @property
    def silent_s(self) -> float:
        """Seconds since the head last answered."""
        return time.monotonic() - self._answered

    @property
    def nodes(self) -> list[dict[str, Any]]:
        """Living nodes, as ``ray.nodes()`` has them."""
        with self._lock:
            return [node for node in self._nodes if node["Alive"]]

    def take(self, what: str) -> list[str]:
        """Ids of nodes that are ``lost`` or ``draining`` since the last call."""
        with self._lock:
            taken, self._news[what] = self._news[what], set()
        return sorted(taken)

    def require_head(self) -> None:
        """Raise ``HeadLost`` once the head has been silent for too long."""
        if self.silent_s > head_patience_s():
            raise self.head_lost()

    def finds_head(self) -> bool:
        """Whether the head answers from now on; waits until it does, or has been silent for long.

        A head that dies ends the processes on its node, whose errors may come before its silence is
        noticed.
        """
        began = time.monotonic()
        while self._answered <= began and self.silent_s <= SILENCE_S:
            time.sleep(ASK_S / 10)
        return self._answered > began

    def head_lost(self) -> HeadLost:
        """The error that ends the run."""
        return HeadLost(
            f"the cluster's head at {self.address} has not answered for {self.silent_s:.0f} s; "
            "this run's driver ends. Committed adapters and checkpoints are safe in the store",
            "once the head (or a new one) runs, the same command resumes from the checkpoints",
        )

    def _end_blocked_driver(self) -> None:
        """End the process of a driver that is blocked in a Ray call while the head is gone.

        Ray would end it a few seconds later, with exit code 1 and no message. The guard of the
        run's lock releases the lock.
        """
        if self.silent_s < head_patience_s() + LAST_RESORT_S or self._ended.is_set():
            return
        error = self.head_lost()
        print(f"error: {error}", file=sys.stderr, flush=True)
        os._exit(error.exit_code)

    def _run(self) -> None:
        while not self._ended.is_set():
            self._end_blocked_driver()
            if _answers(self.address):
                try:
                    self._note(ray.nodes(), ray._private.state.state.get_draining_nodes())
                except Exception:  # Ray raises many kinds of errors while its head dies; poll again
                    time.sleep(ASK_S)
            self._ended.wait(ASK_S)

    def _note(self, nodes: list[dict[str, Any]], draining: Iterable[str]) -> None:
        found = {
            "lost": {node["NodeID"] for node in nodes if not node["Alive"]},
            "draining": set(draining),
        }
        with self._lock:
            self._nodes, self._answered = nodes, time.monotonic()
            for what, ids in found.items():
                self._news[what] |= ids - self._known[what]
                self._known[what] |= ids


def _answers(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=ASK_S):
            return True
    except (OSError, ValueError):
        return False


def nodes_words(nodes: Iterable[Mapping[str, Any]]) -> str:
    """``2 nodes with 8 CPU, 1 node with 96 CPU and 8 GPU``."""
    kinds = Counter(
        " and ".join(
            f"{amount:g} {name}"
            for name in ("CPU", "GPU")
            if (amount := node["Resources"].get(name, 0))
        )
        or "neither CPU nor GPU"
        for node in nodes
    )
    parts = [f"{count} node{'s' if count > 1 else ''} with {kind}" for kind, count in kinds.items()]
    return ", ".join(parts) or "no nodes"


def num_fitting(nodes: Iterable[Mapping[str, Any]], wanted: Mapping[str, float]) -> int:
    """How many of the nodes have the wanted CPUs and GPUs, whether free or taken."""
    return sum(
        all(node["Resources"].get(name, 0) >= amount for name, amount in wanted.items())
        for node in nodes
    )


def missing_words(watch: ClusterWatch, plan: Plan, num_missing: int, waited_s: float) -> str:
    """How many nodes of a plan have no lane yet, what each must hold, and what the cluster has."""
    wanted = {
        "CPU": plan.lanes_per_node * plan.cpus_per_lane,
        "GPU": plan.lanes_per_node * plan.gpu_fraction,
    }
    what, taken = "nodes have not come in", ""
    if num_fitting(watch.nodes, wanted) >= plan.num_nodes:  # they are there
        what = "nodes have started no lane in"
        taken = ", which are busy, or held by other work (see `ray status`)"
    share = f" and {plan.gpu_fraction:g} GPU" if plan.gpu_fraction else ""
    words = [
        f"{num_missing} of {plan.num_nodes} {what} {waited_s:.0f} s: "
        f"each must hold {plan.lanes_per_node} lane(s) of {plan.cpus_per_lane:g} CPU{share}",
        f"the cluster has {nodes_words(watch.nodes)}{taken}",
        autoscaler_words(watch.address),
    ]
    return "; ".join(word for word in words if word)


def is_autoscaling() -> bool:
    """Whether ``ray up`` or KubeRay started this driver's head. Ray does not report it: the head of
    a fixed cluster runs an autoscaler's monitor too."""
    is_kuberay = bool(os.environ.get("RAY_CLUSTER_NAME"))
    return is_kuberay or os.path.exists(os.path.expanduser(BOOTSTRAP_CONFIG))


def autoscaler_words(address: str) -> str:
    """The autoscaler's state in one line; empty if there is no autoscaler."""
    from ray.autoscaler.v2.sdk import get_cluster_status

    if not is_autoscaling():
        return ""
    try:
        status = get_cluster_status(address, timeout=5)
    except Exception as error:  # an internal service of Ray; report its failure in one line
        return f"the autoscaler does not answer ({type(error).__name__})"
    parts = [f"{len(status.pending_nodes) + len(status.pending_launches)} nodes starting"]
    for launch in status.failed_launches[-3:]:
        details = " ".join(str(launch.details or "no reason given").split())[:200]
        parts.append(f"{launch.ray_node_type_name} could not be launched: {details}")
    return "the autoscaler has " + "; ".join(parts)


def end_controllers() -> None:
    """Kill this driver's Ray Train controllers; while waiting for nodes they answer no request."""
    core_worker = ray._private.worker.global_worker.core_worker
    for actor_id in _controllers(is_dead=False):
        core_worker.kill_actor(ray.ActorID(bytes.fromhex(actor_id)), True)
    free_places_of_dead_controllers()


def end_actors(class_name: str) -> None:
    """Kill this driver's actors whose class name contains ``class_name``."""
    with suppress(Exception):  # Ray raises many kinds of errors for what has ended meanwhile
        core_worker = ray._private.worker.global_worker.core_worker
        for actor_id in _actors(lambda name: class_name in name, is_dead=False):
            core_worker.kill_actor(ray.ActorID(bytes.fromhex(actor_id)), True)


def has_started(class_name: str) -> bool:
    """Whether one of this driver's actors whose class name contains ``class_name`` is ready for
    work; also true if Ray does not answer."""
    try:
        job_id = ray.get_runtime_context().get_job_id()
        return any(
            class_name in actor["ActorClassName"]
            for actor in ray._private.state.actors().values()
            if actor["JobID"] == job_id and actor["State"] == "ALIVE"
        )
    except Exception:  # as in ``end_actors``
        return True


def free_places_of_dead_controllers() -> None:
    """Remove the placement groups, pending ones included, of killed controllers.

    Ray keeps a placement group until its job ends, and the Ray Train actor that would remove it
    needs the dashboard. Lanes that replace the dead ones would find no free resources.
    """
    from ray.core.generated.gcs_pb2 import PlacementGroupTableData
    from ray.util.placement_group import PlacementGroup, remove_placement_group

    dead = _controllers(is_dead=True)
    accessor = ray._private.state.state._connect_and_get_accessor()
    for data in accessor.get_placement_group_table():
        group = PlacementGroupTableData.FromString(data)
        is_left = group.state != PlacementGroupTableData.PlacementGroupState.REMOVED
        if is_left and group.creator_actor_id.hex() in dead:
            remove_placement_group(PlacementGroup(ray.PlacementGroupID(group.placement_group_id)))


def _controllers(*, is_dead: bool) -> set[str]:
    """Ids of this driver's Ray Train controllers."""
    return _actors(lambda name: name == "TrainController", is_dead=is_dead)


def _actors(is_meant: Callable[[str], bool], *, is_dead: bool) -> set[str]:
    """Ids of this driver's actors with such class names."""
    job_id = ray.get_runtime_context().get_job_id()
    return {
        actor_id
        for actor_id, actor in ray._private.state.actors().items()
        if actor["JobID"] == job_id
        and is_meant(actor["ActorClassName"])
        and (actor["State"] == "DEAD") == is_dead
    }
