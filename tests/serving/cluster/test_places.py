"""Whether an endpoint fits on a cluster, and what is said if it does not."""

from __future__ import annotations

import pytest

from farm.errors import UserError
from farm.serving.cluster.places import check_fits, choose_ingresses, engines_beside
from farm.serving.settings import ReplicaConfig


def cpus(*amounts: float) -> list[dict[str, float]]:
    return [{"CPU": amount} for amount in amounts]


def replicas(engines: int = 1, **more: float) -> ReplicaConfig:
    return ReplicaConfig(min_engines=engines, max_engines=engines, **more)  # type: ignore[arg-type]


def test_as_many_engines_as_cores_are_refused_with_what_would_fit() -> None:
    with pytest.raises(UserError) as caught:
        check_fits(cpus(2), replicas(2))
    assert "2 engines of 1 CPU" in caught.value.message
    assert "the cluster has 2 CPU" in caught.value.message
    assert "--engines 1" in caught.value.remedy
    share = replicas(2, cpus_per_engine=0.5, cpus_per_ingress=0.5)
    assert "cpus_per_engine: 0.5" in caught.value.remedy
    check_fits(cpus(2), share)


def test_an_engine_does_not_span_nodes() -> None:
    assert engines_beside(cpus(1.5, 1.5), replicas(cpus_per_engine=2), 1) == 0
    with pytest.raises(UserError, match="on 2 nodes"):
        check_fits(cpus(1.5, 1.5), replicas(cpus_per_engine=2))


def test_ingresses_take_the_places_that_engines_cannot_use() -> None:
    assert engines_beside(cpus(1.5, 2), replicas(), 1) == 3
    nodes = [{"CPU": 4.0}, {"CPU": 8.0, "GPU": 1.0}]
    shared = replicas(gpus_per_engine=0.5, cpus_per_engine=4)
    assert engines_beside(nodes, shared, 2) == 2


def test_a_cluster_that_can_grow_is_compared_with_what_it_can_become() -> None:
    check_fits(cpus(0), replicas(8), {"CPU": 64.0})
    with pytest.raises(UserError, match="can grow to 4 CPU"):
        check_fits(cpus(0), replicas(8), {"CPU": 4.0})


@pytest.mark.parametrize(
    ("nodes", "engines", "ingresses"), [((2,), 1, 2), ((1.5,), 1, 1), ((8,), 4, 2), ((), 1, 2)]
)
def test_there_are_two_ingresses_unless_only_the_second_does_not_fit(
    nodes: tuple[float, ...], engines: int, ingresses: int
) -> None:
    assert choose_ingresses(cpus(*nodes), replicas(engines)) == ingresses


def test_a_configured_number_of_ingresses_is_kept() -> None:
    assert choose_ingresses(cpus(1.5), replicas(1, num_ingresses=3)) == 3
