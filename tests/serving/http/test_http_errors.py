"""Errors on the wire keep their remedy, and reveal no location."""

from __future__ import annotations

import time

import pytest

from farm.errors import AdapterFileError, FarmError, RequestRefused, StoreError, UserError
from farm.serving.http.errors import error_answer, scrub


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


@pytest.mark.parametrize("piece", ["a", "a.", "/", "a:/", "\\"])
def test_a_long_message_is_scrubbed_in_linear_time(piece: str) -> None:
    started_s = time.process_time()
    assert len(scrub(piece * 50_000)) <= 600
    assert time.process_time() - started_s < 0.5
