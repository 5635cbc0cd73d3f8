"""Lanes as workers of long-lived Ray Train runs: one run per node, one lane per worker.

Owns the driver's side of Ray Train: what a run starts, and a lane's resources. Its controller's
side is in ``lanes.backend``, its workers' in ``lanes.worker``. The lane itself is in
``farm.training.lane``; which lane gets which job is decided in ``dispatch``.
"""

from __future__ import annotations

import threading
from typing import Any

from ray import cloudpickle
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

from farm.intake.photos.uris import worker_environment
from farm.training.cluster.lanes.backend import LaneConfig, NoBarrier
from farm.training.cluster.lanes.worker import LaneSpec, lane_main
from farm.training.lane.scratch import scratch_folder

__all__ = ["LaneRun", "LaneTrainer"]

UNUSED_CALLBACKS = ("DatasetsCallback", "PlacementGroupCleanerCallback")
"""Callbacks of Ray Train that start actors which lanes do not use; see ``LaneTrainer``."""


class LaneTrainer(DataParallelTrainer):  # type: ignore[misc]
    """Ray Train without the actors that lanes do not use.

    Each is a process that imports Ray Train and Ray Data, 1.3 to 2.5 CPU seconds. One holds
    datasets, which lanes do not have. Another removes the placement groups of a dead controller,
    for which it needs Ray's dashboard; ``watch.free_places_of_dead_controllers`` does so without.
    The third is the barrier between workers; see ``NoBarrier``.
    """

    def _create_default_callbacks(self) -> list[Any]:
        callbacks = super()._create_default_callbacks()
        used = [one for one in callbacks if type(one).__name__ not in UNUSED_CALLBACKS]
        return [*used, NoBarrier()]


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
