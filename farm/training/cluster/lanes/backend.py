"""What Ray Train's controllers know about lanes: each worker is on its own.

Owns the backend that replaces only a dead lane, the substitute for the barrier between workers, and
the handler of SIGTERM. Controllers import this module, so it imports nothing beyond Ray Train.

``has_replica_groups`` makes Ray Train treat every worker as its own group, so that it replaces only
the dead one (in seconds) instead of restarting all. It is internal to Ray 2.60 and covered by a
contract test; an older Ray ignores it and restarts all lanes of the node, which costs time but
loses no job.
"""

from __future__ import annotations

import signal
import sys
from typing import TYPE_CHECKING, Any

import ray
from ray.train import BackendConfig
from ray.train.backend import Backend
from ray.train.v2._internal.execution.callback import WorkerGroupCallback
from ray.train.v2._internal.execution.worker_group import state as ray_state
from ray.train.v2._internal.execution.worker_group import worker_group as ray_worker_group

if TYPE_CHECKING:
    from farm.training.lane.lane import Lane

__all__ = ["BARRIER_HOOKS", "LaneBackend", "LaneConfig", "NoBarrier", "lane_of_process"]


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


class NoBarrier(WorkerGroupCallback):  # type: ignore[misc]
    """Leaves out the process in which Ray Train's workers wait for each other.

    They do so in ``ray.train.report``, which lanes do not call. The process imports Ray Train and
    Ray Data, 1.5 CPU seconds.
    """

    def before_worker_group_start(self, worker_group_context: Any) -> None:
        """Called in the controller before it starts its workers and their barrier."""
        if all(hasattr(module, name) for module, name in BARRIER_HOOKS):
            for (module, name), substitute in BARRIER_HOOKS.items():
                setattr(module, name, substitute)


class LaneBarrier:
    """Has what controllers use of the actor; each answer is there at once."""

    @classmethod
    def options(cls, **_: Any) -> type[LaneBarrier]:
        """Where the actor would run."""
        return cls

    @classmethod
    def remote(cls, *_: Any, **__: Any) -> LaneBarrier:
        """Start it."""
        return cls()

    @property
    def reset(self) -> _Answer:
        """Let go of those that wait for a lane that was replaced: none does."""
        return _Answer(None)

    @property
    def set_required_ranks(self) -> _Answer:
        """Change for whom the others wait."""
        return _Answer(True)


class _Answer:
    """A method of an actor that only returns a value."""

    def __init__(self, value: Any) -> None:
        self._value = value

    def remote(self, *_: Any) -> Any:
        return ray.put(self._value)


def _end_no_process(barrier: LaneBarrier) -> None:
    """In place of the function that kills the actor."""


BARRIER_HOOKS = {
    (ray_worker_group, "SynchronizationActor"): LaneBarrier,
    (ray_state, "_shutdown_sync_actor"): _end_no_process,
}
"""Internal to Ray 2.60 and covered by a contract test; a Ray without them starts its own actor."""


lane_of_process: list[Lane] = []
"""This process's lane, if it has one, for the signal handler."""


def stop_lane_on_sigterm() -> None:
    """Install a handler for SIGTERM, which Kubernetes sends before it ends a pod: the lane saves
    its jobs, releases them and returns. A second SIGTERM ends the process. Call it in the main
    thread."""

    def on_sigterm(number: int, frame: object) -> None:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
        if not lane_of_process:
            sys.exit(1)
        lane_of_process[0].stop()

    signal.signal(signal.SIGTERM, on_sigterm)
