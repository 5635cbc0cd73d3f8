"""A pass over attention adapters with two versions of the code: CPU time and memory.

    python benchmarks/serve_pair.py OLD_TREE

``OLD_TREE`` is a checkout of the version with a bank of fixed layers (2026-11-23). Processes with
the old and the new code take turns. Each runs full passes of the embedded base with 16 adapters of
rank 8 on the attention projections and keeps its smallest CPU time, which other programs hardly
change. Memory is what the filled bank and the rows' weights add to the process.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

TARGETS = ("to_q", "to_k", "to_v", "to_out.0")
ROWS, ADAPTERS, SLOTS, RANK = 32, 16, 65, 8
TREE = Path(__file__).parents[1]


def loaded() -> tuple[Any, Callable[[], tuple[Any, Any]]]:
    """The base, and what opens its serving bank and row weights, of the version on the path."""
    from importlib import import_module
    from importlib.util import find_spec

    if find_spec("farm.base.interface") is not None:
        from farm.adapters.bank.mixed import MixedBank
        from farm.adapters.bank.row_weights import RowWeights
        from farm.base.fast_blocks import use_fast_blocks
        from farm.base.loading import load_base

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


def measure(passes: int) -> dict[str, float]:
    """The CPU milliseconds of the fastest pass, and MiB of the adapters."""
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
    best = float("inf")
    with torch.no_grad(), rows.active():
        for _ in range(passes):
            began = time.process_time()
            base.denoise(latents, steps, prompts)
            best = min(best, time.process_time() - began)
    return {"pass_cpu_ms": 1e3 * best, "adapters_mib": kept}


def resident_mib() -> float:
    """This process's resident memory."""
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if "VmRSS" in line).split()[1]) / 1024


def compare(old: Path, rounds: int, passes: int) -> dict[str, dict[str, float]]:
    """The smallest numbers of each version."""
    found: dict[str, list[dict[str, float]]] = {"old": [], "new": []}
    for number in range(2 * rounds):
        name = ("old", "new", "new", "old")[number % 4]
        environment = {**os.environ, "PYTHONPATH": str(old if name == "old" else TREE)}
        command = [sys.executable, __file__, "--measure", str(passes)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        found[name].append(json.loads(done.stdout.splitlines()[-1]))
        print(name, found[name][-1], file=sys.stderr, flush=True)
    return {
        name: {key: min(one[key] for one in each) for key in each[0]}
        for name, each in found.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("old", type=Path, nargs="?")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--passes", type=int, default=20)
    parser.add_argument("--measure", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(arguments.measure)))
        return
    print(json.dumps(compare(arguments.old.resolve(), arguments.rounds, arguments.passes)))


if __name__ == "__main__":
    main()
