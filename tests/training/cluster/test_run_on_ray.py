"""Runs on Ray: lanes on Ray Train, priors on Ray Data, and killed parts are restarted."""

from __future__ import annotations

import inspect
import os
import signal
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.manifests import QUICK, request, write_manifest
from support.quality.scorers import save_clip

from farm.adapters.files.folder import load_adapter
from farm.adapters.registry import Registry
from farm.base.loading import load_base
from farm.errors import UserError
from farm.intake.scoring import WHOLE_CARD, ScoringSettings
from farm.quality.judge import QualityJudge
from farm.storage import Store
from farm.training.cluster.start import is_connected
from farm.training.dispatch.ledger import read_events
from farm.training.dispatch.messages import DispatchSettings, Notice, Snapshot
from farm.training.execute import prepare_run, run_manifest
from farm.training.priors.storage import read_prior_set
from farm.training.run.files import list_runs

RECIPE = QUICK | {"steps": 60, "checkpoint_every": 10}


def commits(store: Store) -> Counter[str]:
    return Counter(
        event.job
        for run_id in list_runs(store)
        for event in read_events(store, run_id)
        if event.kind == "committed"
    )


def assert_all_loadable(store: Store, num: int, folder: Path) -> None:
    registry, base = Registry(store), load_base("tiny")
    names = list(registry.names())
    assert len(names) == num
    for named in names:
        registry.fetch(named.job_key, folder / named.name)
        assert load_adapter(folder / named.name, base).is_finite


def test_ray_train_still_has_the_hook_that_replaces_single_lanes(ray_here: Any) -> None:
    """Internal to Ray: if this fails after an upgrade, a dead lane restarts its node's lanes."""
    from ray.train.v2._internal.execution.controller import controller
    from ray.train.v2._internal.execution.worker_group import worker_group

    from farm.training.cluster.lanes.backend import LaneBackend, LaneConfig

    assert LaneConfig().backend_cls is LaneBackend
    assert LaneBackend.has_replica_groups
    assert "has_replica_groups" in inspect.getsource(controller.TrainController)
    assert hasattr(worker_group.WorkerGroup, "replace_replica_group")


def test_ray_train_still_has_the_callbacks_that_lanes_leave_out() -> None:
    """Internal to Ray: if this fails after an upgrade, each lane run starts more processes."""
    from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

    from farm.training.cluster.lanes.backend import BARRIER_HOOKS, NoBarrier
    from farm.training.cluster.ray_train import UNUSED_CALLBACKS, LaneTrainer

    trainer = LaneTrainer(lambda: None)
    names = [
        {type(one).__name__ for one in create(trainer)}
        for create in (
            DataParallelTrainer._create_default_callbacks, LaneTrainer._create_default_callbacks
        )
    ]  # fmt: skip
    assert names[0] - names[1] == set(UNUSED_CALLBACKS)
    assert names[1] - names[0] == {NoBarrier.__name__}
    # what that one replaces in a controller, which is a process of its own
    assert [name for module, name in BARRIER_HOOKS if not hasattr(module, name)] == []


class KillOneLane:
    """Kills one training lane with -9, and records which processes trained."""

    def __init__(self) -> None:
        self.killed: str | None = None
        self.lanes: dict[str, set[int]] = {}

    def show(self, snapshot: Snapshot, news: Sequence[Notice]) -> None:
        for lane in snapshot.lanes:
            self.lanes.setdefault(lane.lane, set()).add(lane.pid)
        busy = [lane for lane in snapshot.lanes if lane.held and lane.pid]
        if self.killed is None and len(busy) == 2 and snapshot.done_share > 0.02:
            os.kill(busy[0].pid, signal.SIGKILL)
            self.killed = busy[0].lane


