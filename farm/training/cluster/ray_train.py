"""Lanes as workers of long-lived Ray Train runs: one run per node, one lane per worker.

Owns the Ray Train side: the backend that lets a dead lane be replaced without disturbing the
others, the resources of a lane, what a worker does first, and the actor in which the dispatcher
lives beside the driver. What a lane does is ``lane``'s, who gets which job ``dispatch``'s.

``has_replica_groups`` makes Ray Train treat every worker as a group of its own, so that it replaces
just the dead one (seconds) where it would restart all. It is internal to Ray 2.60 and tested by
contract; an older Ray ignores it and restarts the node's lanes, which costs time and no job.
"""

from __future__ import annotations

import gc
import os
import threading
from dataclasses import dataclass, replace
from typing import Any

import ray
import ray.exceptions
from ray.train import BackendConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.backend import Backend
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from farm.adapters.registry import Registry
from farm.errors import LaneLost
from farm.intake.photos.uris import worker_environment
from farm.intake.scoring import ScoringSettings
from farm.storage import Store
from farm.training.cluster.start import quiet_ray, start_ray
from farm.training.dispatch.dispatcher import Dispatcher
from farm.training.dispatch.ledger import Job, Ledger
from farm.training.dispatch.messages import (
    DispatchSettings,
    LaneOrders,
    LaneReport,
    Notice,
    Snapshot,
)
from farm.training.lane.settings import JudgeMaker, LaneSettings
from farm.training.priors.storage import PriorArrays, is_ready, read_prior_set
from farm.training.run.job_files import read_run_jobs
from farm.training.run.scratch import scratch_folder

__all__ = [
    "DispatchActor",
    "DispatchSpec",
    "LaneBackend",
    "LaneConfig",
    "LaneRun",
    "LaneSpec",
    "quiet_ray",
    "start_dispatcher",
    "start_ray",
]

NAMESPACE = "farm"
EXCHANGE_TIMEOUT_S = 120.0
CPU_LANE_NICENESS = 7
"""Added to the niceness of lanes without a GPU: beside a drawer, a quarter of a core is theirs."""


class LaneBackend(Backend):  # type: ignore[misc]  # Ray has no types
    """Every worker is a replica group of its own: no process group, no common fate."""

    has_replica_groups: bool = True
    share_cuda_visible_devices: bool = False


class LaneConfig(BackendConfig):  # type: ignore[misc]
    """Makes a Ray Train run a run of lanes."""

    @property
    def backend_cls(self) -> type[LaneBackend]:
        """The backend of lanes."""
        return LaneBackend


# -- the dispatcher's actor -----------------------------------------------------------------------


@dataclass(frozen=True)
class DispatchSpec:
    """All that the dispatcher's actor is made from; made anew from it if it dies."""

    store_url: str
    run_id: str
    epoch: int
    resolution_px: int
    settings: DispatchSettings


