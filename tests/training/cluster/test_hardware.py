"""The hardware that a plan reads from a cluster's nodes and node types."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from farm.errors import UserError
from farm.training.cluster.hardware import (
    NodeKind,
    choose_hardware,
    kinds_of_config,
    kinds_of_nodes,
)
from farm.training.cluster.watch import num_fitting

CLUSTER = Path(__file__).parents[3] / "cluster.yaml"


def test_the_cluster_file_of_this_project_needs_no_hardware_options() -> None:
    hardware = choose_hardware(kinds_of_config(yaml.safe_load(CLUSTER.read_text())))
    assert (hardware.gpu_name, hardware.gpus_per_node, hardware.cpus_per_node) == ("A100", 8, 96)
    assert hardware.num_nodes == 8  # spot and on-demand together, up to the cluster's limit
    assert hardware.nodes_are_a_limit
    assert hardware.gpu_bytes == 40 * 2**30


def test_running_nodes_are_counted_by_kind_and_dead_ones_are_not() -> None:
    head = {"Alive": True, "Resources": {"CPU": 0.0, "memory": 1.0}}
    small = {"Alive": True, "Resources": {"CPU": 4.0}}
    dead = {"Alive": False, "Resources": {"CPU": 64.0}}
    gpu = {"Alive": True, "Resources": {"CPU": 8.0, "GPU": 1.0, "accelerator_type:L4": 1.0}}
    kinds = kinds_of_nodes([head, small, small, dead, gpu])
    assert NodeKind(4.0, 0, None, 2) in kinds
    chosen = choose_hardware(kinds)
    assert (chosen.gpu_name, chosen.num_nodes) == ("L4", 1)
    assert choose_hardware(kinds_of_nodes([head, small, small])).num_nodes == 2
    assert choose_hardware(kinds, nodes=3).num_nodes == 3
    assert not choose_hardware(kinds, nodes=3).nodes_are_a_limit


@pytest.mark.parametrize(
    ("kinds", "words"),
    [
        ([NodeKind(0.0, 0, None, 1)], "no node of the cluster"),
        ([NodeKind(8.0, 1, None, 1)], "are not named"),
        ([NodeKind(8.0, 1, "Quux", 1)], "'Quux'"),
    ],
)
def test_what_cannot_be_known_is_asked_for(kinds: list[NodeKind], words: str) -> None:
    with pytest.raises(UserError, match=words):
        choose_hardware(kinds)


def test_nodes_that_have_the_lanes_resources_are_told_from_nodes_that_have_not_come() -> None:
    nodes = [{"Resources": {"CPU": 2.0}}, {"Resources": {"CPU": 8.0, "GPU": 1.0}}]
    assert num_fitting(nodes, {"CPU": 2, "GPU": 0.0}) == 2
    assert num_fitting(nodes, {"CPU": 2, "GPU": 0.25}) == 1
    assert num_fitting(nodes, {"CPU": 9}) == 0
