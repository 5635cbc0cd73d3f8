"""Serving: pictures a second with mixed adapters, against the bare base and against peers.

All methods share one base, one after the other, and generate the same requests. ``hotswap`` is
diffusers' own: one adapter in the pipeline, whose weights are replaced between calls.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from serve_methods import OneAdapterBatches, Ours, PeftMixed, PlainDiffusers
from serve_trace import Workload, make_workload

from farm.adapters.bank.mixed import MixedBank
from farm.adapters.files.folder import load_adapter
from farm.base.interface import Base
from farm.serving.config import EngineConfig
from farm.serving.request import GenerationRequest, RequestLimits
from gpu.results import Result, Results
from gpu.setting import Setting
from gpu.suite import Case

__all__ = ["cases"]

RANK = 8
SLOW_SHARE = 8


class Hotswap(PlainDiffusers):
    """One pipeline with one adapter, replaced in place before each picture."""

    name = "diffusers, hotswap"

    def __init__(self, base: Base, workload: Workload) -> None:
        super().__init__(base, workload)
        self._is_first = True

    def _load(self, key: str, **options: Any) -> None:
        super()._load(key, adapter_name="swapped", hotswap=not self._is_first)
        self._is_first = False

    def _unload(self) -> None:
        """The adapter stays until the next one replaces it."""


def cases(setting: Setting) -> list[Case]:
    return [Case("serving", _serving, 70), Case("swap-in", _swap_in, 10)]


def _serving(setting: Setting, results: Results) -> Iterator[Result]:
    base = setting.base()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        workload = _workload(base, setting, folder)
        engine = partial(_engine, base, workload, setting, folder)
        pictures, waiting = setting.pictures, 2 * setting.pictures
        methods: list[tuple[Callable[[], Any], bool]] = [
            (partial(engine, "mixed adapters"), False),
            (partial(engine, "bare base", bare=True), False),
            (partial(OneAdapterBatches, base, workload, pictures, RANK, waiting), False),
            (partial(PeftMixed, base, workload, pictures, RANK), False),
            (partial(Hotswap, base, workload), True),
        ]
        mixed = 0.0
        for make, is_slow in methods:
            requests = workload.requests
            if is_slow:
                requests = requests[: max(1, len(requests) // SLOW_SHARE)]
            found = _timed(make, requests, base, setting)
            mixed = mixed or found["pictures_per_s"]
            yield {**found, "mixed_is_times": mixed / found["pictures_per_s"]}


def _timed(
    make: Callable[[], Any], requests: list[GenerationRequest], base: Base, setting: Setting
) -> Result:
    memory: dict[str, float] = {}
    with setting.peak_memory(memory):
        began = time.perf_counter()
        method = make()
        try:
            method.generate(requests[: min(setting.pictures, len(requests))])  # not timed
            setting.synchronize()
            start_s = time.perf_counter() - began
            began = time.perf_counter()
            method.generate(requests)
            setting.synchronize()
            wall_s = time.perf_counter() - began
        finally:
            _undo(method, base)
    return {
        "method": method.name,
        "pictures": len(requests),
        "pictures_per_s": len(requests) / wall_s,
        "start_s": start_s,
        **memory,
    }


def _undo(method: Any, base: Base) -> None:
    """Leave the base as it was: without banks, peft's layers or the engine's."""
    if isinstance(method, Ours):
        method.close()
    elif isinstance(method, OneAdapterBatches):
        method._bank.close()
    elif isinstance(method, PeftMixed):
        from peft.tuners.lora import LoraLayer

        unet: Any = base.components[base.denoiser_name]
        for module in unet.modules():
            if isinstance(module, LoraLayer):
                module._forward_pre_hooks.clear()
        unet.unload_lora()
    else:
        base.pipeline().unload_lora_weights()


def _engine(
    base: Base, workload: Workload, setting: Setting, folder: Path, name: str, *, bare: bool = False
) -> Ours:
    config = EngineConfig(
        num_slots=2 * setting.pictures + 1,
        batch_rows=2 * setting.pictures,
        max_waiting=10_000,
        max_wait_s=1e6,
        decode_batch=8,
        limits=RequestLimits(max_adapters=1),
    )
    waiting = 2 * setting.pictures
    return Ours(name, base, workload, config, folder / "cache", waiting, bare=bare)


def _workload(base: Base, setting: Setting, folder: Path) -> Workload:
    return make_workload(
        base,
        folder,
        adapters=setting.adapters,
        requests=setting.requests,
        rank=RANK,
        steps=setting.sampling_steps,
        guidance=5.0,
        zipf=1.0,
    )


def _swap_in(setting: Setting, results: Results) -> Iterator[Result]:
    """Milliseconds to bring an adapter from host memory into a slot, nothing else running."""
    base = setting.base()
    with tempfile.TemporaryDirectory() as name:
        workload = _workload(base, setting, Path(name))
        bank = MixedBank(base, base.denoiser_name, num_slots=setting.adapters)
        try:
            folder = Path(workload.registry.store.url) / "adapters"
            loaded = [
                load_adapter(
                    folder / ref.key / "pytorch_lora_weights.safetensors", bank.layer_names
                )
                for ref in workload.refs
            ]
            for slot, weights in enumerate(loaded):
                bank.set_slot(slot, weights)
            setting.synchronize()
            began = time.perf_counter()
            for slot, weights in enumerate(reversed(loaded)):
                bank.set_slot(slot, weights)
            queued_s = time.perf_counter() - began
            setting.synchronize()
            wall_s = time.perf_counter() - began
        finally:
            bank.close()
    each = 1e3 / setting.adapters
    yield {"adapters": setting.adapters, "host_ms": queued_s * each, "with_copy_ms": wall_s * each}
