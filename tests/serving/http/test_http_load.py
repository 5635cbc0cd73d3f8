"""The HTTP interface under load: streams, limits, keys, health and draining."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
from support.endpoint import LiveEndpoint, are_same, eventually, live_endpoint, pixels_of
from support.serving.openai_client import FEW, generate

from farm.serving.access.limits import Limits

# -- streaming ---------------------------------------------------------------------------------


def test_partial_pictures_come_in_openais_events_and_end_in_the_picture(
    client: openai.OpenAI,
) -> None:
    extra = {"num_inference_steps": 8, "seed": 5}
    plain = client.images.generate(model="rex", prompt="a photo", extra_body=extra)
    stream = client.images.generate(
        model="rex", prompt="a photo", stream=True, partial_images=3, extra_body=extra
    )
    stream_events = list(stream)
    kinds = [event.type for event in stream_events]
    assert kinds == ["image_generation.partial_image"] * 3 + ["image_generation.completed"]
    assert [event.partial_image_index for event in stream_events[:3]] == [0, 1, 2]
    for event in stream_events:
        assert pixels_of(event.b64_json).shape == (64, 64, 3)
        assert (event.size, event.output_format) == ("64x64", "png")
    final = stream_events[-1]
    assert final.usage.total_tokens == 64
    assert final.receipt["seed"] == 5
    assert are_same(pixels_of(final.b64_json), pixels_of(plain.data[0].b64_json))


def test_progress_is_told_step_by_step_to_those_who_ask(endpoint: LiveEndpoint) -> None:
    body = {"prompt": "a photo", "model": "rex", "stream": True, "stream_progress": True, **FEW}
    body |= {"partial_images": 2}  # a preview comes after its step, and must not repeat it
    told = list(read_events(endpoint, body))
    progress = [event for event in told if event["type"] == "image_generation.progress"]
    steps = [event["step"] for event in progress]
    assert sorted(set(steps)) == [0, 1, 2, 3]
    places = [(event["stage"], event["step"]) for event in progress]
    assert len(places) == len(set(places))
    assert steps == sorted(steps)
    assert told[-1]["type"] == "image_generation.completed"


def test_several_pictures_share_one_stream(endpoint: LiveEndpoint) -> None:
    body = {"prompt": "a photo", "model": "rex", "stream": True, "n": 3, **FEW}
    told = list(read_events(endpoint, body))
    done = {event["picture_index"]: event["seed"] for event in told}
    assert done == {0: 5, 1: 6, 2: 7}


def test_what_is_refused_is_refused_before_a_stream_begins(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError):
        client.images.generate(model="nobody", prompt="a photo", stream=True)


def read_events(endpoint: LiveEndpoint, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The events of a stream, by the letter of the standard."""
    url = f"{endpoint.url}/v1/images/generations"
    with httpx2.stream("POST", url, json=body, timeout=60) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        name = ""
        for line in answer.iter_lines():
            if line.startswith("event: "):
                name = line.removeprefix("event: ")
            elif line.startswith("data: {"):
                event = json.loads(line.removeprefix("data: "))
                assert event["type"] == name
                yield event
        assert line == "" or line == "data: [DONE]"


# -- load --------------------------------------------------------------------------------------


def test_a_caller_who_leaves_stops_the_generation(endpoint: LiveEndpoint) -> None:
    for extra in ({}, {"stream": True}):
        cancelled = endpoint.engine.stats().cancelled
        body = json.dumps(
            {"prompt": "a photo", "num_inference_steps": 150, "size": "256x256", **extra}
        ).encode()
        head = (
            f"POST /v1/images/generations HTTP/1.1\r\nhost: 127.0.0.1:{endpoint.port}\r\n"
            f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        )
        running = endpoint.engine.stats().submitted
        with socket.create_connection(("127.0.0.1", endpoint.port)) as connection:
            connection.sendall(head.encode() + body)
            eventually(lambda before=running: endpoint.engine.stats().submitted > before)
        eventually(lambda before=cancelled: endpoint.engine.stats().cancelled > before)


def test_too_much_at_once_is_429_with_the_time_to_come_again(tmp_path: Path) -> None:
    limits = Limits(pictures_per_minute=6)
    with live_endpoint(tmp_path, limits=limits) as live:
        impatient = live.openai()
        for _ in range(2):
            impatient.images.generate(prompt="a photo", n=3, extra_body=FEW)
        with pytest.raises(openai.RateLimitError) as caught:
            generate(impatient, "tiny", "a photo")
        assert 0 < float(caught.value.response.headers["retry-after"]) <= 11
        assert caught.value.response.headers["x-should-retry"] == "true"
        generated = live.engine.stats().submitted
        with pytest.raises(openai.RateLimitError):
            generate(impatient, "nobody", "a photo")  # guessing names costs the guesser
        assert live.engine.stats().submitted == generated


