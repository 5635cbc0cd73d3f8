"""Requests as OpenAI's clients and other tools send them: each field is taken, or refused with
words that say what to write."""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Iterator
from typing import Any

import httpx2
import openai
import pytest
from PIL import Image
from support.endpoint import LiveEndpoint, live_endpoint
from support.serving.openai_client import generate

from farm.intake.prompts.tags import near_miss
from farm.serving.config import EngineConfig

PLAIN = {"prompt": "a photo of [V] dog", "size": "64x64", "num_inference_steps": 2, "seed": 7}


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveEndpoint]:
    # one picture a pass: equal to the byte, whatever runs beside
    exact = EngineConfig(num_slots=6, max_rank=8, batch_rows=2, decode_batch=1)
    with live_endpoint(tmp_path_factory.mktemp("fields"), engine=exact) as endpoint:
        endpoint.publish("rex")
        yield endpoint


def ask(endpoint: LiveEndpoint, **fields: Any) -> httpx2.Response:
    body = {"model": "rex", **PLAIN, **fields}
    return httpx2.post(f"{endpoint.url}/v1/images/generations", json=body, timeout=60)


def pictures(endpoint: LiveEndpoint, **fields: Any) -> list[str]:
    answer = ask(endpoint, **fields)
    assert answer.status_code == 200, answer.text
    found = []
    for item in answer.json()["data"]:
        with Image.open(io.BytesIO(base64.b64decode(item["b64_json"]))) as image:
            found.append(hashlib.sha256(image.convert("RGB").tobytes()).hexdigest())
    return found


@pytest.mark.parametrize(
    "fields",
    [
        {"quality": "standard"},
        {"quality": "hd"},
        {"quality": "auto"},
        {"style": "vivid"},
        {"user": "abc"},
        {"background": "auto", "moderation": "low"},
        {"output_compression": 80, "output_format": "webp"},
        {"response_format": "b64_json"},
        {"size": "auto"},
        {"n": None, "negative_prompt": None, "response_format": None, "seed": None},
        {"seed": -1},
    ],
)
def test_what_clients_send_as_a_matter_of_course_is_taken(
    endpoint: LiveEndpoint, fields: dict[str, Any]
) -> None:
    assert len(pictures(endpoint, **fields)) == 1


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"size": "large"}, "write WIDTHxHEIGHT"),
        ({"size": "100x99"}, "write 96x96"),
        ({"size": "99999x65"}, "write 2048x64"),
        ({"model": "my cat"}, "write an adapter's name"),
        ({"model": "dall-e-3"}, "GET /v1/models"),
        ({"background": "transparent"}, "'auto' or 'opaque'"),
        ({"seed": -2}, "-1"),
        ({"seed": "7"}, "integer"),
        ({"seed": 2**63 - 1, "n": 2}, f"write {2**63 - 3} or less"),
        ({"colour": "red"}, "colour: unknown field"),
        ({"steps": 3}, "did you mean `num_inference_steps`?"),
        ({"width": 64}, "did you mean `size`?"),
        ({"scale": 0.5}, "did you mean `adapter_weight`?"),
        ({"adapters": [{"model": "tom", "scale": 0.5}]}, "did you mean `weight`?"),
    ],
)
def test_what_is_refused_is_refused_with_what_to_write(
    endpoint: LiveEndpoint, fields: dict[str, Any], words: str
) -> None:
    answer = ask(endpoint, **fields)
    assert 400 <= answer.status_code < 500
    assert words in answer.json()["error"]["message"]


def test_a_slash_at_the_end_of_a_path_changes_nothing(endpoint: LiveEndpoint) -> None:
    url = f"{endpoint.url}/v1/images/generations/"
    assert httpx2.post(url, json={"model": "rex", **PLAIN}, timeout=60).status_code == 200
    form = {"content-type": "text/plain"}  # as any web page could send
    assert httpx2.post(url, content=b"{}", headers=form).status_code == 415
    assert httpx2.get(f"{endpoint.url}/v1/models/rex/").json()["id"] == "rex"
    assert httpx2.get(f"{endpoint.url}/v1/models//").status_code == 404


