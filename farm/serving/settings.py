"""The endpoint's settings: store and base, engine, limits, replicas.

Owns the operator's config file (the ``args`` of ``jobs/serve.yaml``). Imports neither torch nor
ray, so that a config can be checked anywhere.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from farm.file_facts import cache_folder
from farm.recipe import Quantization
from farm.serving.access.limits import Limits
from farm.serving.config import EngineConfig
from farm.serving.http.connections import ConnectionLimits
from farm.text.safe_names import public_base_id

__all__ = ["EndpointConfig", "ReplicaConfig"]


class ReplicaConfig(BaseModel):
    """Ray Serve's settings: number of engines, their resources, and autoscaling."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    min_engines: int = Field(1, ge=0)
    max_engines: int = Field(1, ge=1)
    gpus_per_engine: float = Field(0.0, ge=0)
    """Fractions share a GPU; 0.125, 0.25 and 0.5 add up without rounding."""
    cpus_per_engine: float = Field(1.0, ge=0)
    num_ingresses: int | None = Field(None, ge=1)
    """None is two, so that one remains when the other is lost, or one on a cluster that has no room
    for a second beside the engines."""
    cpus_per_ingress: float = Field(0.5, ge=0)
    requests_per_engine: int = Field(256, ge=1)
    """HTTP requests that an engine may hold at once; its queue orders and bounds them."""
    target_wait_s: float = Field(10.0, gt=0)
    """Engines are added when a new image would wait longer than this."""
    upscale_delay_s: float = Field(15.0, ge=0)
    downscale_delay_s: float = Field(300.0, ge=0)
    drain_s: float = Field(120.0, gt=0)
    """How long running requests may finish when an engine is removed, and at the end."""
    unready_s: float = Field(2.0, ge=0)
    """At the end of ``farm serve --ray``: how long ``/ready`` answers 503 before new requests are
    refused, so that load balancers stop sending them first."""
    stats_every_s: float = Field(1.0, gt=0)
    """How often engines report their load to the ingresses."""
    engine_wait_s: float = Field(10.0, gt=0)
    """How long a request waits for any engine before it is answered with 503."""
    load_bound: float = Field(1.25, ge=1)
    """Ratio to the mean load up to which an engine still receives its own adapters' requests."""


class EndpointConfig(BaseModel):
    """The settings of one endpoint."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    store: str
    """Folder or URL with the adapters and the keys."""
    base: str = "embedded"
    """The base model, in any form that ``farm.base.loading.load_base`` accepts."""
    base_id: str = ""
    """The base's public name; empty derives one from ``base`` without its path."""
    revision: str | None = None
    device: str = "auto"
    """``auto`` uses a GPU if there is one."""
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    quantization: Quantization | None = None
    """Keeps the base's denoiser in few bits; needs the extra `quantize`."""
    engine: EngineConfig = Field(default_factory=EngineConfig)
    limits: Limits = Field(default_factory=Limits)
    """Limits per request; the engine applies the same values."""
    connections: ConnectionLimits = Field(default_factory=ConnectionLimits)
    """Limits of ``farm serve``; Ray Serve's proxies read ``FARM_CONNECTION_LIMITS`` instead."""
    replicas: ReplicaConfig = Field(default_factory=ReplicaConfig)
    cache_folder: str = ""
    """Folder of the disk tier, private to this user; empty is a folder in the user's cache."""
    anonymous_namespace: str | None = None
    """Namespace whose adapters callers without a key see while no key exists. Set by ``farm serve``
    for an endpoint bound to loopback; None always requires a key."""
    public_url: str = ""
    """Public address of the endpoint, for links; empty uses each request's host."""
    pictures_store: str = ""
    """Store for linked images; empty is ``store``."""
    link_lifetime_s: float = Field(600.0, gt=0)

    @model_validator(mode="after")
    def _has_one_set_of_limits(self) -> Self:
        if "limits" in self.engine.model_fields_set:
            raise ValueError("engine.limits: write them under `limits`; the engine takes those")
        return self

    @property
    def engine_config(self) -> EngineConfig:
        """The engine's settings with this endpoint's limits."""
        return self.engine.model_copy(update={"limits": self.limits})

    @property
    def public_base(self) -> str:
        """The base's public name."""
        return self.base_id or public_base_id(self.base)

    @property
    def disk_folder(self) -> Path:
        """The disk tier's folder."""
        if self.cache_folder:
            return Path(self.cache_folder).expanduser()
        return cache_folder() / f"adapters-{os.geteuid()}"
