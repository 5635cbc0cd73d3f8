"""The methods of serving many adapters that the benchmark compares, each with its own base.

All of them serve the same requests, decode the images, and see at most ``waiting`` requests at a
time, as from that many clients that each wait for their image before sending the next request.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, inject_adapter_in_model, set_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from serve_trace import TARGETS, Workload
from torch import Tensor

from farm.adapters.bank.mixed import MixedBank
from farm.adapters.bank.row_weights import RowWeights
from farm.adapters.files.folder import load_adapter
from farm.adapters.files.layer_names import layer_names
from farm.base.fast_blocks import use_fast_blocks
from farm.base.generate import generate_latents, to_uint8
from farm.base.interface import Base
from farm.serving.config import EngineConfig
from farm.serving.engine.engine import Engine
from farm.serving.request import GenerationRequest, Picture

Generated = dict[str, np.ndarray]
"""Images by request."""


class PlainDiffusers:
    """``load_lora_weights`` for each request, one image at a time, ``unload_lora_weights``."""

    name = "diffusers, load per request"
    is_slow = True
    """Its speed does not depend on the load, so a short run measures it."""

    def __init__(self, base: Base, workload: Workload) -> None:
        self._base, self._pipeline = base, base.pipeline()
        self._folder = Path(workload.registry.store.url) / "adapters"

    def generate(self, requests: Sequence[GenerationRequest]) -> Generated:
        generated: Generated = {}
        for request in requests:
            generated |= self.generate_together([request])
        return generated

    def generate_together(self, requests: Sequence[GenerationRequest]) -> Generated:
        """One pipeline call for requests with the same adapter and settings."""
        ((ref, _),) = requests[0].adapters
        self._load(ref.key)
        generated = self._call(requests)
        self._unload()
        return generated

    def _load(self, key: str, **options: Any) -> None:
        self._pipeline.load_lora_weights(
            self._folder / key, weight_name="pytorch_lora_weights.safetensors", **options
        )

    def _unload(self) -> None:
        self._pipeline.unload_lora_weights()

    def _call(self, requests: Sequence[GenerationRequest]) -> Generated:
        first = requests[0]
        self._pipeline.scheduler = self._base.scheduler(first.scheduler)
        images = self._pipeline(
            [request.prompt for request in requests],
            num_inference_steps=first.steps,
            guidance_scale=first.guidance,
            generator=[torch.Generator("cpu").manual_seed(one.seed) for one in requests],
            output_type="np",
        ).images
        pixels = (images * 255).round().astype(np.uint8)
        return {request.id: one for request, one in zip(requests, pixels, strict=True)}


def _batches_of_one_adapter(
    requests: Sequence[GenerationRequest], waiting: int, pictures: int
) -> Iterator[list[GenerationRequest]]:
    """Batches of servers that batch by adapter: the oldest request determines the adapter."""
    coming = list(requests)
    while coming:
        seen = coming[:waiting]
        batch = [one for one in seen if one.adapters == seen[0].adapters][:pictures]
        yield batch
        taken = {request.id for request in batch}
        coming = [request for request in coming if request.id not in taken]


class GroupingDiffusers(PlainDiffusers):
    """Waiting requests of one adapter share a pipeline call and a load."""

    name = "diffusers, one adapter per batch"
    is_slow = False

    def __init__(self, base: Base, workload: Workload, pictures: int, waiting: int) -> None:
        super().__init__(base, workload)
        self._pictures, self._waiting = pictures, waiting

    def generate(self, requests: Sequence[GenerationRequest]) -> Generated:
        generated: Generated = {}
        for batch in _batches_of_one_adapter(requests, self._waiting, self._pictures):
            generated |= self.generate_together(batch)
        return generated


def _batch(
    base: Base, requests: Sequence[GenerationRequest], routing: Callable[[Tensor], Any]
) -> Generated:
    """Generate requests with the same settings together from start to end."""
    first = requests[0]
    latents = generate_latents(
        base,
        base.encode_prompts([request.prompt for request in requests]),
        [request.seed for request in requests],
        steps=first.steps,
        guidance=first.guidance,
        scheduler=first.scheduler,
        routing=routing,
    )
    pixels = to_uint8(base.decode(latents)).numpy()
    return {request.id: picture for request, picture in zip(requests, pixels, strict=True)}


class PeftMixed:
    """peft's mixed-adapter batch: ``adapter_names`` in every LoRA layer, full batches in order.

    All adapters of the trace are in memory before timing starts.
    """

    name = "peft, adapter_names"
    is_slow = False

    def __init__(self, base: Base, workload: Workload, pictures: int, rank: int) -> None:
        self._base, self._pictures = base, pictures
        self._unet = base.components[base.denoiser_name]
        self._names: list[str] = []
        folder = Path(workload.registry.store.url) / "adapters"
        keys = {ref.key for request in workload.requests for ref, _ in request.adapters}
        known = layer_names(base)  # before peft wraps layers
        for key in sorted(keys):
            weights = load_adapter(folder / key / "pytorch_lora_weights.safetensors", known)
            config = LoraConfig(r=rank, lora_alpha=rank, target_modules=list(TARGETS))
            inject_adapter_in_model(config, self._unet, adapter_name=key)
            state = {}
            for name, layer in weights.layers.items():
                path = name.split(".", 1)[1]
                state[f"{path}.lora_A.weight"] = layer.down
                state[f"{path}.lora_B.weight"] = layer.up
            set_peft_model_state_dict(self._unet, state, adapter_name=key)
        for module in self._unet.modules():
            if isinstance(module, LoraLayer):
                module.register_forward_pre_hook(self._name_rows, with_kwargs=True)

    def _name_rows(self, module: Any, given: Any, named: Any) -> Any:
        return given, {**named, "adapter_names": self._names}

    def generate(self, requests: Sequence[GenerationRequest]) -> Generated:
        generated: Generated = {}
        for start in range(0, len(requests), self._pictures):
            batch = requests[start : start + self._pictures]
            keys = [request.adapters[0][0].key for request in batch]

            @contextmanager
            def routing(pictures_R: Tensor, keys: list[str] = keys) -> Iterator[None]:
                self._names = [keys[i] for i in pictures_R.tolist()]
                yield

            generated |= _batch(self._base, batch, routing)
        return generated


class OneAdapterBatches:
    """Only rows of one adapter share a batch, with this engine's bank, passes and decoding.

    Only the batching rule differs. All adapters of the trace are in memory before timing
    starts.
    """

    name = "engine's parts, one adapter per batch"
    is_slow = False

    def __init__(
        self, base: Base, workload: Workload, pictures: int, rank: int, waiting: int
    ) -> None:
        self._base, self._pictures, self._waiting = base, pictures, waiting
        folder = Path(workload.registry.store.url) / "adapters"
        keys = {ref.key for request in workload.requests for ref, _ in request.adapters}
        self._slot = {key: slot for slot, key in enumerate(sorted(keys))}
        self._bank = MixedBank(base, base.denoiser_name, num_slots=len(keys))
        self._rows = RowWeights(self._bank)
        if base.device.type == "cpu":
            base.pipeline().vae.to(memory_format=torch.channels_last)
            use_fast_blocks(base.components[base.denoiser_name])
        known = self._bank.layer_names
        for key, slot in self._slot.items():
            file = folder / key / "pytorch_lora_weights.safetensors"
            self._bank.set_slot(slot, load_adapter(file, known))

    def generate(self, requests: Sequence[GenerationRequest]) -> Generated:
        generated: Generated = {}
        for batch in _batches_of_one_adapter(requests, self._waiting, self._pictures):
            rows = len(batch) * (2 if self._base.needs_unprompted(batch[0].guidance) else 1)
            self._rows.assign([[self._slot[batch[0].adapters[0][0].key]]] * rows)
            generated |= _batch(self._base, batch, lambda _: self._rows.active())
        return generated


class Ours:
    """This project's engine, including loading adapters from the store."""

    is_slow = False

    def __init__(
        self, name: str, base: Base, workload: Workload, config: EngineConfig, folder: Path,
        waiting: int, *, bare: bool = False,
    ) -> None:  # fmt: skip
        self.name = name
        self._waiting, self._bare = waiting, bare
        self.engine = Engine(base, workload.registry, config, cache_folder=folder)
        self.engine.start()

    def generate(self, requests: Sequence[GenerationRequest]) -> Generated:
        from dataclasses import replace

        generated: Generated = {}
        room = threading.Semaphore(self._waiting)
        tickets = []
        for request in requests:
            room.acquire()
            ticket = self.engine.submit(replace(request, adapters=()) if self._bare else request)
            ticket.future.add_done_callback(lambda _: room.release())
            tickets.append(ticket)
        for request, ticket in zip(requests, tickets, strict=True):
            generated[request.id] = ticket.result(600).pixels
        return generated

    def generate_at(
        self, requests: Sequence[GenerationRequest], rate: float, seed: int
    ) -> list[float]:
        """Poisson arrivals at ``rate`` images per second; returns the latencies in seconds."""
        gaps = np.random.default_rng(seed).exponential(1 / rate, len(requests))
        latencies: list[float] = []
        tickets = []
        started = next_s = time.perf_counter()
        for request, gap in zip(requests, gaps, strict=True):
            next_s += gap
            time.sleep(max(0.0, next_s - time.perf_counter()))

            def ended(_: object, due_s: float = next_s) -> None:
                latencies.append(time.perf_counter() - due_s)

            ticket = self.engine.submit(request)
            ticket.future.add_done_callback(ended)
            tickets.append(ticket)
        for ticket in tickets:
            picture: Picture = ticket.result(600)
            assert picture.pixels.size
        assert started
        return latencies

    def close(self) -> None:
        self.engine.stop()
