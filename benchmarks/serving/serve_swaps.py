"""Does copying an adapter from host memory to a slot delay the running batch?

Two engines generate the same images, one after the other. In one, every adapter has a slot; the
other has so few slots that nearly every request needs its adapter copied in from host memory while
the batch runs. The effect on the running batch is measured per pass.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from serve_methods import Ours
from serve_trace import Workload

from farm.base.interface import Base
from farm.serving.config import EngineConfig
from farm.serving.request import RequestLimits

NUM_ADAPTERS = 48
ROUNDS = 2


def measure_swaps(
    base: Base, workload: Workload, options: argparse.Namespace, folder: Path, rows: int
) -> dict[str, Any]:
    """Passes with and without swaps, alternating for ``ROUNDS`` rounds.

    A full pass holds ``rows / 2`` guided images; three times as many adapters share one and a half
    times as many slots.
    """
    refs = workload.refs[: max(NUM_ADAPTERS, 3 * rows // 2)]
    requests = [
        _with_adapter(request, refs[i % len(refs)])
        for i, request in enumerate(workload.requests[: len(refs)])
    ]
    few = 3 * rows // 4 + 1
    found: dict[str, list[dict[str, float]]] = {"resident": [], "swapping": []}
    for _ in range(ROUNDS):
        for name, slots in (("resident", len(refs) + 1), ("swapping", few)):
            found[name].append(_observed(base, workload, requests, folder, rows, slots, options))
    return {
        name: {key: statistics.median(run[key] for run in runs) for key in runs[0]}
        for name, runs in found.items()
    }


def _observed(
    base: Base, workload: Workload, requests: list[Any], folder: Path, rows: int, slots: int,
    options: argparse.Namespace,
) -> dict[str, float]:  # fmt: skip
    config = EngineConfig(
        num_slots=slots,
        max_rank=options.rank,
        batch_rows=rows,
        max_waiting=10_000,
        max_wait_s=1e6,
        decode_batch=options.decode_batch,
        limits=RequestLimits(max_adapters=1),
    )
    ours = Ours("swaps", base, workload, config, folder, rows)
    try:
        # warm up: all adapters are then in host memory, and in slots if there are enough
        ours.generate(requests)
        before = ours.engine.stats()
        passes = _watch(ours)
        started_s, started_cpu_s = time.perf_counter(), time.process_time()
        ours.generate(requests)
        seconds = time.perf_counter() - started_s
        cpu_s = time.process_time() - started_cpu_s
        stats = ours.engine.stats()
        swaps = len(requests) - (stats.slot_hits - before.slot_hits)
    finally:
        ours.close()
    most = max(num_rows for _, _, num_rows in passes)
    full = [one for one in passes if one[2] == most]
    step_s = statistics.median(_seconds(start, end) for start, end, _ in full)
    gaps = [_seconds(one[1], later[0]) for one, later in zip(passes, passes[1:], strict=False)]
    return {
        "swaps": swaps,
        "pictures_per_s": len(requests) / seconds,
        "pictures_per_cpu_s": len(requests) / cpu_s,
        "passes": len(passes),
        "step_ms": 1000 * step_s,
        "between_ms": 1000 * statistics.median(gaps),
        "gap_p99_steps": float(np.percentile(gaps, 99)) / step_s,
    }


def _watch(ours: Ours) -> list[tuple[Any, Any, int]]:
    """Start and end (as ``_now`` returns them) and rows of every pass from now on."""
    passes: list[tuple[Any, Any, int]] = []
    predict = ours.engine._denoiser.predict
    device = ours.engine.base.device

    def watched(rows: Any) -> Any:
        start = _now(device)
        prediction = predict(rows)
        passes.append((start, _now(device), sum(row.num_rows for row in rows)))
        return prediction

    ours.engine._denoiser.predict = watched  # type: ignore[method-assign]
    return passes


def _now(device: torch.device) -> Any:
    """The current time; on a GPU an event in its stream, because Python only queues a pass."""
    if device.type != "cuda":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record(torch.cuda.current_stream(device))
    return event


def _seconds(start: Any, end: Any) -> float:
    if isinstance(start, float):
        return float(end - start)
    end.synchronize()
    return float(start.elapsed_time(end)) / 1000


def _with_adapter(request: Any, ref: Any) -> Any:
    from dataclasses import replace

    return replace(request, adapters=((ref, 1.0),))
