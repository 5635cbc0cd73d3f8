"""Errors on the wire keep their remedy, and reveal no location."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from pydantic import ValidationError

from farm.errors import AdapterFileError, FarmError, RequestRefused, StoreError, UserError
from farm.serving.http.errors import describe, error_answer, scrub
from farm.serving.http.schemas import GenerateRequest


@pytest.mark.parametrize("kind", [AdapterFileError, RequestRefused, UserError])
def test_a_failures_remedy_reaches_the_caller(kind: type[FarmError]) -> None:
    error = kind("the rank is 64", "raise max_rank in the config at /etc/farm.yaml")
    _, body, _ = error_answer(error)
    assert body["error"]["message"] == "the rank is 64: raise max_rank in the config at …"


def test_a_store_that_does_not_answer_tells_when_to_ask_again_and_nothing_else() -> None:
    status, body, headers = error_answer(StoreError("s3://secret/x timed out", "check s3://secret"))
    assert status == 503
    assert "secret" not in str(body)
    assert body["error"]["message"].endswith("ask again in a moment")
    assert headers["retry-after"]


def test_thousands_of_unknown_fields_cost_no_more_than_a_few() -> None:
    body = {"prompt": "x", "model": "rex", **{f"k{number}": 1 for number in range(20_000)}}
    extra = {"prompt": "x", "adapters": [{"model": "rex", **body}]}
    for content in (body, extra):
        with pytest.raises(ValidationError) as caught:
            GenerateRequest.model_validate(content)
        assert len(caught.value.errors()) <= 10
        assert (
            "k0: unknown field"
            in describe(
                [{**error, "loc": ("body", *error["loc"])} for error in caught.value.errors()]
            )[0]
        )


@pytest.mark.parametrize("piece", ["a", "a.", "/", "a:/", "\\"])
def test_a_long_message_is_scrubbed_in_linear_time(piece: str) -> None:
    started_s = time.process_time()
    assert len(scrub(piece * 50_000)) <= 600
    assert time.process_time() - started_s < 0.5


@pytest.mark.parametrize(
    ("body", "message", "param"),
    [
        ({"size": "64"}, "size: write WIDTHxHEIGHT in pixels, such as 512x512, or auto", "size"),
        ({"sed": 1}, "sed: unknown field; did you mean `seed`?", "sed"),
        ({"surprise": 1}, "surprise: unknown field", "surprise"),
        ({"n": "2"}, "n: must be an integer", "n"),
        ({"n": 0}, "n: must be at least 1", "n"),
        ({"guidance_scale": "5"}, "guidance_scale: must be a number", "guidance_scale"),
        ({"guidance_scale": 1e4}, "guidance_scale: must be at most 1000", "guidance_scale"),
        ({"stream": 1}, "stream: must be true or false", "stream"),
        ({"prompt": ""}, "prompt: must not be empty", "prompt"),
        ({"style": "x"}, "style: must be 'vivid' or 'natural'", "style"),
        ({"adapters": {}}, "adapters: must be a list", "adapters"),
        ({"adapters": ["a"]}, "adapters.0: must be an object", "adapters.0"),
        (
            {"adapters": [{"model": "a", "wieght": 1}]},
            "adapters.0.wieght: unknown field; did you mean `weight`?",
            "adapters.0.wieght",
        ),
    ],
)
def test_a_wrong_field_is_described_in_plain_words(
    body: dict[str, Any], message: str, param: str
) -> None:
    with pytest.raises(ValidationError) as caught:
        GenerateRequest.model_validate_json(json.dumps({"prompt": "a dog", **body}))
    errors = [{**error, "loc": ("body", *error["loc"])} for error in caught.value.errors()]
    assert describe(errors) == (message, param)


def test_faults_of_the_body_itself_name_no_field() -> None:
    broken = {"type": "json_invalid", "loc": ("body", 13), "ctx": {"error": "Expecting value"}}
    message = "the body is not valid JSON at character 13: expecting value"
    assert describe([broken]) == (message, None)
    assert describe([{"type": "missing", "loc": ("body",)}]) == ("the body: is missing", None)