def test_a_request_that_can_never_meet_the_deadline_is_400_before_anything_is_generated(
    tmp_path: Path,
) -> None:
    with live_endpoint(tmp_path, limits=Limits(deadline_s=4.0)) as live:
        client = live.openai()
        generate(client, "tiny", "a photo")  # now the engine knows its own speed
        with pytest.raises(openai.BadRequestError, match="fewer steps or a smaller size") as caught:
            client.images.generate(
                prompt="a photo", size="2048x2048", extra_body={"num_inference_steps": 100}
            )
        assert "retry-after" not in caught.value.response.headers
        assert live.engine.stats().refused == 1
        assert live.engine.stats().submitted == 1


# -- keys --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveEndpoint]:
    with live_endpoint(tmp_path_factory.mktemp("locked"), anonymous_namespace=None) as live:
        live.publish("secret-pet", namespace="acme", seed=1)
        live.publish("other-pet", namespace="globex", seed=2)
        yield live


def test_without_a_key_nothing_is_told(locked: LiveEndpoint) -> None:
    for path in ("/v1/models", "/v1/models/secret-pet", "/v1/nothing", "/metrics"):
        answer = httpx2.get(locked.url + path)
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"] == "Bearer"
        assert answer.json()["error"]["code"] == "invalid_api_key"
    with pytest.raises(openai.AuthenticationError):
        locked.openai("farm_0000000000000000_x").models.list()


def test_another_tenants_adapter_is_told_as_one_that_does_not_exist(locked: LiveEndpoint) -> None:
    acme = locked.openai(locked.key("acme"))
    generate(acme, "secret-pet", "a photo")
    assert "other-pet" not in {model.id for model in acme.models.list()}
    other = locked.registry.resolve("globex", "other-pet").job_key
    messages = set()
    for model in ("other-pet", "never-was", f"other-pet@{other}", f"secret-pet@{other}"):
        with pytest.raises(openai.NotFoundError) as caught:
            generate(acme, model, "a photo")
        messages.add(caught.value.body["message"].replace(model, "…"))
        with pytest.raises(openai.NotFoundError):
            acme.models.retrieve(model)
    assert len(messages) == 1


def test_a_links_signature_is_enough_where_keys_are_asked_for(locked: LiveEndpoint) -> None:
    acme = locked.openai(locked.key("acme"))
    answer = acme.images.generate(prompt="a photo", response_format="url", extra_body=FEW)
    assert httpx2.get(answer.data[0].url).status_code == 200


def test_a_key_has_its_own_rate(locked: LiveEndpoint) -> None:
    slow = locked.openai(locked.key("acme", pictures_per_minute=1))
    generate(slow, "tiny", "a photo")
    with pytest.raises(openai.RateLimitError):
        generate(slow, "tiny", "a photo")
    generate(locked.openai(locked.key("acme")), "tiny", "a photo")


# -- health ------------------------------------------------------------------------------------


def test_health_and_readiness_need_no_key(locked: LiveEndpoint) -> None:
    assert httpx2.get(f"{locked.url}/health").json() == {"status": "ok"}
    assert httpx2.get(f"{locked.url}/ready").json()["status"] == "ready"


def test_metrics_tell_of_requests_pictures_and_the_engine(endpoint: LiveEndpoint) -> None:
    eventually(lambda: "farm_engine" in httpx2.get(f"{endpoint.url}/metrics").text)
    text = httpx2.get(f"{endpoint.url}/metrics").text
    for name in (
        'farm_http_requests_total{route="/v1/images/generations",status="200"}',
        'farm_pictures_total{outcome="generated"}',
        'farm_engine{fact="waiting"}',
        'farm_engine{fact="batch_fill"}',
        'farm_engine{fact="step_s"}',
        'farm_engine{fact="cache.host_hits"}',
        'farm_engine{fact="cache.load_s"}',
    ):
        assert name in text


def test_an_endpoint_that_drains_finishes_what_it_has_and_takes_no_more(tmp_path: Path) -> None:
    with live_endpoint(tmp_path) as live:
        client, results = live.openai(), []
        body = {"num_inference_steps": 100, "size": "256x256"}

        def ask() -> None:
            results.append(client.images.generate(prompt="a photo", extra_body=body))

        asking = threading.Thread(target=ask)
        asking.start()
        eventually(lambda: live.engine.stats().submitted == 1)
        live.client.drain()
        assert httpx2.get(f"{live.url}/ready").status_code == 503
        with pytest.raises(openai.InternalServerError) as caught:
            generate(client, "tiny", "a photo")
        assert caught.value.status_code == 503
        assert caught.value.response.headers["x-should-retry"] == "true"
        asking.join(60)
        assert len(results) == 1