class DispatchActor:
    """The dispatcher in a process of its own, on the driver's node."""

    def __init__(self, spec: DispatchSpec) -> None:
        self._store = Store(spec.store_url)
        jobs = read_run_jobs(self._store, spec.run_id)
        self._dispatcher = Dispatcher(
            jobs,
            Ledger(self._store, spec.run_id, epoch=spec.epoch),
            resolution_px=spec.resolution_px,
            ready_priors=[key for key in jobs.columns.priors if is_ready(self._store, key)],
            committed=Registry(self._store).committed_among(jobs),
            settings=spec.settings,
        )
        gc.freeze()  # a collection over a million jobs would hold up the lanes and free none
        self._priors: dict[str, Any] = {}
        self._nodes: dict[str, str] = {}
        """Node by lane."""
        self._draining: set[str] = set()

    def exchange(self, report: LaneReport, node_id: str) -> LaneOrders:
        """See ``Dispatcher.exchange``. A lane on a node that goes away gets nothing new; it saves
        what it has, gives it back and returns."""
        self._nodes[report.lane] = node_id
        if node_id not in self._draining:
            return self._dispatcher.exchange(report)
        return replace(self._dispatcher.exchange(replace(report, want=0)), stop=True)

    def nodes_lost(self, node_ids: list[str]) -> None:
        """Nodes are gone, and their lanes with them; others get the jobs at once."""
        for lane in [lane for lane, node in self._nodes.items() if node in node_ids]:
            del self._nodes[lane]
            self._dispatcher.lane_died(lane)

    def nodes_draining(self, node_ids: list[str]) -> None:
        """Nodes will be gone soon; their lanes are told with their next word."""
        self._draining |= set(node_ids)

    def lanes_ended(self, run: str) -> None:
        """A Ray Train run has ended, and all its lanes with it."""
        for lane in [lane for lane in self._nodes if lane.startswith(f"{run}.")]:
            del self._nodes[lane]
            self._dispatcher.lane_died(lane)

    @ray.method(concurrency_group="priors")  # type: ignore[untyped-decorator]
    def prior(self, prior_key: str) -> list[Any]:
        """The reference (in a list, so that it is not resolved) of a prior set in the object
        store. This process owns it; it lies on a node that stays."""
        if prior_key not in self._priors:
            self._priors[prior_key] = ray.put(read_prior_set(self._store, prior_key))
        return [self._priors[prior_key]]

    def look(self, since: int) -> tuple[Snapshot, list[Notice]]:
        """Tick, and tell the driver how things are."""
        self._dispatcher.tick()
        self._forget_priors()
        return self._dispatcher.snapshot(), self._dispatcher.news(since)

    def _forget_priors(self) -> None:
        """Let go of sets that no job needs any more: thousands of classes would fill the node."""
        is_needed = self._dispatcher.is_prior_needed
        for key in [key for key in self._priors if not is_needed(key)]:
            del self._priors[key]

    def prior_is_ready(self, prior_key: str) -> None:
        """See ``Dispatcher``."""
        self._dispatcher.prior_is_ready(prior_key)

    def prior_failed(self, prior_key: str, reason: str, remedy: str) -> None:
        """See ``Dispatcher``."""
        self._dispatcher.prior_failed(prior_key, reason, remedy)

    def cancel(self, keys: list[str] | None) -> int:
        """See ``Dispatcher``."""
        return self._dispatcher.cancel(keys)

    def retry(self, keys: list[str] | None) -> int:
        """See ``Dispatcher``."""
        return self._dispatcher.retry(keys)

    def stop(self) -> None:
        """See ``Dispatcher``."""
        self._dispatcher.stop()

    def jobs(self) -> list[Job]:
        """All jobs; the ledger is written first."""
        self._dispatcher.tick()
        return self._dispatcher.jobs()


def start_dispatcher(spec: DispatchSpec) -> Any:
    """Start the actor on this node; it is restarted from the store if its process dies."""
    node_id = ray.get_runtime_context().get_node_id()
    actor = ray.remote(
        num_cpus=0,
        max_restarts=-1,
        max_task_retries=3,
        concurrency_groups={"priors": 1},
    )(DispatchActor)
    return actor.options(
        name=dispatcher_name(spec),
        namespace=NAMESPACE,
        scheduling_strategy=NodeAffinitySchedulingStrategy(node_id, soft=False),
    ).remote(spec)


def dispatcher_name(spec: DispatchSpec) -> str:
    """Where lanes find it; another epoch's lanes find nothing."""
    return f"dispatcher-{spec.run_id}-{spec.epoch}"


