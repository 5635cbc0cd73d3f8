"""Runs the GPU suite: all cases in one process, most valuable first, within a budget.

    benchmarks/gpu_suite.sh OUT [BUDGET_S]

A case is a generator function: it yields a result after each measurement, and an error ends only
that case. A module of ``benchmarks/gpu`` takes part by its name in ``MODULES`` and a function
``cases(setting)``; a module that is not present is left out.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import importlib.util
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from gpu.results import Result, Results
    from gpu.setting import Setting

__all__ = ["Case", "main"]

MODULES = (
    "equality", "gpu_tests", "ceilings", "training", "families", "base_training", "serving",
    "beside", "profile_best",
)  # fmt: skip


@dataclass(frozen=True)
class Case:
    """One step of the suite."""

    name: str
    run: Callable[[Setting, Results], Iterator[Result]]
    expected_s: float
    """On an H100; a case that would not fit in the rest of the budget is skipped."""


def all_cases(setting: Setting) -> list[Case]:
    """The cases of all modules that are present, in order."""
    cases: list[Case] = []
    for name in MODULES:
        if importlib.util.find_spec(f"gpu.{name}") is not None:
            cases += importlib.import_module(f"gpu.{name}").cases(setting)
    return cases


def run_case(case: Case, setting: Setting, results: Results, left_s: float) -> None:
    """Run one case; an error is a result too."""
    if left_s < case.expected_s:
        results.add({"kind": case.name, "skipped": f"{left_s:.0f} s left"})
        return
    began = time.perf_counter()
    failed = None
    try:
        for result in case.run(setting, results):
            results.add({"kind": case.name, **result})
    except Exception as error:
        reason = str(error).strip().splitlines() or [""]
        failed = f"{type(error).__name__}: {reason[0][:300]}"
        if not isinstance(error, torch.OutOfMemoryError):
            import traceback

            traceback.print_exc()
    if failed is not None:  # outside the handler, which keeps the failed case's memory
        results.add({"kind": case.name, "failed": failed})
    setting.free()
    print(f"{case.name}: {time.perf_counter() - began:.1f} s", flush=True)


def main(argv: list[str] | None = None) -> int:
    """Run the suite; 0 if at least one case succeeded."""
    arguments = _parse(argv)
    device = torch.device(arguments.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        print("no CUDA device; --device cpu --tiny runs the code on a CPU", file=sys.stderr)
        return 1
    from gpu.results import Results
    from gpu.setting import Setting

    setting = Setting.tiny(device) if arguments.tiny else Setting(device)
    results = Results(Path(arguments.out), setting.hardware, arguments.budget)
    ends_s = time.monotonic() + arguments.budget
    _stop_at(arguments.budget + arguments.grace, results)
    cases = all_cases(setting)
    gc.collect()
    gc.freeze()  # a collection after each case need not look at the imported modules
    for case in cases:
        if not arguments.only or case.name in arguments.only:
            run_case(case, setting, results, ends_s - time.monotonic())
    print(results.folder / "page.md")
    return 0 if results.num_good else 1


def _stop_at(seconds: float, results: Results) -> None:
    """End the process when the time is over, whatever the current case is waiting for."""

    def stop() -> None:
        print("the time is over", flush=True)
        os._exit(0 if results.num_good else 1)

    timer = threading.Timer(seconds, stop)
    timer.daemon = True
    timer.start()


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", required=True)
    parser.add_argument("--budget", type=float, default=480, help="seconds")
    parser.add_argument("--grace", type=float, default=60, help="for the last case, in seconds")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="the smallest sizes, to check the code")
    parser.add_argument("--only", nargs="+", default=[], help="names of cases")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
