"""The hardware of a cluster's nodes, as Ray reports it.

Owns the conversion of Ray's node table, and of an autoscaling cluster's node types (whose nodes may
not be running yet), into the ``Hardware`` that a plan is made for. Only ``read_hardware`` connects
to Ray; the choice is a pure function.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from farm.errors import UserError
from farm.training.plan.hardware import Hardware, memory_of

__all__ = [
    "BOOTSTRAP_CONFIG",
    "NodeKind",
    "choose_hardware",
    "kinds_of_config",
    "kinds_of_nodes",
    "read_hardware",
]

BOOTSTRAP_CONFIG = "~/ray_bootstrap_config.yaml"
"""Where ``ray up`` puts the cluster's configuration on the head."""
ACCELERATOR = "accelerator_type:"
REMEDY = "describe the nodes: --gpu A100 --gpus 8 --nodes 4, or --cpus 16 --nodes 4"


@dataclass(frozen=True, slots=True)
class NodeKind:
    """Nodes with the same resources."""

    cpus: float
    gpus: int
    gpu_name: str | None
    num_nodes: int
    """Running now; for a node type, the maximum."""


def kinds_of_nodes(nodes: Iterable[Mapping[str, Any]]) -> list[NodeKind]:
    """The living nodes of ``ray.nodes()``, grouped."""
    counts: dict[tuple[float, int, str | None], int] = defaultdict(int)
    for node in nodes:
        if node["Alive"]:
            counts[_shape(node["Resources"])] += 1
    return [NodeKind(*shape, count) for shape, count in counts.items()]


def kinds_of_config(config: Mapping[str, Any]) -> list[NodeKind]:
    """The worker node types of a cluster file, as ``ray up`` prepares it."""
    limit = int(config.get("max_workers") or 0)
    head = config.get("head_node_type")
    kinds = []
    for name, entry in config.get("available_node_types", {}).items():
        count = min(int(entry.get("max_workers") or 0), limit)
        if name != head and count:
            kinds.append(NodeKind(*_shape(entry.get("resources", {})), count))
    return _merged(kinds, limit)


def _shape(resources: Mapping[str, float]) -> tuple[float, int, str | None]:
    names = [key.removeprefix(ACCELERATOR) for key in resources if key.startswith(ACCELERATOR)]
    gpus = int(resources.get("GPU", 0))
    return float(resources.get("CPU", 0)), gpus, names[0] if names and gpus else None


def _merged(kinds: Iterable[NodeKind], limit: int) -> list[NodeKind]:
    """Merge spot and on-demand nodes of the same shape."""
    counts: dict[tuple[float, int, str | None], int] = defaultdict(int)
    for kind in kinds:
        counts[kind.cpus, kind.gpus, kind.gpu_name] += kind.num_nodes
    return [NodeKind(*shape, min(count, limit)) for shape, count in counts.items()]


def choose_hardware(
    kinds: Iterable[NodeKind],
    *,
    gpu_memory_gib: float | None = None,
    nodes: int | None = None,
    price: float | None = None,
) -> Hardware:
    """Choose the nodes for lanes: those with the most GPUs, else the most cores.

    Args:
        nodes: the user's choice; None plans as many as the work needs.

    Raises:
        UserError: if there are none, or their GPU is unknown.
    """
    usable = [kind for kind in kinds if kind.gpus or kind.cpus]
    if not usable:
        raise UserError("no node of the cluster has GPUs or CPU cores for lanes", REMEDY)
    best = max(usable, key=lambda kind: (kind.gpus * kind.num_nodes, kind.cpus * kind.num_nodes))
    count = nodes or best.num_nodes
    is_limit = nodes is None
    if not best.gpus:
        return Hardware(None, 0, 0, best.cpus, count, price, is_limit)
    gib = gpu_memory_gib or memory_of(best.gpu_name or "")
    if gib is None:
        what = f"are {best.gpu_name!r}" if best.gpu_name else "are not named"
        raise UserError(
            f"the GPUs of the cluster's nodes {what}, so their memory is not known",
            "give --gpu and --gpu-memory, or start the nodes with an accelerator_type resource",
        )
    name = best.gpu_name or "GPU"
    return Hardware(name, int(gib * 2**30), best.gpus, best.cpus, count, price, is_limit)


def read_hardware(
    address: str,
    *,
    gpu_memory_gib: float | None = None,
    nodes: int | None = None,
    price: float | None = None,
) -> Hardware:
    """Connect to a cluster and choose its nodes; see ``choose_hardware``."""
    import ray

    from farm.training.cluster.start import is_connected, start_ray

    is_own = not is_connected(address)
    if is_own:
        start_ray(address=address, log_to_driver=False)
    try:
        kinds = _bootstrap_kinds() or kinds_of_nodes(ray.nodes())
        joined = str(ray.get_runtime_context().gcs_address)
    finally:
        if is_own:
            ray.shutdown()
    found = choose_hardware(kinds, gpu_memory_gib=gpu_memory_gib, nodes=nodes, price=price)
    return replace(found, cluster=joined)


def _bootstrap_kinds() -> list[NodeKind]:
    """The cluster's node types, if this is the head of a cluster that ``ray up`` started."""
    import yaml

    try:
        with open(os.path.expanduser(BOOTSTRAP_CONFIG)) as file:
            config = yaml.safe_load(file)
    except (OSError, yaml.YAMLError):
        return []
    return kinds_of_config(config) if isinstance(config, dict) else []
