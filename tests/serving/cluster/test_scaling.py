"""The number of engines for a backlog."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from farm.serving.cluster import scaling


def autoscaling_context(backlogs: dict[str, float], requests: float, queued: float) -> Any:
    return SimpleNamespace(
        config=SimpleNamespace(target_ongoing_requests=10.0),
        aggregated_metrics={"backlog_s": backlogs},
        current_num_replicas=len(backlogs),
        total_num_requests=requests,
        total_queued_requests=queued,
        policy_state={},
    )


def test_engines_follow_their_backlog_in_seconds() -> None:
    def wanted(backlogs: dict[str, float], requests: float = 0, queued: float = 0) -> float:
        return scaling.scale_on_backlog(autoscaling_context(backlogs, requests, queued))[0]

    assert wanted({"a": 0.0, "b": 0.0}) == 0.0
    assert wanted({"a": 0.0}, requests=1) == 1.0
    assert wanted({"a": 30.0, "b": 15.0}, requests=40) == 4.5
    assert wanted({}, requests=3, queued=3) == 1.0


def test_a_cluster_that_cannot_grow_is_asked_for_no_more_engines_than_fit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    busy = autoscaling_context({"a": 1000.0}, 99, 0)
    monkeypatch.setattr(scaling, "cluster_nodes", lambda: [{"CPU": 4.0}])
    monkeypatch.setattr(scaling, "cluster_limit", lambda: None)
    assert scaling.ScaleOnBacklog(cpus_per_ingress=0.5)(busy)[0] == 3.0
    monkeypatch.setattr(scaling, "cluster_limit", lambda: {"CPU": 400.0})
    assert scaling.ScaleOnBacklog(cpus_per_ingress=0.5)(busy)[0] == 100.0
