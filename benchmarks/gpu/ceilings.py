"""What the card itself reaches: a copy in memory, and a bfloat16 matrix product."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import torch

from gpu.results import Result, Results
from gpu.setting import Setting
from gpu.suite import Case

__all__ = ["cases"]

REPEATS = 10


def cases(setting: Setting) -> list[Case]:
    return [Case("ceilings", _ceilings, 10)]


def _ceilings(setting: Setting, results: Results) -> Iterator[Result]:
    source = torch.ones(setting.copy_mib << 18, device=setting.device)
    target = torch.empty_like(source)
    seconds = _fastest(setting, lambda: target.copy_(source))
    moved = 2 * source.numel() * source.element_size()
    yield {"what": "copy", "tb_per_s": moved / seconds / 1e12}
    side = setting.matrix
    left = torch.randn(side, side, device=setting.device).to(torch.bfloat16)
    seconds = _fastest(setting, lambda: left @ left)
    reached = 2 * side**3 / seconds / 1e12
    peak = setting.peak_tflops
    yield {
        "what": "bf16 product",
        "tflops": reached,
        "share_of_peak": reached / peak if peak else None,
    }


def _fastest(setting: Setting, run: Callable[[], object]) -> float:
    run()
    best = float("inf")
    for _ in range(REPEATS):
        setting.synchronize()
        began = time.perf_counter()
        run()
        setting.synchronize()
        best = min(best, time.perf_counter() - began)
    return best
