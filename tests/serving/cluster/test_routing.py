"""Tests of the order in which replicas are tried."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from farm.serving.cluster.routing import rank_replicas, wanted_replicas

loads = st.dictionaries(
    st.text("abcdef0123456789", min_size=1, max_size=6), st.floats(0, 100), min_size=1, max_size=9
)
keys = st.text("0123456789abcdef", min_size=1, max_size=32)


@given(keys, loads)
def test_every_replica_is_ranked_once(key: str, load: dict[str, float]) -> None:
    assert sorted(rank_replicas(key, load)) == sorted(load)


@given(keys, loads)
def test_the_first_replica_is_within_the_bound(key: str, load: dict[str, float]) -> None:
    first = rank_replicas(key, load)[0]
    mean = (sum(load.values()) + 1) / len(load)
    assert load[first] <= 1.25 * mean + 1


@given(keys, st.sets(st.text("abcdef", min_size=1, max_size=4), min_size=2, max_size=8))
def test_an_idle_cluster_keeps_an_adapter_at_home(key: str, replicas: set[str]) -> None:
    idle = dict.fromkeys(replicas, 0.0)
    home = rank_replicas(key, idle)[0]
    for gone in replicas - {home}:
        fewer = {name: 0.0 for name in replicas if name != gone}
        assert rank_replicas(key, fewer)[0] == home


def test_a_hot_adapter_spreads_and_a_cold_one_does_not() -> None:
    load = Counter({f"replica-{i}": 0 for i in range(4)})
    placed = Counter()
    for _ in range(40):
        chosen = rank_replicas("hot", load)[0]
        load[chosen] += 1
        placed[chosen] += 1
    assert len(placed) == 4
    assert max(placed.values()) <= 14  # 1.25 times the mean of ten, and one
    one_at_a_time = {rank_replicas("cold", dict.fromkeys(load, 0.0))[0] for _ in range(10)}
    assert len(one_at_a_time) == 1


def test_many_adapters_share_the_replicas_evenly() -> None:
    idle = {f"replica-{i}": 0.0 for i in range(4)}
    homes = Counter(rank_replicas(f"{i:032x}", idle)[0] for i in range(2000))
    assert max(homes.values()) < 1.25 * min(homes.values())


def test_the_bare_base_goes_where_there_is_least_to_do() -> None:
    assert rank_replicas("", {"a": 3.0, "b": 1.0, "c": 2.0}) == ["b", "c", "a"]


def test_nonsense_loads_count_as_none() -> None:
    assert rank_replicas("", {"a": float("nan"), "b": -5.0, "c": 1.0})[-1] == "c"


def test_engines_follow_the_backlog() -> None:
    assert wanted_replicas(2, 0.0, 10.0) == 0.0
    assert wanted_replicas(2, 45.0, 10.0) == 4.5
    assert wanted_replicas(2, float("nan"), 10.0) == 2.0
