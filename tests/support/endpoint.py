"""A real endpoint for tests: the tiny base, a real engine, real files, a real HTTP server."""

from __future__ import annotations

import base64
import io
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import openai
import torch
import uvicorn
from PIL import Image

from farm.adapters.files.folder import save_adapter
from farm.adapters.record import AdapterRecord
from farm.adapters.registry import Registry
from farm.adapters.weights import AdapterWeights, LayerWeights
from farm.base.interface import Base
from farm.base.loading import load_base
from farm.keys import key_of
from farm.recipe import Recipe
from farm.serving.access.api_keys import create_key
from farm.serving.build import build_services, engine_facts
from farm.serving.client import LocalEngine
from farm.serving.config import EngineConfig
from farm.serving.engine.engine import Engine
from farm.serving.http.app import create_app
from farm.serving.http_server import bounded_config
from farm.serving.metrics import PrometheusMetrics
from farm.serving.settings import EndpointConfig
from farm.storage import Store

TARGETS = ("to_q", "to_k", "to_v", "to_out.0")
RANK = 4


def make_weights(base: Base, seed: int, *, strength: float = 0.4) -> AdapterWeights:
    """A random adapter for the tiny base: strong enough that images differ visibly, but not so
    strong that the denoiser becomes chaotic and amplifies rounding errors to visible ones.
    """
    generator = torch.Generator().manual_seed(seed)
    layers = {}
    for name, module in base.components["unet"].named_modules():
        if name.endswith(TARGETS) and isinstance(module, torch.nn.Linear):
            down = torch.randn(RANK, module.in_features, generator=generator)
            up = torch.randn(module.out_features, RANK, generator=generator)
            layers[f"unet.{name}"] = LayerWeights(
                down / module.in_features**0.5, strength * up / RANK**0.5
            )
    return AdapterWeights.with_alpha(layers, 4 * RANK)


def publish(
    store: Store,
    base: Base,
    name: str,
    *,
    namespace: str = "default",
    seed: int = 0,
    identifier: str = "sks",
    class_noun: str = "dog",
    base_fingerprint: str | None = None,
    strength: float = 0.4,
    **recipe: Any,
) -> AdapterRecord:
    """Commit an adapter to a store, as a lane does."""
    record = AdapterRecord(
        job_key=key_of("test-job", name=name, namespace=namespace, seed=seed),
        subject_id=name,
        namespace=namespace,
        name=name,
        class_noun=class_noun,
        identifier=identifier,
        instance_prompt=f"a photo of {identifier} {class_noun}",
        base_id=base.name,
        base_fingerprint=base_fingerprint or base.fingerprint,
        recipe=Recipe(rank=RANK, **recipe),
        steps_trained=1,
    )
    sample = Image.new("RGB", (8, 8), (seed % 255, 0, 0))
    with TemporaryDirectory() as folder:
        weights = make_weights(base, seed, strength=strength)
        saved = save_adapter(folder, weights, record, base, samples=[sample])
        Registry(store).publish(saved, folder)
    return saved


class LiveEndpoint:
    """A server on a free port of this machine, and the engine behind it."""

    def __init__(self, root: Path, **config: Any) -> None:
        self.store = Store(root / "store")
        self.registry = Registry(self.store)
        name = config.pop("base", "tiny")
        engine = config.pop("engine", EngineConfig(num_slots=6, max_rank=8, batch_rows=8))
        config.setdefault("anonymous_namespace", "default")
        self.config = EndpointConfig(
            store=self.store.url,
            base=name,
            engine=engine,
            cache_folder=str(root / "disk"),
            **config,
        )
        self.base = load_base(name)
        self.engine = Engine(
            load_base(name),
            self.registry,
            self.config.engine_config,
            cache_folder=self.config.disk_folder,
        )
        self.engine.start()
        self.client = LocalEngine(self.engine, engine_facts(self.engine, name))
        self.services = build_services(
            self.config, self.client, PrometheusMetrics(), link_secret=b"secret"
        )
        server_config = bounded_config(
            create_app(self.services), self.config.connections, host="127.0.0.1", port=0
        )
        self._server = uvicorn.Server(server_config)
        self._thread = threading.Thread(target=self._server.run, daemon=True)
        self._thread.start()
        while not self._server.started:
            if not self._thread.is_alive():
                raise RuntimeError("the server did not start")
            time.sleep(0.01)
        self.port = self._server.servers[0].sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"

    def stop(self) -> None:
        self._server.should_exit = True
        self._thread.join(20)
        self.engine.stop()

    def publish(self, name: str, **options: Any) -> AdapterRecord:
        return publish(self.store, self.base, name, **options)

    def key(self, namespace: str, **options: Any) -> str:
        return create_key(self.store, namespace, **options)[0]

    def openai(self, key: str = "none", **options: Any) -> openai.OpenAI:
        options.setdefault("max_retries", 0)
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=key, **options)


@contextmanager
def live_endpoint(root: Path, **config: Any) -> Iterator[LiveEndpoint]:
    endpoint = LiveEndpoint(root, **config)
    try:
        yield endpoint
    finally:
        endpoint.stop()


def pixels_of(b64_json: str | None) -> np.ndarray:
    """An image of a response, int16 [H, W, 3] so that differences do not wrap."""
    assert b64_json is not None
    with Image.open(io.BytesIO(base64.b64decode(b64_json))) as image:
        return np.asarray(image.convert("RGB")).astype(np.int16)


def are_same(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether two images are the same image, generated in different batches.

    The batch of a row changes the order of float sums, so single values may round to the next
    of 255 levels. Two different images differ by 40 on average.
    """
    difference = np.abs(one - other)
    return bool(difference.max() <= 2 and difference.mean() < 0.05)


def eventually(claim: Any, *, within_s: float = 10.0) -> None:
    """Wait until a condition holds."""
    until_s = time.monotonic() + within_s
    while not claim():
        if time.monotonic() > until_s:
            raise AssertionError("the condition was never met")
        time.sleep(0.05)
