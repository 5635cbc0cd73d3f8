"""A pass over attention adapters with two versions of the code: CPU time and memory.

    python benchmarks/serving/serve_pair.py OLD_TREE

``OLD_TREE`` is a checkout of the version with a bank of fixed layers (2026-11-23). Two processes,
one with the old code and one with the new, take turns pass by pass, so that other programs disturb
both alike; medians and smallest values of CPU time are compared. Each runs full passes of the
embedded base with 16 adapters of rank 8 on the attention projections, and bare ones. Memory is what
the filled bank and the rows' weights add to the process.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from statistics import median
from typing import Any

TARGETS = ("to_q", "to_k", "to_v", "to_out.0")
ROWS, ADAPTERS, SLOTS, RANK = 32, 16, 65, 8
TREE = Path(__file__).parents[2]


def loaded() -> tuple[Any, Callable[[], tuple[Any, Any]]]:
    """The base, and what opens its serving bank and row weights, of the version on the path."""
    from importlib import import_module
    from importlib.util import find_spec

    if find_spec("farm.base.interface") is not None:
        from farm.adapters.bank.mixed import MixedBank
        from farm.adapters.bank.row_weights import RowWeights
        from farm.base.device.heap import keep_freed_memory
        from farm.base.fast_blocks import use_fast_blocks
        from farm.base.loading import load_base

        keep_freed_memory("cpu")  # as the endpoint does
        base: Any = load_base("embedded")
        use_fast_blocks(base.components[base.denoiser_name])

        def open_new() -> tuple[Any, Any]:
            bank = MixedBank(base, base.denoiser_name, num_slots=SLOTS)
            return bank, RowWeights(bank)

        return base, open_new
    old: Any = import_module("farm.base.load").load_base("embedded")
    import_module("farm.base.lean").make_lean(old.components[old.denoiser_name])

    def open_old() -> tuple[Any, Any]:
        kind = import_module("farm.adapters.bank").Bank
        bank = kind(old, num_slots=SLOTS, max_rank=16, target_modules=TARGETS)
        return bank, import_module("farm.adapters.rows").RowWeights(bank)

    return old, open_old


def work() -> None:
    """Print the MiB of the adapters; then, for each kind of pass read, its CPU milliseconds."""
    import torch

    from farm.adapters.weights import AdapterWeights, LayerWeights

    torch.set_num_threads(1)
    base, open_bank = loaded()
    shape = base.latent_shape(base.resolution_px, base.resolution_px)
    denoiser = base.components[base.denoiser_name]
    sizes = {
        f"{base.denoiser_name}.{path}": module
        for path, module in denoiser.named_modules()
        if path.endswith(TARGETS) and hasattr(module, "weight")
    }
    latents, steps = torch.randn(ROWS, *shape), torch.full((ROWS,), 500.0)
    prompts = base.encode_prompts(["a photo of sks cat"]).repeat(ROWS)
    with torch.no_grad():
        base.denoise(latents, steps, prompts)  # the base's own memory
    before = resident_mib()
    bank, rows = open_bank()
    for slot in range(SLOTS - 1):
        layers = {
            name: LayerWeights(
                torch.randn(RANK, layer.weight.shape[1]),
                0.01 * torch.randn(layer.weight.shape[0], RANK),
            )
            for name, layer in sizes.items()
        }
        bank.set_slot(slot, AdapterWeights.with_alpha(layers, float(RANK)))
    rows.assign([[row % ADAPTERS] for row in range(ROWS)])
    del layers
    kept = resident_mib() - before
    print(json.dumps({"adapters_mib": kept}), flush=True)
    for line in sys.stdin:
        routing = rows.active() if line.strip() == "adapted" else nullcontext()
        began = time.process_time()
        with torch.no_grad(), routing:
            base.denoise(latents, steps, prompts)
        print(1e3 * (time.process_time() - began), flush=True)


def resident_mib() -> float:
    """This process's resident memory."""
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if "VmRSS" in line).split()[1]) / 1024


class Worker:
    """A process with one version of the code."""

    def __init__(self, tree: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__, "--work"],
            env={**os.environ, "PYTHONPATH": str(tree)},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip
        self.adapters_mib: float = json.loads(self._read())["adapters_mib"]

    def pass_ms(self, kind: str) -> float:
        """CPU milliseconds of one pass."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{kind}\n")
        self._process.stdin.flush()
        return float(self._read())

    def end(self) -> None:
        self._process.communicate()

    def _read(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline()


def compare(old: Path, passes: int) -> dict[str, tuple[float, float]]:
    """Of the old and the new code: median and smallest CPU time by kind of pass, and memory."""
    workers = Worker(old), Worker(TREE)
    found: dict[str, tuple[float, float]] = {}
    for kind in ("bare", "adapted"):
        times = [[worker.pass_ms(kind) for worker in workers] for _ in range(passes + 2)][2:]
        before, after = zip(*times, strict=True)
        found[f"{kind} pass, median CPU ms"] = median(before), median(after)
        found[f"{kind} pass, least CPU ms"] = min(before), min(after)
    found["MiB of the adapters"] = workers[0].adapters_mib, workers[1].adapters_mib
    for worker in workers:
        worker.end()
    return found


def table(found: dict[str, tuple[float, float]]) -> str:
    """As Markdown."""
    lines = ["| | 2026-11-23 | now | now / before |", "|---|---|---|---|"]
    lines += [
        f"| {what} | {before:.1f} | {after:.1f} | {after / before:.3f} |"
        for what, (before, after) in found.items()
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("old", type=Path, nargs="?")
    parser.add_argument("--passes", type=int, default=24)
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work:
        work()
    else:
        print(table(compare(arguments.old.resolve(), arguments.passes)))


if __name__ == "__main__":
    main()
