"""The ``Idempotency-Key`` header, over a real connection."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import httpx2
import openai
import pytest
from support.endpoint import LiveEndpoint, eventually, live_endpoint

BODY = {"model": "rex", "prompt": "a photo", "num_inference_steps": 3}
"""Without a seed: each generating of it would be another picture."""


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveEndpoint]:
    with live_endpoint(tmp_path_factory.mktemp("replays")) as live:
        live.publish("rex", seed=1)
        live.publish("gone", seed=2)
        live.publish("rex", seed=3, namespace="globex")
        yield live


@pytest.fixture(scope="module")
def keys(endpoint: LiveEndpoint) -> tuple[str, str]:
    return endpoint.key("default"), endpoint.key("globex")


def ask(endpoint: LiveEndpoint, token: str, key: str, **changed: Any) -> httpx2.Response:
    headers = {"authorization": f"Bearer {token}", "idempotency-key": key}
    url = f"{endpoint.url}/v1/images/generations"
    return httpx2.post(url, json={**BODY, **changed}, headers=headers, timeout=60)


def submitted(endpoint: LiveEndpoint) -> int:
    return endpoint.engine.stats().submitted


def test_a_repeated_request_gets_the_same_bytes_and_is_not_generated(
    endpoint: LiveEndpoint, keys: tuple[str, str]
) -> None:
    first = ask(endpoint, keys[0], "again", n=2)
    before = submitted(endpoint)
    second = ask(endpoint, keys[0], "again", n=2)
    assert (first.status_code, second.status_code) == (200, 200)
    assert second.content == first.content
    assert "idempotency-replayed" not in first.headers
    assert second.headers["idempotency-replayed"] == "true"
    assert submitted(endpoint) == before
    unnamed = httpx2.post(
        f"{endpoint.url}/v1/images/generations",
        json=BODY,
        headers={"authorization": f"Bearer {keys[0]}"},
        timeout=60,
    )
    assert unnamed.json()["data"][0]["b64_json"] != first.json()["data"][0]["b64_json"]


def test_openais_client_repeats_a_request_by_its_key(
    endpoint: LiveEndpoint, keys: tuple[str, str]
) -> None:
    client = endpoint.openai(keys[0])
    answers = [
        client.images.generate(
            model="rex",
            prompt="a photo",
            extra_body={"num_inference_steps": 3},
            extra_headers={"Idempotency-Key": "client"},
        )
        for _ in range(2)
    ]
    assert answers[0].data[0].b64_json == answers[1].data[0].b64_json


def test_another_request_under_the_same_key_is_a_conflict_that_no_client_retries(
    endpoint: LiveEndpoint, keys: tuple[str, str]
) -> None:
    assert ask(endpoint, keys[0], "taken").status_code == 200
    before = submitted(endpoint)
    with pytest.raises(openai.ConflictError) as caught:
        endpoint.openai(keys[0], max_retries=2).images.generate(
            model="rex", prompt="another", extra_headers={"Idempotency-Key": "taken"}
        )
    assert caught.value.body["code"] == "idempotency_key_reused"
    assert caught.value.body["param"] == "Idempotency-Key"
    assert caught.value.response.headers["x-should-retry"] == "false"
    assert caught.value.request_id
    assert submitted(endpoint) == before


def test_two_callers_may_use_the_same_key(endpoint: LiveEndpoint, keys: tuple[str, str]) -> None:
    mine, yours = (ask(endpoint, token, "common") for token in keys)
    assert (mine.status_code, yours.status_code) == (200, 200)
    assert "idempotency-replayed" not in yours.headers
    namespaces = [
        answer.json()["data"][0]["receipt"]["adapters"][0]["namespace"] for answer in (mine, yours)
    ]
    assert namespaces == ["default", "globex"]


def test_twice_at_once_is_generated_once(endpoint: LiveEndpoint, keys: tuple[str, str]) -> None:
    before = submitted(endpoint)
    answers: list[httpx2.Response] = []
    asking = [
        threading.Thread(
            target=lambda: answers.append(ask(endpoint, keys[0], "both", num_inference_steps=40))
        )
        for _ in range(2)
    ]
    for thread in asking:
        thread.start()
    for thread in asking:
        thread.join()
    assert answers[0].content == answers[1].content
    assert submitted(endpoint) == before + 1


def test_a_caller_whose_connection_broke_finds_his_picture(
    endpoint: LiveEndpoint, keys: tuple[str, str]
) -> None:
    long = {"num_inference_steps": 100, "size": "128x128"}
    before = endpoint.engine.stats()
    headers = {"authorization": f"Bearer {keys[0]}", "idempotency-key": "broken"}
    with pytest.raises(httpx2.TimeoutException):
        httpx2.post(
            f"{endpoint.url}/v1/images/generations",
            json={**BODY, **long},
            headers=headers,
            timeout=0.3,
        )
    eventually(lambda: endpoint.engine.stats().submitted == before.submitted + 1)
    answer = ask(endpoint, keys[0], "broken", **long)
    assert answer.status_code == 200
    after = endpoint.engine.stats()
    assert (after.submitted, after.cancelled) == (before.submitted + 1, before.cancelled)


def test_what_failed_may_be_tried_again_under_its_key(
    endpoint: LiveEndpoint, keys: tuple[str, str]
) -> None:
    assert ask(endpoint, keys[0], "early", model="later").status_code == 404
    endpoint.publish("later", seed=4)
    assert ask(endpoint, keys[0], "early", model="later").status_code == 200


def test_an_answer_with_a_withdrawn_adapter_is_not_given_again(
    endpoint: LiveEndpoint, keys: tuple[str, str]
) -> None:
    assert ask(endpoint, keys[0], "gone", model="gone").status_code == 200
    endpoint.registry.revoke("default", "gone")
    eventually(lambda: ask(endpoint, keys[0], "gone", model="gone").status_code == 404)


@pytest.mark.parametrize("key", ["", "two words", "x" * 256])
def test_a_key_of_a_wrong_form_is_named(
    endpoint: LiveEndpoint, keys: tuple[str, str], key: str
) -> None:
    refused = ask(endpoint, keys[0], key)
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == "idempotency-key"


def test_a_stream_takes_no_key(endpoint: LiveEndpoint, keys: tuple[str, str]) -> None:
    refused = ask(endpoint, keys[0], "stream", stream=True)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "Idempotency-Key")


def test_the_document_tells_of_the_header_and_the_conflict(endpoint: LiveEndpoint) -> None:
    document = httpx2.get(f"{endpoint.url}/openapi.json").json()
    operation = document["paths"]["/v1/images/generations"]["post"]
    (header,) = (each for each in operation["parameters"] if each["in"] == "header")
    assert header["name"] == "idempotency-key"
    assert not header["required"]
    assert "409" in operation["responses"]