@pytest.mark.slow
def test_a_killed_lane_loses_no_job_and_disturbs_no_other_lane(
    ray_here: Any, tmp_path: Path
) -> None:
    clip = str(save_clip(tmp_path / "clip"))
    manifest = write_manifest(tmp_path / "m", 6, recipe=RECIPE, nouns=("cat", "dog"))
    view = KillOneLane()
    store = Store(tmp_path / "store")
    # with so long a lease, the dead lane's jobs are released only when its successor reports
    patient = DispatchSettings(lease_s=3600)
    options = {"executor": "ray", "lanes": 2, "slots": 2, "dispatch": patient}
    options |= {"make_judge": QualityJudge, "scoring": ScoringSettings(clip, share=WHOLE_CARD)}
    summary = run_manifest(request(manifest, store.url, **options), view=view)
    assert view.killed is not None
    assert (summary.committed, summary.failed) == (6, 0)
    assert set(commits(store).values()) == {1}
    assert_all_loadable(store, 6, tmp_path / "adapters")
    # the other lane stayed in one process; the killed one was replaced by another process
    lives = {place: len(pids) for place, pids in view.lanes.items()}
    assert lives.pop(view.killed) == 2
    assert set(lives.values()) == {1}
    # lanes in other processes received the settings of the scorer, and one died
    cards = [Registry(store).record(key).quality for key in commits(store)]
    assert all(card and card["scorers"] == {"clip": clip} for card in cards)
    # full cards, because the scoring share is large enough
    assert {card["scores"]["clip_i"]["num"] for card in cards if card} == {8}
    # Ray Data generated the priors, equal to those that one process generates
    for spec in prepare_run(request(manifest, tmp_path / "empty")).priors:
        run_alone = prior_moments_alone(spec, tmp_path / "alone")
        moments = read_prior_set(store, spec.key)["moments"]
        # with another number of threads, some pixels are rounded to the next of 255 levels
        np.testing.assert_allclose(moments, run_alone, rtol=1e-2, atol=1e-3)


def prior_moments_alone(spec: Any, folder: Path) -> Any:
    from farm.training.priors.generate import generate_part
    from farm.training.priors.storage import parts_of

    base = load_base("tiny")
    return np.concatenate([generate_part(base, spec, part)["moments"] for part in parts_of(spec)])


def test_lanes_share_one_read_only_copy_of_a_prior_set(ray_here: Any, tmp_path: Path) -> None:
    from farm.training.cluster.dispatch_actor import (
        DispatchSpec,
        RayLink,
        dispatcher_name,
        start_dispatcher,
    )
    from farm.training.priors.storage import PartRecord, commit_prior_set
    from farm.training.run.files import write_assignments
    from farm.training.run.in_process import generate_here

    prepared = prepare_run(request(write_manifest(tmp_path / "m", 1), tmp_path / "store"))
    store, (spec,) = prepared.store, prepared.priors
    outcomes = generate_here(load_base("tiny"), store, [spec], "a1")
    commit_prior_set(store, spec, "a1", [one for one in outcomes if isinstance(one, PartRecord)])
    write_assignments(store, prepared.run_id, prepared.jobs)
    dispatch = DispatchSpec(store.url, prepared.run_id, 1, 64, DispatchSettings())
    actor = start_dispatcher(dispatch)
    link = RayLink(dispatcher_name(dispatch), store)
    shared = link.prior(spec.key)
    assert not shared["moments"].flags.writeable
    assert not shared["moments"].flags.owndata
    np.testing.assert_array_equal(shared["moments"], read_prior_set(store, spec.key)["moments"])
    ray_here.kill(actor)
    # its owner is gone: the set is read from the store
    np.testing.assert_array_equal(
        link.prior(spec.key)["moments"], read_prior_set(store, spec.key)["moments"]
    )


def test_a_connected_process_does_not_use_another_cluster_unnoticed(ray_here: Any) -> None:
    current = ray_here.get_runtime_context().gcs_address
    for address in (None, "auto", current):
        assert is_connected(address)
    with pytest.raises(UserError, match=r"connected to the Ray cluster at .*, not 10\.0\.0\.1"):
        is_connected("10.0.0.1:6379")