@pytest.mark.parametrize("path", ["/", "/health", "/ready/", "/v1/models", "/v1/models/rex"])
def test_head_is_answered_as_get_without_the_body(endpoint: LiveEndpoint, path: str) -> None:
    got, head = (
        httpx2.request(method, endpoint.url + path, headers={"x-request-id": "a"})
        for method in ("GET", "HEAD")
    )
    assert (got.status_code, head.status_code, head.content) == (200, 200, b"")
    varying = ("date", "server")
    assert {name: text for name, text in head.headers.items() if name not in varying} == {
        name: text for name, text in got.headers.items() if name not in varying
    }


def test_a_wrong_path_or_method_says_what_to_use(endpoint: LiveEndpoint) -> None:
    wrong = httpx2.post(f"{endpoint.url}/v1/images/edits", json=PLAIN)
    assert "POST /v1/images/generations" in wrong.json()["error"]["message"]
    method = httpx2.put(f"{endpoint.url}/v1/images/generations", json=PLAIN)
    assert method.json()["error"]["message"] == "PUT is not allowed here: use POST"
    assert httpx2.head(f"{endpoint.url}/v1/images/generations").status_code == 405


def test_seeds_count_up_and_no_two_are_one(endpoint: LiveEndpoint) -> None:
    three = pictures(endpoint, n=3, seed=7)
    assert len(set(three)) == 3
    alone = [pictures(endpoint, seed=seed)[0] for seed in (7, 8, 9)]
    assert alone == three
    assert pictures(endpoint, seed=2**32 + 5) != pictures(endpoint, seed=5)
    assert pictures(endpoint, seed=2**32 + 5) == pictures(endpoint, seed=2**32 + 5)


def test_any_seed_is_another_one_each_time_and_is_told(endpoint: LiveEndpoint) -> None:
    told = [ask(endpoint, seed=-1).json()["data"][0]["seed"] for _ in range(2)]
    assert told[0] != told[1]
    assert all(seed >= 0 for seed in told)


def test_a_weight_of_zero_is_the_base_itself(endpoint: LiveEndpoint) -> None:
    bare = pictures(endpoint, model="tiny", prompt="a photo of sks dog")
    assert pictures(endpoint, adapter_weight=0) == bare
    assert pictures(endpoint) != bare


@pytest.mark.parametrize(
    ("token", "right"),
    [
        ("[V:rex:0.5]", "[V:rex]"),
        ("[V: rex]", "[V:rex]"),
        ("[V:rex@0123abcd]", "[V:rex]"),
        ("[V rex]", "[V:rex]"),
        ("[v:rex]", "[V:rex]"),
        ("[rex:0.5]", "[V:rex]"),
        ("[rex]", "[V:rex]"),
        ("[v]", "[V]"),
        ("[ V ]", "[V]"),
        ("[V:]", "[V]"),
    ],
)
def test_a_mistyped_tag_is_refused_with_the_right_one(
    client: openai.OpenAI, token: str, right: str
) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        generate(client, "rex", f"a photo of {token} dog")
    assert f"prompt: {token} is not how a subject is named" in refused.value.message
    assert f"write {right};" in refused.value.message


def test_brackets_that_name_no_subject_are_plain_words() -> None:
    ordinary = "[sks] [red|blue] [cat:0.5] [cat:dog:10] [vase] [v-neck shirt] [a rex] [zwx] [V]"
    assert near_miss(ordinary, {"rex": "zwx", "sks": "sks"}) is None


@pytest.mark.parametrize("use", [{"model": "rex"}, {"model": "rex", "weight": 0.5}])
def test_an_adapter_that_is_named_twice_is_refused(
    client: openai.OpenAI, use: dict[str, object]
) -> None:
    with pytest.raises(openai.BadRequestError, match="adapters: rex is named twice"):
        generate(client, "rex", "a photo of [V] dog", adapters=[use])