class RayLink:
    """A lane's line to the dispatcher's actor."""

    def __init__(self, name: str, store: Store) -> None:
        self._actor = ray.get_actor(name, namespace=NAMESPACE)
        self._node_id = ray.get_runtime_context().get_node_id()
        self._store = store

    def exchange(self, report: LaneReport) -> LaneOrders:
        """Report and be told."""
        try:
            orders: LaneOrders = ray.get(
                self._actor.exchange.remote(report, self._node_id), timeout=EXCHANGE_TIMEOUT_S
            )
        except (ray.exceptions.RayActorError, ray.exceptions.GetTimeoutError) as error:
            raise LaneLost(f"the dispatcher is gone: {error}", "run the same command again") from (
                error
            )
        return orders

    def prior(self, prior_key: str) -> PriorArrays:
        """The node's shared copy, read-only; the store's where its owner is gone."""
        try:
            (reference,) = ray.get(self._actor.prior.remote(prior_key), timeout=EXCHANGE_TIMEOUT_S)
            arrays: PriorArrays = ray.get(reference, timeout=EXCHANGE_TIMEOUT_S)
        except ray.exceptions.RayError:
            return read_prior_set(self._store, prior_key)
        return arrays


# -- the lanes ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LaneSpec:
    """What every lane of a run is made from."""

    dispatcher: str
    store_url: str
    base: str
    revision: str | None
    device: str
    settings: LaneSettings
    threads: int
    """Of PyTorch; 0 leaves its default."""
    memory_fraction: float | None
    """Cap of this process's share of the GPU's memory."""
    make_judge: JudgeMaker | None = None
    """Of finished adapters; None makes no quality cards."""
    scoring: ScoringSettings = ScoringSettings()
    env: tuple[tuple[str, str], ...] = ()


def lane_main(config: dict[str, Any]) -> None:
    """What one Ray Train worker does: load the base once, then train until nothing is left."""
    import torch

    from farm.base.loading import load_base, training_dtype
    from farm.training.lane.lane import Lane

    spec: LaneSpec = config["spec"]
    if spec.threads:
        torch.set_num_threads(spec.threads)
    if spec.memory_fraction is not None and torch.cuda.is_available():
        torch.cuda.set_per_process_memory_fraction(spec.memory_fraction)
    if spec.device == "cpu":
        # whoever draws priors on the same cores goes first: until then most slots stand empty,
        # and a pass of few slots costs nearly what a full one does
        os.nice(CPU_LANE_NICENESS)
    store = Store(spec.store_url)
    link = RayLink(spec.dispatcher, store)
    base = load_base(
        spec.base,
        device=spec.device,
        dtype=training_dtype(spec.device),
        revision=spec.revision,
    )
    rank = ray.train.get_context().get_world_rank()
    lane = Lane(
        f"{config['run']}.{rank}",
        base,
        store,
        link,
        spec.settings,
        judge=spec.make_judge(spec.scoring) if spec.make_judge else None,
    )
    lane.run()


class LaneRun:
    """One Ray Train run of lanes, in a thread of the driver."""

    def __init__(
        self, name: str, spec: LaneSpec, *, num_lanes: int, cpus: float, gpus: float
    ) -> None:
        self.name = name
        self.error: BaseException | None = None
        environment = {**dict(spec.env), **worker_environment()}
        resources = {"CPU": cpus} | ({"GPU": gpus} if gpus else {})
        self._folder = scratch_folder()
        self._trainer = DataParallelTrainer(
            lane_main,
            train_loop_config={"spec": replace(spec), "run": name},
            backend_config=LaneConfig(),
            scaling_config=ScalingConfig(
                num_workers=num_lanes,
                use_gpu=bool(gpus),
                resources_per_worker=resources,
                placement_strategy="STRICT_PACK",
            ),
            run_config=RunConfig(
                name=f"farm-{name}",
                storage_path=self._folder.name,
                failure_config=FailureConfig(max_failures=-1),
                worker_runtime_env={"env_vars": environment} if environment else None,
            ),
        )
        self._thread = threading.Thread(target=self._fit, name=f"lanes-{name}", daemon=True)

    def start(self) -> None:
        """Begin; returns at once."""
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        """Whether the run goes on."""
        return self._thread.is_alive()

    def join(self, timeout_s: float) -> None:
        """Wait for the lanes to return."""
        self._thread.join(timeout_s)

    def _fit(self) -> None:
        try:
            self._trainer.fit()
        except BaseException as error:  # the driver looks at it
            self.error = error
        finally:
            self._folder.cleanup()
