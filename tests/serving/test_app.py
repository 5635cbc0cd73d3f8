"""The endpoint on a real Ray Serve: two engines, one ingress, and killed replicas."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx2
import numpy as np
import openai
import pytest
from support.endpoint import are_same, eventually, pixels_of, publish

from farm.adapters.registry import Registry
from farm.base.interface import Base
from farm.base.loading import load_base
from farm.errors import FarmError
from farm.storage import Store

ADAPTERS = ("rex", "tom", "ada", "bob", "cat", "dot")
NICENESS = "RAY_worker_niceness"
FEW = {"num_inference_steps": 3, "seed": 5}


@dataclass(frozen=True)
class Cluster:
    """What the tests ask of the cluster."""

    url: str
    store: Store
    base: Base

    @property
    def client(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0)

    def generate(self, model: str, **extra: Any) -> Any:
        body = {**FEW, **extra}
        return self.client.images.generate(model=model, prompt="a photo", extra_body=body).data[0]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    import ray
    from ray import serve

    from farm.serving.app import build_app

    root = tmp_path_factory.mktemp("serve")
    store, base = Store(root / "store"), load_base("tiny")
    for seed, name in enumerate(ADAPTERS):
        publish(store, base, name, seed=seed)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # replicas are niced to 15 by default, which on a busy machine is never
    os.environ[NICENESS] = "0"
    ray_folder = tempfile.mkdtemp(prefix="ray-")  # short: sockets have short names
    ray.init(
        address="local",
        num_cpus=4,
        include_dashboard=False,
        log_to_driver=False,
        configure_logging=False,
        _temp_dir=ray_folder,
    )
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        config = {
            "store": store.url,
            "base": "tiny",
            "anonymous_namespace": "default",
            "cache_folder": str(root / "disk"),
            "engine": {"num_slots": 8, "max_rank": 8, "batch_rows": 8},
            "replicas": {
                "min_engines": 2,
                "max_engines": 2,
                "cpus_per_engine": 0.5,
                "cpus_per_ingress": 0.2,
                "stats_every_s": 0.5,
            },
        }
        serve.run(build_app(config), name="farm", route_prefix="/")
        live = Cluster(f"http://127.0.0.1:{port}", store, base)
        eventually(lambda: httpx2.get(f"{live.url}/ready").status_code == 200, within_s=60)
        yield live
    finally:
        serve.shutdown()
        ray.shutdown()
        shutil.rmtree(ray_folder, ignore_errors=True)
        del os.environ[NICENESS]


@pytest.mark.slow
def test_openais_client_generates_through_ray_serve(cluster: Cluster) -> None:
    models = {model.id for model in cluster.client.models.list()}
    assert {"tiny", *ADAPTERS} <= models
    base, rex = (pixels_of(cluster.generate(model).b64_json) for model in ("tiny", "rex"))
    assert np.abs(base - rex).mean() > 1
    with pytest.raises(openai.NotFoundError) as caught:
        cluster.generate("nobody")
    assert caught.value.body["code"] == "model_not_found"
    assert "," not in (caught.value.request_id or ",")


@pytest.mark.slow
def test_an_adapter_has_its_home_and_homes_are_spread(cluster: Cluster) -> None:
    homes: dict[str, set[str]] = {name: set() for name in ADAPTERS}
    for _ in range(3):
        for name in ADAPTERS:
            receipt = cluster.generate(name).receipt
            homes[name].add(receipt["engine"])
    assert all(len(engines) == 1 for engines in homes.values()), homes
    assert receipt["adapters"][0]["found_in"] == "model"


@pytest.mark.slow
def test_partial_pictures_stream_through_ray_serve(cluster: Cluster) -> None:
    stream = cluster.client.images.generate(
        model="rex",
        prompt="a photo",
        stream=True,
        partial_images=2,
        extra_body={"num_inference_steps": 6, "seed": 5},
    )
    kinds = [event.type.rsplit(".", 1)[-1] for event in stream]
    assert kinds == ["partial_image", "partial_image", "completed"]


@pytest.mark.slow
def test_an_adapter_committed_while_the_endpoint_is_up_is_generated_with(cluster: Cluster) -> None:
    with pytest.raises(openai.NotFoundError):
        cluster.generate("newcomer")
    publish(cluster.store, cluster.base, "newcomer", seed=77)
    assert cluster.generate("newcomer").receipt["adapters"][0]["name"] == "newcomer"
    Registry(cluster.store).revoke("default", "newcomer")

    def is_refused() -> bool:
        try:
            cluster.generate("newcomer")
        except openai.NotFoundError:
            return True
        return False

    eventually(is_refused)


ENGINE_ACTORS = "SERVE_REPLICA::farm#engine#"


def busy_engine() -> str | None:
    """The engine that generates at this moment; one that restarts is none."""
    import ray

    for entry in ray.util.list_named_actors(all_namespaces=True):
        if entry["name"].startswith(ENGINE_ACTORS):
            with contextlib.suppress(ray.exceptions.RayError, ValueError):
                actor = ray.get_actor(entry["name"], namespace=entry["namespace"])
                if ray.get(actor.get_num_ongoing_requests.remote(), timeout=5) > 0:
                    return str(entry["name"]).removeprefix(ENGINE_ACTORS)
    return None


@pytest.mark.slow
@pytest.mark.parametrize("stream", [False, True])
def test_a_picture_whose_engine_is_killed_is_generated_by_another(
    cluster: Cluster, stream: bool
) -> None:
    import ray

    long = {"num_inference_steps": 120, "size": "256x256", "seed": 9}
    alone = cluster.generate("ada", **long)
    results: list[Any] = []

    def ask() -> None:
        answer = cluster.client.images.generate(
            model="ada", prompt="a photo", stream=stream, extra_body=long
        )
        results.extend(answer if stream else answer.data)

    asking = threading.Thread(target=ask)
    asking.start()
    eventually(lambda: busy_engine() is not None, within_s=60)
    home = busy_engine()
    assert home is not None
    ray.kill(ray.get_actor(f"{ENGINE_ACTORS}{home}", namespace="serve"))
    asking.join(180)
    assert len(results) == 1
    assert results[0].receipt["engine"] != home
    assert are_same(pixels_of(results[0].b64_json), pixels_of(alone.b64_json))


def ingresses() -> set[str]:
    """The names of the ingress processes that are there."""
    import ray

    prefix = "SERVE_REPLICA::farm#ingress#"
    named = ray.util.list_named_actors(all_namespaces=True)
    return {entry["name"] for entry in named if entry["name"].startswith(prefix)}


@pytest.mark.slow
def test_an_ingress_that_is_killed_is_replaced_and_generates_the_same(cluster: Cluster) -> None:
    import ray

    before = pixels_of(cluster.generate("bob").b64_json)
    (killed,) = ingresses()
    ray.kill(ray.get_actor(killed, namespace="serve"))
    statuses: set[int] = set()

    def is_back() -> bool:
        try:
            statuses.add(httpx2.get(f"{cluster.url}/ready", timeout=30).status_code)
        except httpx2.TransportError:
            statuses.add(0)
        return 200 in statuses and killed not in ingresses()

    eventually(is_back, within_s=90)
    assert statuses <= {0, 200, 500, 503}  # the proxy's own status while no replica is behind it
    assert are_same(pixels_of(cluster.generate("bob").b64_json), before)
    assert len(ingresses()) == 1
    assert httpx2.get(f"{cluster.url}/ready").status_code == 200


# -- without a cluster -------------------------------------------------------------------------


def test_engines_follow_their_backlog_in_seconds() -> None:
    from farm.serving.app import scale_on_backlog

    def wanted(backlogs: dict[str, float], requests: float = 0, queued: float = 0) -> float:
        context = SimpleNamespace(
            config=SimpleNamespace(target_ongoing_requests=10.0),
            aggregated_metrics={"backlog_s": backlogs},
            current_num_replicas=len(backlogs),
            total_num_requests=requests,
            total_queued_requests=queued,
            policy_state={},
        )
        return scale_on_backlog(context)[0]  # type: ignore[arg-type]

    assert wanted({"a": 0.0, "b": 0.0}) == 0.0
    assert wanted({"a": 0.0}, requests=1) == 1.0
    assert wanted({"a": 30.0, "b": 15.0}, requests=40) == 4.5
    assert wanted({}, requests=3, queued=3) == 1.0


def test_a_wrong_field_of_the_config_is_named() -> None:
    from farm.serving.app import build_app

    with pytest.raises(FarmError, match=r"replicas\.max_engine: Extra"):
        build_app({"store": "/tmp/x", "replicas": {"max_engine": 3}})


def test_the_shipped_serve_config_is_whole() -> None:
    import yaml
    from ray.serve.schema import ServeDeploySchema

    from farm.serving.settings import EndpointConfig

    file = Path(__file__).parents[2] / "jobs" / "serve.yaml"
    values = yaml.safe_load(file.read_text())
    application = ServeDeploySchema.model_validate(values).applications[0]
    config = EndpointConfig.model_validate(application.args)
    assert application.import_path == "farm.serving.app:build_app"
    assert values["http_options"]["request_timeout_s"] > config.limits.deadline_s
    assert config.replicas.drain_s <= config.limits.deadline_s
