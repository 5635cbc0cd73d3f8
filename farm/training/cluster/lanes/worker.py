"""A Ray Train worker's function: load the base once, then train until no job is left.

Owns the arguments of a lane and a worker's setup before its lane runs. The lane itself is in
``farm.training.lane``.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import ray.train
from ray import cloudpickle

from farm.intake.scoring import ScoringSettings
from farm.model_imports.lean import keep_imports
from farm.recipe import Quantization
from farm.storage import Store
from farm.training.cluster.dispatch_actor import RayLink
from farm.training.cluster.lanes.backend import lane_of_process
from farm.training.lane.scratch import sweep_folders
from farm.training.lane.settings import JudgeMaker, LaneSettings

__all__ = ["LaneSpec", "lane_main"]

CPU_LANE_NICENESS = 7
"""Added to the niceness of lanes without a GPU: beside a prior worker they get a quarter of a
core."""


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
    """Run a lane; Ray Train calls it in each worker."""
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
    lane_of_process[:] = [lane]
    lane.run()
