"""The cluster file: what Ray itself says of it, and what the farm needs of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

CLUSTER = Path(__file__).parent.parent / "cluster.yaml"


@pytest.fixture(scope="module")
def config() -> dict[str, Any]:
    """The file, prepared and validated by Ray's own code."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    prepared: dict[str, Any] = prepare_config(yaml.safe_load(CLUSTER.read_text()))
    validate_config(prepared)
    return prepared


def test_ray_accepts_the_cluster_file(config: dict[str, Any]) -> None:
    assert config["head_node_type"] == "head"


def test_ray_would_refuse_a_misspelt_field(config: dict[str, Any]) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    broken = yaml.safe_load(CLUSTER.read_text())
    broken["available_node_types"]["a100-spot"]["max_worker"] = 3
    with pytest.raises(Exception, match="max_worker"):
        validate_config(prepare_config(broken))


def test_the_head_drives_and_does_nothing_else(config: dict[str, Any]) -> None:
    head = config["available_node_types"]["head"]
    assert head["resources"] == {"CPU": 0}
    assert "InstanceMarketOptions" not in head["node_config"]


def test_spot_nodes_come_first_and_go_when_they_idle(config: dict[str, Any]) -> None:
    types = config["available_node_types"]
    spot, on_demand = types["a100-spot"], types["a100-on-demand"]
    assert spot["node_config"]["InstanceMarketOptions"]["MarketType"] == "spot"
    assert spot["priority"] > on_demand["priority"]
    for node in (spot, on_demand):
        assert node["resources"]["GPU"] == 8
        assert node["min_workers"] == 0
        assert node["idle_timeout_s"] <= 300


def test_rays_autoscaler_starts_a_spot_node_for_each_lane_run(config: dict[str, Any]) -> None:
    assert launches(config, lane_runs=3) == {"a100-spot": 3}
    assert launches(config, lane_runs=30) == {"a100-spot": 8}  # no more than max_workers
    assert launches(config, lane_runs=0) == {}


def test_on_demand_nodes_start_only_where_no_spot_node_can_be_had(config: dict[str, Any]) -> None:
    assert launches(config, lane_runs=1, available={"a100-spot": 0.0}) == {"a100-on-demand": 1}


def launches(
    config: dict[str, Any], *, lane_runs: int, available: dict[str, float] | None = None
) -> dict[str, int]:
    """The nodes that Ray's own scheduler starts for lane runs that each fill a node; a benchmark
    (``benchmarks/cluster/autoscaling.py``) shows it with real nodes, and that they go again."""
    from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig
    from ray.autoscaler.v2.scheduler import ResourceDemandScheduler, SchedulingRequest
    from ray.autoscaler.v2.utils import ResourceRequestUtil
    from ray.core.generated.autoscaler_pb2 import GangResourceRequest

    known = AutoscalingConfig({**config, "cluster_synced_files": []}, skip_content_hash=True)
    node = ResourceRequestUtil.make({"GPU": 8.0, "CPU": 8.0})
    request = SchedulingRequest(
        disable_launch_config_check=True,
        node_type_configs=known.get_node_type_configs(),
        max_num_nodes=known.get_max_num_worker_nodes(),
        gang_resource_requests=[GangResourceRequest(requests=[node])] * lane_runs,
        recoverable_resource_availabilities=available or {},
    )
    reply = ResourceDemandScheduler(None).schedule(request)
    return {one.instance_type: one.count for one in reply.to_launch if one.instance_type != "head"}


def test_every_node_speaks_with_a_token(config: dict[str, Any]) -> None:
    for commands in (config["head_start_ray_commands"], config["worker_start_ray_commands"]):
        start = next(command for command in commands if "ray start" in command)
        assert "RAY_AUTH_MODE=token" in start


def test_a_plan_for_its_nodes_fills_them() -> None:
    from farm.base.memory import MemoryFacts
    from farm.recipe import Recipe
    from farm.training.plan.hardware import Hardware
    from farm.training.plan.planner import make_plan
    from farm.training.plan.shape import workload_of

    node = yaml.safe_load(CLUSTER.read_text())["available_node_types"]["a100-spot"]["resources"]
    facts = MemoryFacts(1_066_235_307, 859_520_964, 2_132_470_614, 4, 8, 77)
    hardware = Hardware("A100", 40 * 2**30, node["GPU"], node["CPU"], num_nodes=8)
    plan = make_plan(facts, workload_of([Recipe()] * 10_000, 512), hardware)
    assert plan.lanes_per_node * plan.gpu_fraction == node["GPU"]
    assert plan.lanes_per_node * plan.cpus_per_lane <= node["CPU"]
