"""The serving benchmark's workload: adapters in a store and a Zipf trace over them.

The adapters are random (speed does not depend on training) with a small effect, so that images stay
plausible; the files, their checks and their loading are the real ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from farm.adapters.bank.bank import Bank
from farm.adapters.files.folder import save_adapter
from farm.adapters.record import AdapterRecord
from farm.adapters.registry import Registry
from farm.adapters.weights import AdapterWeights, LayerWeights
from farm.base.interface import Base
from farm.keys import key_of
from farm.recipe import Recipe
from farm.serving.request import AdapterRef, GenerationRequest
from farm.storage import Store

TARGETS = ("to_q", "to_k", "to_v", "to_out.0")
PLACES = ("in space", "on the moon", "in the snow", "at night", "by the sea", "in a forest")


@dataclass(frozen=True)
class Workload:
    """The trace, and the adapters that it uses."""

    registry: Registry
    refs: list[AdapterRef]
    requests: list[GenerationRequest]


def make_workload(
    base: Base,
    folder: Path,
    *,
    adapters: int,
    requests: int,
    rank: int,
    steps: int,
    guidance: float,
    zipf: float,
    seed: int = 0,
) -> Workload:
    """Commit the adapters and generate a trace in which adapter number k is requested in proportion
    to 1 / k^zipf. Every request has its own prompt, so no method gains by caching."""
    registry, refs = _committed(base, folder, adapters, rank)
    random = np.random.default_rng(seed)
    popularity = 1.0 / np.arange(1, adapters + 1) ** zipf
    chosen = random.choice(adapters, size=requests, p=popularity / popularity.sum())
    trace = [
        GenerationRequest(
            id=str(i),
            prompt=f"a photo of sks cat number {i} {PLACES[i % len(PLACES)]}",
            seed=i,
            steps=steps,
            guidance=guidance,
            scheduler="dpm++2m",
            adapters=((refs[which], 1.0),),
        )
        for i, which in enumerate(chosen)
    ]
    return Workload(registry, refs, trace)


def _committed(
    base: Base, folder: Path, count: int, rank: int
) -> tuple[Registry, list[AdapterRef]]:
    registry = Registry(Store(folder / "store"))
    bank = Bank(base, num_slots=1, max_rank=rank, target_modules=TARGETS)
    bank.init_slot(0, rank, float(rank), 0)
    shape = bank.slot_weights(0)
    bank.close()
    refs = []
    for number in range(count):
        generator = torch.Generator().manual_seed(number)
        layers = {
            name: LayerWeights(layer.down, 0.02 * torch.randn(layer.up.shape, generator=generator))
            for name, layer in shape.layers.items()
        }
        key = key_of("job", benchmark="serving", number=number)
        record = AdapterRecord(
            job_key=key,
            subject_id=f"cat-{number}",
            name=f"cat-{number}",
            class_noun="cat",
            instance_prompt="a photo of sks cat",
            base_id=base.name,
            base_fingerprint=base.fingerprint,
            recipe=Recipe(rank=rank),
        )
        weights = AdapterWeights(layers, shape.alphas)
        saved = save_adapter(folder / "local" / key, weights, record, base, forms=("diffusers",))
        registry.publish(saved, folder / "local" / key)
        refs.append(AdapterRef(key, "default", f"cat-{number}", saved.files[_WEIGHTS]))
    return registry, refs


_WEIGHTS = "pytorch_lora_weights.safetensors"
