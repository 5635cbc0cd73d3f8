"""Builds the engine and its services from a config.

Owns only the wiring. Torch is imported when an engine is built, not before.
"""

from __future__ import annotations

from concurrent.futures import Executor
from typing import TYPE_CHECKING

from farm.adapters.record import BaseFamily
from farm.adapters.registry import Registry
from farm.serving.access.api_keys import Gate
from farm.serving.access.catalog import Catalog
from farm.serving.client import EngineClient, ServedBase
from farm.serving.http.links import ImageLinks
from farm.serving.http.services import Services
from farm.serving.metrics import Metrics
from farm.serving.settings import EndpointConfig
from farm.serving.ttl_cache import store_threads
from farm.storage import Store

if TYPE_CHECKING:
    from farm.serving.engine.engine import Engine

__all__ = ["build_engine", "build_services", "engine_facts"]


def build_engine(config: EndpointConfig) -> tuple[Engine, ServedBase]:
    """Load the base and open an engine over the store's adapters; the caller starts it.

    Raises:
        UserError: if the base cannot be loaded or the config does not fit it.
    """
    import torch

    from farm.base.device.heap import keep_freed_memory
    from farm.base.loading import load_base

    has_gpu = torch.cuda.is_available()
    device = ("cuda" if has_gpu else "cpu") if config.device == "auto" else config.device
    dtype = None if config.dtype == "auto" else getattr(torch, config.dtype)
    keep_freed_memory(device)
    base = load_base(
        config.base,
        device=device,
        dtype=dtype,
        revision=config.revision,
        quantization=config.quantization,
    )
    base.release_text_encoders()
    # imported after the base is loaded: a wrong name is reported seconds earlier
    from farm.serving.engine.engine import Engine

    registry = Registry(Store(config.store))
    engine = Engine(base, registry, config.engine_config, cache_folder=config.disk_folder)
    return engine, engine_facts(engine, config.public_base)


def engine_facts(engine: Engine, public_id: str) -> ServedBase:
    """Facts about an engine's base for the HTTP side."""
    base = engine.base
    return ServedBase(
        id=public_id,
        fingerprint=base.fingerprint,
        resolution_px=base.resolution_px,
        side_multiple_px=base.memory.latent_factor,
        family=BaseFamily.of(base.family),
    )


def build_services(
    config: EndpointConfig,
    client: EngineClient,
    metrics: Metrics,
    *,
    link_secret: bytes,
    executor: Executor | None = None,
) -> Services:
    """The services of one ingress process."""
    store = Store(config.store)
    threads, limits = executor or store_threads(), config.limits
    pictures = Store(config.pictures_store) if config.pictures_store else store
    return Services(
        client=client,
        catalog=Catalog(Registry(store), executor=threads, max_age_s=limits.store_max_age_s),
        gate=Gate(
            store,
            executor=threads,
            anonymous_namespace=config.anonymous_namespace,
            max_age_s=limits.store_max_age_s,
            failures_per_minute=limits.failed_keys_per_minute,
        ),
        shelf=ImageLinks(pictures, link_secret, lifetime_s=config.link_lifetime_s),
        metrics=metrics,
        executor=threads,
        limits=limits,
        public_url=config.public_url.rstrip("/"),
    )
