"""Generates prior sets with Ray Data: from prompts and seeds, through an actor pool, to Parquet.

Owns the pipeline. One pipeline generates all missing sets, because a Ray Data job takes seconds to
start. It generates part by part in the order in which jobs need them and yields a record of each
part, so that the first class is ready long before the last. Images do not pass through the driver:
the actor that generates a part writes it.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from farm.errors import FarmError
from farm.intake.job import PriorSpec
from farm.model_imports.lean import keep_imports
from farm.recipe import Quantization
from farm.storage import Store
from farm.training.priors.builder import PartFailure
from farm.training.priors.storage import Part, PartRecord, parts_of, write_part, write_prompt

__all__ = ["PRIOR_WORKER_CPUS", "PriorWorkerSettings", "PriorWorker", "generate_with_ray"]

Batch = dict[str, NDArray[Any]]

PRIOR_WORKER_CPUS = 0.25
"""Logical cores of one node's prior workers; in practice they share all cores with its lanes until
every set is generated."""


@dataclass(frozen=True)
class PriorWorkerSettings:
    """Settings of the actors."""

    base: str
    revision: str | None = None
    quantization: Quantization | None = None
    device: str = "cpu"
    gpu_fraction: float = 0.0
    memory_fraction: float | None = None
    """Upper bound of the actor's share of the GPU's memory."""
    num_cpus: float = PRIOR_WORKER_CPUS
    threads: int = 1
    max_actors: int = 1


class PriorWorker:
    """One actor of the pool: generates parts with the unmodified base."""

    def __init__(
        self, settings: PriorWorkerSettings, store: Store, specs: Sequence[PriorSpec], attempt: str
    ) -> None:
        keep_imports()
        import torch

        from farm.base.device.heap import keep_freed_memory
        from farm.base.device.sharing import use_expandable_segments
        from farm.base.fast_blocks import use_fast_blocks
        from farm.base.loading import load_base

        use_expandable_segments()
        keep_freed_memory(settings.device)
        torch.set_num_threads(settings.threads)
        if settings.memory_fraction is not None:
            torch.cuda.set_per_process_memory_fraction(settings.memory_fraction)
        self._base = load_base(
            settings.base,
            device=settings.device,
            revision=settings.revision,
            quantization=settings.quantization,
        )
        self._base.release_text_encoders()
        if settings.device == "cpu":
            use_fast_blocks(self._base.components[self._base.denoiser_name])
        self._store, self._attempt = store, attempt
        self._specs = {spec.key: spec for spec in specs}

    def __call__(self, batch: Batch) -> Batch:
        """Generate the parts of a batch of rows; returns one row for each outcome."""
        outcomes: list[PartRecord | PartFailure] = []
        for key, number, first, stop in zip(
            batch["prior_key"], batch["number"], batch["first"], batch["stop"], strict=True
        ):
            part = Part(str(key), int(number), int(first), int(stop))
            outcomes += self._generate(part)
        return _as_rows(outcomes)

    def _generate(self, part: Part) -> list[PartRecord | PartFailure]:
        from farm.training.priors.generate import generate_part  # with torch

        spec = self._specs[part.prior_key]
        try:
            records = [
                write_part(self._store, self._attempt, part, generate_part(self._base, spec, part))
            ]
            if part.number == 0:
                records.append(write_prompt(self._store, self._attempt, self._base, spec))
            return list(records)
        except FarmError as error:
            return [PartFailure.of_error(part.prior_key, error)]


def _as_rows(outcomes: Sequence[PartRecord | PartFailure]) -> Batch:
    records = [one if isinstance(one, PartRecord) else None for one in outcomes]
    failures = [one if isinstance(one, PartFailure) else None for one in outcomes]
    return {
        "prior_key": np.array([one.prior_key for one in outcomes]),
        "file": np.array([one.file if one else "" for one in records]),
        "num_images": np.array([one.num_images if one else 0 for one in records]),
        "sha256": np.array([one.sha256 if one else "" for one in records]),
        "error": np.array([one.reason if one else "" for one in failures]),
        "remedy": np.array([one.remedy if one else "" for one in failures]),
        "store": np.array([one.store if one else "" for one in failures]),
    }


def _as_outcome(row: dict[str, Any]) -> PartRecord | PartFailure:
    if row["error"]:
        return PartFailure(row["prior_key"], row["error"], row["remedy"], row["store"])
    return PartRecord(row["prior_key"], row["file"], int(row["num_images"]), row["sha256"])


def generate_with_ray(
    settings: PriorWorkerSettings, store: Store, specs: Sequence[PriorSpec], attempt: str
) -> Generator[PartRecord | PartFailure]:
    """Run the pipeline; yields as parts are written. Ray must be initialised."""
    import ray.data

    if not os.environ.get("FARM_DEBUG"):
        logging.getLogger("ray.data").setLevel(logging.ERROR)
    ray.data.DataContext.get_current().enable_progress_bars = False
    rows = [
        {"prior_key": part.prior_key, "number": part.number, "first": part.first, "stop": part.stop}
        for spec in specs
        for part in parts_of(spec)
    ]
    resources: dict[str, Any] = (
        {"num_gpus": settings.gpu_fraction}
        if settings.gpu_fraction
        else {"num_cpus": settings.num_cpus}
    )
    most = max(1, min(settings.max_actors, len(rows)))
    # cores are available at once; nodes with GPUs may have to be added first
    fewest = 1 if settings.gpu_fraction else most
    pipeline = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
        PriorWorker,
        fn_constructor_args=(settings, store, list(specs), attempt),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(min_size=fewest, max_size=most),
        **resources,
    )
    # closed with this generator, so that the pipeline's own threads end before Ray does
    outcomes: Any = iter(pipeline.iter_rows())
    with closing(outcomes):
        for row in outcomes:
            yield _as_outcome(row)
