"""Refused requests are answered no faster than their caller's pace; others are not delayed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from farm.serving.access.api_keys import Gate, create_key
from farm.serving.access.limits import MAX_DELAYED_REFUSALS, REFUSALS_AT_ONCE, Limits
from farm.serving.http.middleware import Guard
from farm.serving.ttl_cache import store_threads
from farm.storage import Store

PER_SECOND = 20.0


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers `/v1/good`; every other path is missing."""
    status = 200 if scope["path"] == "/v1/good" else 404
    await JSONResponse({"path": scope["path"]}, status)(scope, receive, send)


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[tuple[Guard, dict[str, str]]]:
    """The app behind a guard, and the headers of a caller with a key."""
    store = Store(tmp_path)
    key, _ = create_key(store, "acme")
    threads = store_threads()
    limits = Limits(refusals_per_second=PER_SECOND)
    gate = Gate(store, executor=threads, failures_per_minute=1_000_000)
    yield Guard(app, gate=gate, limits=limits), {"authorization": f"Bearer {key}"}
    threads.shutdown()


def client(guard: Guard) -> httpx2.AsyncClient:
    transport = httpx2.ASGITransport(guard, client=("192.0.2.1", 1))
    return httpx2.AsyncClient(transport=transport, base_url="http://test", timeout=30)


def test_a_flood_of_bad_requests_is_spread_over_time_and_good_ones_are_not_delayed(
    guarded: tuple[Guard, dict[str, str]],
) -> None:
    guard, headers = guarded
    num_late = 10

    async def flood() -> tuple[float, float]:
        async with client(guard) as caller:
            began_s = time.monotonic()
            count = REFUSALS_AT_ONCE + num_late
            bad = [
                asyncio.create_task(caller.get("/v1/bad", headers=headers)) for _ in range(count)
            ]
            await asyncio.sleep(0.1)
            asked_s = time.monotonic()
            assert (await caller.get("/v1/good", headers=headers)).status_code == 200
            good_s = time.monotonic() - asked_s
            assert {(await one).status_code for one in bad} == {404}
            return time.monotonic() - began_s, good_s

    all_s, good_s = asyncio.run(flood())
    assert all_s >= 0.9 * num_late / PER_SECOND
    assert good_s < 0.5 * num_late / PER_SECOND


def test_beyond_some_delayed_refusals_a_caller_is_refused_at_once_and_disconnected(
    guarded: tuple[Guard, dict[str, str]],
) -> None:
    guard, headers = guarded

    async def flood() -> None:
        async with client(guard) as caller:

            async def wave(count: int) -> list[httpx2.Response]:
                """The answers that some bad requests get at once."""
                bad = [asyncio.create_task(caller.get("/v1/good")) for _ in range(count)]
                done, late = await asyncio.wait(bad, timeout=0.3)
                for one in late:
                    one.cancel()
                await asyncio.gather(*late, return_exceptions=True)
                return [one.result() for one in done]

            await wave(REFUSALS_AT_ONCE + MAX_DELAYED_REFUSALS + 50)
            over = [answer for answer in await wave(40) if answer.status_code == 429]
            assert over
            assert all(one.headers["connection"] == "close" for one in over)
            assert all(one.headers["retry-after"] for one in over)
            # a valid key from the same address is another caller
            assert (await caller.get("/v1/good", headers=headers)).status_code == 200

    asyncio.run(flood())
