"""The endpoint on a real Ray Serve: two engines, two ingresses, killed processes and a drain."""

from __future__ import annotations

import contextlib
import shutil
import socket
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import openai
import pytest
from support.endpoint import are_same, eventually, pixels_of, publish
from support.ray_head import FEW_STATISTICS

from farm.adapters.registry import Registry
from farm.base.interface import Base
from farm.base.loading import load_base
from farm.errors import FarmError
from farm.storage import Store

ADAPTERS = ("rex", "tom", "ada", "bob", "cat", "dot")
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
    from farm.serving.cluster import deploy
    from farm.serving.settings import EndpointConfig
    from farm.training.cluster.start import start_ray

    root = tmp_path_factory.mktemp("serve")
    store, base = Store(root / "store"), load_base("tiny")
    for seed, name in enumerate(ADAPTERS):
        publish(store, base, name, seed=seed)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    variables = pytest.MonkeyPatch()
    # replicas are niced by default, which on a busy machine is never
    for variable, value in {**FEW_STATISTICS, "RAY_worker_niceness": "0"}.items():
        variables.setenv(variable, value)
    ray_folder = tempfile.mkdtemp(prefix="ray-")  # short: sockets have short names
    start_ray(num_cpus=4, include_dashboard=False, log_to_driver=False, _temp_dir=ray_folder)
    try:
        args = {
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
        config = deploy.place_ingresses(EndpointConfig.model_validate(args))
        deploy.deploy(build_app(config), config, "127.0.0.1", port)
        assert deploy.wait_ready(
            config.replicas, 240, print, cluster_words=str, stop=threading.Event()
        )
        live = Cluster(f"http://127.0.0.1:{port}", store, base)
        eventually(lambda: httpx2.get(f"{live.url}/ready").status_code == 200, within_s=60)
        yield live
    finally:
        serve.shutdown()
        ray.shutdown()
        shutil.rmtree(ray_folder, ignore_errors=True)
        variables.undo()


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


def ongoing() -> dict[str, int]:
    """The requests of each engine that generates at this moment; one that restarts has none."""
    import ray

    found: dict[str, int] = {}
    for entry in ray.util.list_named_actors(all_namespaces=True):
        if entry["name"].startswith(ENGINE_ACTORS):
            with contextlib.suppress(ray.exceptions.RayError, ValueError):
                actor = ray.get_actor(entry["name"], namespace=entry["namespace"])
                if count := ray.get(actor.get_num_ongoing_requests.remote(), timeout=5):
                    found[str(entry["name"]).removeprefix(ENGINE_ACTORS)] = count
    return found


LONG = {"num_inference_steps": 120, "size": "128x128", "seed": 9}


@pytest.mark.slow
def test_pictures_whose_engine_is_killed_are_generated_by_another(cluster: Cluster) -> None:
    import ray

    undisturbed = pixels_of(cluster.generate("ada", **LONG).b64_json)
    results: dict[bool, list[Any]] = {False: [], True: []}

    def ask(stream: bool) -> None:
        answer = cluster.client.images.generate(
            model="ada", prompt="a photo", stream=stream, extra_body=LONG
        )
        results[stream].extend(answer if stream else answer.data)

    asking = [threading.Thread(target=ask, args=(stream,)) for stream in results]
    for thread in asking:
        thread.start()
    seen: dict[str, int] = {}

    def have_both_come() -> bool:
        seen.clear()
        seen.update(ongoing())
        return sum(seen.values()) == 2

    # mostly both in the adapter's home; a late one may go elsewhere, and is not disturbed
    eventually(have_both_come, within_s=60)
    home = max(seen, key=seen.__getitem__)
    ray.kill(ray.get_actor(f"{ENGINE_ACTORS}{home}", namespace="serve"))
    for thread in asking:
        thread.join(180)
    for answers in results.values():
        assert len(answers) == 1
        assert answers[0].receipt["engine"] != home
        assert are_same(pixels_of(answers[0].b64_json), undisturbed)


def actors(prefix: str) -> set[str]:
    """The names of living actors."""
    import ray

    named = ray.util.list_named_actors(all_namespaces=True)
    return {entry["name"] for entry in named if entry["name"].startswith(prefix)}


def kill(name: str) -> None:
    import ray

    ray.kill(ray.get_actor(name, namespace="serve"))


PAUSE_S = 0.2


@contextlib.contextmanager
def callers(cluster: Cluster, count: int = 4) -> Iterator[list[httpx2.Response]]:
    """Requests from several threads while the block runs; the responses, once it has ended."""
    answers: list[httpx2.Response] = []
    stop = threading.Event()
    body = {"model": "bob", "prompt": "a photo", **FEW}

    def ask() -> None:
        while not stop.is_set():
            with contextlib.suppress(httpx2.TransportError):
                answers.append(
                    httpx2.post(f"{cluster.url}/v1/images/generations", json=body, timeout=60)
                )
            stop.wait(PAUSE_S)  # so that what restarts meanwhile finds a core

    threads = [threading.Thread(target=ask) for _ in range(count)]
    for thread in threads:
        thread.start()
    try:
        yield answers
    finally:
        stop.set()
        for thread in threads:
            thread.join(90)


def assert_honest(answers: list[httpx2.Response], picture: np.ndarray[Any, Any]) -> None:
    """Every response is the picture, or the endpoint's own 503."""
    assert answers
    for answer in answers:
        if answer.status_code == 200:
            assert are_same(pixels_of(answer.json()["data"][0]["b64_json"]), picture)
        else:
            assert answer.status_code == 503
            assert answer.json()["error"]["code"] == "service_unavailable"
            assert int(answer.headers["retry-after"]) >= 1


INGRESSES = "SERVE_REPLICA::farm#ingress#"


@pytest.mark.slow
def test_a_killed_ingress_costs_no_caller_more_than_a_503(cluster: Cluster) -> None:
    picture = pixels_of(cluster.generate("bob").b64_json)
    before = actors(INGRESSES)
    assert len(before) == 2
    with callers(cluster) as answers:
        eventually(lambda: len(answers) > 4)
        kill(min(before))
        eventually(lambda: len(actors(INGRESSES) - {min(before)}) == 2, within_s=90)
    assert_honest(answers, picture)


@pytest.mark.slow
def test_a_killed_proxy_is_back_within_seconds(cluster: Cluster) -> None:
    from farm.serving.cluster.deploy import PROXIES

    (proxy,) = actors(PROXIES)
    kill(proxy)

    def is_back() -> bool:
        with contextlib.suppress(httpx2.TransportError):
            return httpx2.get(f"{cluster.url}/ready", timeout=10).status_code == 200
        return False

    eventually(lambda: not is_back())
    eventually(is_back, within_s=120)
    assert cluster.generate("bob").receipt["engine"]


@pytest.mark.slow
def test_a_drain_finishes_requests_and_answers_new_ones_with_503(cluster: Cluster) -> None:
    from farm.serving.cluster import deploy
    from farm.serving.settings import ReplicaConfig

    picture = pixels_of(cluster.generate("bob").b64_json)
    finished: list[Any] = []
    asking = threading.Thread(target=lambda: finished.append(cluster.generate("ada", **LONG)))
    asking.start()
    eventually(ongoing, within_s=60)
    ready: list[int] = []
    try:
        with callers(cluster) as answers:

            def look(line: str) -> None:  # called once requests are refused
                ready.append(httpx2.get(f"{cluster.url}/ready").status_code)

            left = deploy.drain(ReplicaConfig(unready_s=0.5), 60, look, threading.Event())
            eventually(lambda: answers[-1].status_code == 503)
        asking.join(60)
        assert (left, len(finished)) == (0, 1)
        assert ready in ([503], [])
        assert {answer.status_code for answer in answers} == {200, 503}
        assert_honest(answers, picture)
        assert httpx2.get(f"{cluster.url}/-/healthz").status_code == 503
    finally:
        deploy.set_proxies("serving", is_alone=False)
    assert httpx2.get(f"{cluster.url}/-/healthz").status_code == 200


@pytest.mark.slow
def test_a_start_has_a_deadline_and_says_what_is_pending(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ray import serve

    from farm.serving.app import build_app
    from farm.serving.cluster import deploy
    from farm.serving.settings import EndpointConfig

    monkeypatch.setattr(deploy, "APPLICATION", "late")
    replicas = {"cpus_per_engine": 64, "num_ingresses": 1, "drain_s": 1}
    args = {"store": cluster.store.url, "base": "tiny", "replicas": replicas}
    config = EndpointConfig.model_validate(args)
    with pytest.raises(FarmError, match=r"1 engine of 64 CPU.*together 64.5 CPU"):
        deploy.place_ingresses(config)
    target = serve.RunTarget(build_app(config), name="late", route_prefix="/late")
    serve.run_many([target], wait_for_applications_running=False)
    try:
        with pytest.raises(FarmError) as caught:
            deploy.wait_ready(
                config.replicas,
                1,
                print,
                cluster_words=lambda: "the cluster has 4 CPU",
                stop=threading.Event(),
            )
        assert "engine: 0 of 1 running, 1 waiting" in caught.value.message
        assert "the cluster has 4 CPU" in caught.value.message
        assert "--start-timeout" in caught.value.remedy
    finally:
        serve.delete("late", _blocking=False)  # Ray Serve waits for engines without resources


# -- without a cluster -------------------------------------------------------------------------


def test_a_wrong_field_of_the_config_is_named() -> None:
    from farm.serving.app import build_app

    with pytest.raises(FarmError, match=r"replicas\.max_engine: Extra"):
        build_app({"store": "/tmp/x", "replicas": {"max_engine": 3}})


def test_the_shipped_serve_config_is_whole() -> None:
    import yaml
    from ray.serve.schema import ServeDeploySchema

    from farm.serving.cluster.environment import proxy_environment
    from farm.serving.http.connections import ConnectionLimits
    from farm.serving.settings import EndpointConfig

    file = Path(__file__).parents[2] / "jobs" / "serve.yaml"
    values = yaml.safe_load(file.read_text())
    application = ServeDeploySchema.model_validate(values).applications[0]
    config = EndpointConfig.model_validate(application.args)
    assert application.import_path == "farm.serving.app:build_app"
    assert values["http_options"]["request_timeout_s"] > config.limits.deadline_s
    assert config.replicas.drain_s <= config.limits.deadline_s
    assert values["proxy_location"] == "EveryNode"
    variables = values["controller_options"]["runtime_env"]["env_vars"]
    assert variables.items() <= proxy_environment(ConnectionLimits()).items()
