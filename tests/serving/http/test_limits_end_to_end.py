"""An operator's limit applies everywhere: in the config, the API, the engine and the page."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from pydantic import ValidationError
from support.endpoint import LiveEndpoint, live_endpoint

from farm.serving.access.limits import Limits
from farm.serving.config import EngineConfig
from farm.serving.request import RequestLimits
from farm.serving.settings import EndpointConfig

LIMITS = Limits(
    max_steps=152,
    max_prompt_characters=5000,
    max_guidance=60,
    max_side_px=2056,
    max_adapters=2,
)


@pytest.fixture(scope="module")
def raised(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveEndpoint]:
    with live_endpoint(tmp_path_factory.mktemp("limits"), limits=LIMITS) as live:
        yield live


def generate(live: LiveEndpoint, **fields: object) -> httpx.Response:
    body = {"prompt": "a cat", "num_inference_steps": 1, "size": "64x64", **fields}
    return httpx.post(f"{live.url}/v1/images/generations", json=body, timeout=120)


@pytest.mark.parametrize(
    ("field", "taken", "refused"),
    [
        ("num_inference_steps", 152, 153),
        ("prompt", "x" * 5000, "x" * 5001),
        ("negative_prompt", "x" * 5000, "x" * 5001),
        ("guidance_scale", 60, 61),
    ],
)
def test_a_raised_limit_is_accepted_end_to_end_and_no_further(
    raised: LiveEndpoint, field: str, taken: object, refused: object
) -> None:
    answer = generate(raised, **{field: taken})
    assert answer.status_code == 200, answer.text
    answer = generate(raised, **{field: refused})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == field


def test_everything_over_a_limit_is_refused_at_once_with_the_endpoints_own_limits(
    raised: LiveEndpoint,
) -> None:
    def message(**fields: object) -> str:
        answer = generate(raised, **fields)
        assert answer.status_code == 400
        return str(answer.json()["error"]["message"])

    assert message(num_inference_steps=5000) == "num_inference_steps: must be at most 152"
    refused = message(num_inference_steps=153, guidance_scale=61, size="4096x64")
    for part in ("num_inference_steps: 153 is", "limit of 152", "size: 4096", "guidance_scale: 61"):
        assert part in refused


def test_the_engine_has_the_endpoints_limits(raised: LiveEndpoint) -> None:
    assert raised.engine.config.limits == LIMITS
    assert generate(raised, size="64x2064").status_code == 400


def test_the_page_offers_what_the_limits_allow(raised: LiveEndpoint) -> None:
    page = httpx.get(raised.url).text
    assert 'max="152"' in page
    assert 'maxlength="5000"' in page
    assert "<option>dpm++2m</option>" in page
    assert "{" not in page


def test_limits_have_one_place_in_the_config(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="write them under `limits`"):
        EndpointConfig(
            store=str(tmp_path), engine=EngineConfig(limits=RequestLimits(max_steps=500))
        )


def test_a_limit_beyond_what_the_api_can_express_is_refused_in_the_config() -> None:
    with pytest.raises(ValidationError, match="1000"):
        Limits(max_steps=2000)
