"""Lanes as workers of long-lived Ray Train runs: one run per node, one lane per worker.

Owns the Ray Train side: the backend that replaces only a dead lane, a lane's resources, and a
worker's setup before its lane runs. The lane itself is in ``lane``; which lane gets which job is
decided in ``dispatch``.

``has_replica_groups`` makes Ray Train treat every worker as its own group, so that it replaces only
the dead one (in seconds) instead of restarting all. It is internal to Ray 2.60 and covered by a
contract test; an older Ray ignores it and restarts all lanes of the node, which costs time but
loses no job.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import ray
from ray import cloudpickle
from ray.train import BackendConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.backend import Backend
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

from farm.intake.photos.uris import worker_environment
from farm.intake.scoring import ScoringSettings
from farm.model_imports.lean import keep_imports
from farm.recipe import Quantization
from farm.storage import Store
from farm.training.cluster.dispatch_actor import RayLink
from farm.training.lane.scratch import scratch_folder, sweep_folders
from farm.training.lane.settings import JudgeMaker, LaneSettings

if TYPE_CHECKING:
    from farm.training.lane.lane import Lane

__all__ = ["LaneBackend", "LaneConfig", "LaneRun", "LaneSpec"]

CPU_LANE_NICENESS = 7
"""Added to the niceness of lanes without a GPU: beside a prior worker they get a quarter of a
core."""
UNUSED_CALLBACKS = ("DatasetsCallback", "PlacementGroupCleanerCallback")
"""Callbacks of Ray Train that start actors which lanes do not use; see ``LaneTrainer``."""


class LaneBackend(Backend):  # type: ignore[misc]  # Ray has no types
    """Each worker is its own replica group, without a process group."""

    has_replica_groups: bool = True
    share_cuda_visible_devices: bool = False

    def on_start(self, worker_group: Any, backend_config: BackendConfig) -> None:
        """Make each started worker, including replacements, save its jobs on SIGTERM."""
        worker_group.execute(stop_lane_on_sigterm)


class LaneConfig(BackendConfig):  # type: ignore[misc]
    """Makes a Ray Train run a run of lanes."""

    @property
    def backend_cls(self) -> type[LaneBackend]:
        """The backend of lanes."""
        return LaneBackend


class LaneTrainer(DataParallelTrainer):  # type: ignore[misc]
    """Ray Train without the actors that lanes do not use.

    Each is a process that imports Ray Train and Ray Data, 1.3 to 2.5 CPU seconds. One holds
    datasets, which lanes do not have. The other removes the placement groups of a dead controller,
    for which it needs Ray's dashboard; ``watch.free_places_of_dead_controllers`` does so without.
    """

    def _create_default_callbacks(self) -> list[Any]:
        callbacks = super()._create_default_callbacks()
        return [one for one in callbacks if type(one).__name__ not in UNUSED_CALLBACKS]


@dataclass(frozen=True)
class LaneSpec:
    """The arguments of every lane of a run."""

    dispatcher: str
    store_url: str
    base: str
    revision: str | None
    quantization: Quantization | None
    device: str
    settings: LaneSettings
    threads: int
    """PyTorch's threads; 0 keeps its default."""
    memory_fraction: float | None
    """Cap of this process's share of the GPU's memory."""
    make_judge: JudgeMaker | None = None
    """Makes the judge of finished adapters; None makes no quality cards."""
    scoring: ScoringSettings = ScoringSettings()
    env: tuple[tuple[str, str], ...] = ()


def lane_main(config: dict[str, Any]) -> None:
    """A Ray Train worker's function: load the base once, then train until no job is left."""
    keep_imports()
    import torch

    from farm.base.device.heap import keep_freed_memory
    from farm.base.device.sharing import use_expandable_segments
    from farm.base.loading import load_base, training_dtype
    from farm.training.lane.lane import Lane

    spec: LaneSpec = cloudpickle.loads(config["spec"])
    use_expandable_segments()
    keep_freed_memory(spec.device)
    sweep_folders()  # of lanes that were killed on this node
    if spec.threads:
        torch.set_num_threads(spec.threads)
    if spec.memory_fraction is not None and torch.cuda.is_available():
        torch.cuda.set_per_process_memory_fraction(spec.memory_fraction)
    if spec.device == "cpu":
        # prior workers on the same cores have precedence: until they finish, most slots are
        # empty, and a step of few slots costs nearly as much as a full one
        os.nice(CPU_LANE_NICENESS)
    store = Store(spec.store_url)
    link = RayLink(spec.dispatcher, store)
    base = load_base(
        spec.base,
        device=spec.device,
        dtype=training_dtype(spec.device),
        revision=spec.revision,
        quantization=spec.quantization,
    )
    base.release_text_encoders()
    rank = ray.train.get_context().get_world_rank()
    lane = Lane(
        f"{config['run']}.{rank}",
        base,
        store,
        link,
        spec.settings,
        judge=spec.make_judge(spec.scoring) if spec.make_judge else None,
    )
    _lane[:] = [lane]
    lane.run()


_lane: list[Lane] = []
"""This process's lane, for the signal handler."""


def stop_lane_on_sigterm() -> None:
    """Install a handler for SIGTERM, which Kubernetes sends before it ends a pod: the lane saves
    its jobs, releases them and returns. A second SIGTERM ends the process. Call it in the main
    thread."""

    def on_sigterm(number: int, frame: object) -> None:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
        if not _lane:
            sys.exit(1)
        _lane[0].stop()

    signal.signal(signal.SIGTERM, on_sigterm)


class LaneRun:
    """One Ray Train run of lanes, in a thread of the driver."""

    def __init__(
        self, name: str, spec: LaneSpec, *, num_lanes: int, cpus: float, gpus: float
    ) -> None:
        self.name = name
        self.error: BaseException | None = None
        environment = {**dict(spec.env), **worker_environment()}
        resources = {"CPU": cpus} | ({"GPU": gpus} if gpus else {})
        self._folder = scratch_folder("train")
        self._trainer = LaneTrainer(
            lane_main,
            # as bytes, so that Ray Train's controller need not import what the judge imports
            train_loop_config={"spec": cloudpickle.dumps(spec), "run": name},
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
        """Start the thread; returns at once."""
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        """Whether the run has not ended."""
        return self._thread.is_alive()

    def join(self, timeout_s: float) -> None:
        """Wait for the lanes to return."""
        self._thread.join(timeout_s)

    def _fit(self) -> None:
        try:
            self._trainer.fit()
        except BaseException as error:  # read by the driver
            self.error = error
        finally:
            self._folder.cleanup()
