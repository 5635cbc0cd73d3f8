"""One live endpoint for the tests of a file, with two adapters."""

from __future__ import annotations

from collections.abc import Iterator

import openai
import pytest
from support.endpoint import LiveEndpoint, live_endpoint


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveEndpoint]:
    with live_endpoint(tmp_path_factory.mktemp("endpoint")) as live:
        live.publish("rex", seed=1, identifier="zwx")
        live.publish("tom", seed=2, identifier="qtr", class_noun="cat")
        yield live


@pytest.fixture(scope="module")
def client(endpoint: LiveEndpoint) -> openai.OpenAI:
    return endpoint.openai()
