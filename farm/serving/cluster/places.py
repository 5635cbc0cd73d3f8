"""Whether the engines and ingresses of an endpoint fit on a cluster's nodes.

Owns the comparison of the resources that an endpoint needs with those that a cluster has, or could
start: ingresses are placed first, where they cost the fewest engines. Pure: nodes are mappings of
resource names to amounts, as in Ray's node table.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from farm.errors import UserError
from farm.serving.settings import ReplicaConfig

__all__ = ["check_fits", "choose_ingresses", "engines_beside", "needs_words"]

Node = Mapping[str, float]

TWO = 2
ROUNDING = 1e-6
"""Ray counts resources in ten-thousandths."""


def engines_beside(nodes: Sequence[Node], replicas: ReplicaConfig, num_ingresses: int) -> int:
    """The most engines that fit beside the ingresses; -1 if not even those fit."""
    left = [dict(node) for node in nodes]
    for _ in range(num_ingresses):
        best = min(
            (node for node in left if _times(node, _ingress(replicas)) >= 1),
            key=lambda node: _loss(node, replicas),
            default=None,
        )
        if best is None:
            return -1
        _take(best, _ingress(replicas))
    return sum(_times(node, _engine(replicas)) for node in left)


def choose_ingresses(nodes: Sequence[Node], replicas: ReplicaConfig) -> int:
    """The configured number of ingresses, else two; one where only the second does not fit."""
    if replicas.num_ingresses is not None:
        return replicas.num_ingresses
    wanted = max(replicas.min_engines, 1)
    fits_one = engines_beside(nodes, replicas, 1) >= wanted
    fits_two = engines_beside(nodes, replicas, TWO) >= wanted
    return 1 if fits_one and not fits_two else TWO


def check_fits(
    nodes: Sequence[Node], replicas: ReplicaConfig, most: Mapping[str, float] | None = None
) -> None:
    """Compare what the endpoint needs at its start with what the cluster has.

    Args:
        nodes: each node's resources, in use or not.
        most: of an autoscaling cluster, the resources that it could grow to.

    Raises:
        UserError: if the endpoint can never start. The message has both, and what would fit.
    """
    engines = max(replicas.min_engines, 1)
    ingresses = choose_ingresses(nodes, replicas)
    if engines_beside(nodes, replicas, ingresses) >= engines:
        return
    needed = {
        name: engines * _engine(replicas).get(name, 0) + ingresses * _ingress(replicas).get(name, 0)
        for name in ("CPU", "GPU")
    }
    if most is not None:
        if all(most.get(name, 0) + ROUNDING >= amount for name, amount in needed.items()):
            return
        there = f"the cluster can grow to {_words(most)}"
    else:
        total = {name: sum(node.get(name, 0) for node in nodes) for name in ("CPU", "GPU")}
        there = f"the cluster has {_words(total)}"
        there += f" on {len(nodes)} nodes" if len(nodes) > 1 else ""
    raise UserError(
        f"{needs_words(replicas, engines, ingresses)}: together {_words(needed)}, and {there}",
        _remedy(nodes, replicas, engines),
    )


def needs_words(replicas: ReplicaConfig, engines: int, ingresses: int) -> str:
    """``2 engines of 1 CPU and 1 ingress of 0.5 CPU``."""
    return (
        f"{engines} engine{'s' * (engines != 1)} of {_words(_engine(replicas))} "
        f"and {ingresses} ingress{'es' * (ingresses != 1)} of {_words(_ingress(replicas))}"
    )


def _remedy(nodes: Sequence[Node], replicas: ReplicaConfig, engines: int) -> str:
    """What would fit: fewer engines, or smaller shares of the CPUs."""
    ways = []
    ingresses = choose_ingresses(nodes, replicas)
    fitting = engines_beside(nodes, replicas, replicas.num_ingresses or 1)
    if fitting >= 1:
        ways.append(f"--engines {fitting}")
    cpus = sum(node.get("CPU", 0) for node in nodes)
    share = math.floor(100 * cpus / (engines + ingresses)) / 100
    smaller = replicas.model_copy(
        update={
            "cpus_per_engine": min(share, replicas.cpus_per_engine),
            "cpus_per_ingress": min(share, replicas.cpus_per_ingress),
        }
    )
    if share > 0 and engines_beside(nodes, smaller, ingresses) >= engines:
        ways.append(
            f"`replicas: {{cpus_per_engine: {smaller.cpus_per_engine:g}, "
            f"cpus_per_ingress: {smaller.cpus_per_ingress:g}}}` in the config file"
        )
    ways.append("more nodes" if ways else "add nodes, or lower `replicas` in the config file")
    return ", or ".join([", ".join(ways[:-1]), ways[-1]]) if len(ways) > 1 else ways[0]


def _engine(replicas: ReplicaConfig) -> dict[str, float]:
    needs = {"CPU": replicas.cpus_per_engine, "GPU": replicas.gpus_per_engine}
    return {name: amount for name, amount in needs.items() if amount}


def _ingress(replicas: ReplicaConfig) -> dict[str, float]:
    return {"CPU": replicas.cpus_per_ingress} if replicas.cpus_per_ingress else {}


def _times(node: Node, needs: Mapping[str, float]) -> int:
    """How often the needs fit on a node. Shares of a GPU below 1 do not span two GPUs."""
    fits = []
    for name, amount in needs.items():
        there = node.get(name, 0) + ROUNDING
        if name == "GPU" and amount < 1:
            fits.append(int(there) * int((1 + ROUNDING) / amount))
        else:
            fits.append(int(there / amount))
    return min(fits, default=1_000)


def _loss(node: Node, replicas: ReplicaConfig) -> tuple[int, float]:
    """Engines that a node loses to an ingress, then what remains unused."""
    left = dict(node)
    _take(left, _ingress(replicas))
    lost = _times(node, _engine(replicas)) - _times(left, _engine(replicas))
    return lost, left.get("CPU", 0)


def _take(node: dict[str, float], needs: Mapping[str, float]) -> None:
    for name, amount in needs.items():
        node[name] = node.get(name, 0) - amount


def _words(amounts: Mapping[str, float]) -> str:
    parts = [f"{amount:g} {name}" for name, amount in amounts.items() if amount and name in _NAMED]
    return " and ".join(parts) or "no CPU"


_NAMED = ("CPU", "GPU")
