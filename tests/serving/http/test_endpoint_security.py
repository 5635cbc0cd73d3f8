"""Tenants that share a job, pages of other origins, invalid keys, and an unresponsive store."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import pytest
from support.endpoint import LiveEndpoint, eventually, live_endpoint

from farm.adapters.registry import Registry
from farm.errors import AdapterNotFound, NotAuthorized, StoreError, TooBusy
from farm.serving.access.api_keys import Gate, create_key, revoke_key
from farm.serving.access.catalog import Catalog
from farm.serving.access.limits import Limits
from farm.storage import Store

GENERATE = "/v1/images/generations"
FEW = {"num_inference_steps": 1, "size": "64x64"}


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveEndpoint]:
    """An endpoint with keys; acme and beta trained the same photos, beta first."""
    with live_endpoint(
        tmp_path_factory.mktemp("shared"),
        anonymous_namespace=None,
        limits=Limits(failed_keys_per_minute=5),
    ) as live:
        record = live.publish("hush", namespace="beta", seed=1)
        live.registry.point("acme", "mine", record, prompts=["a photo of sks dog on the moon"])
        yield live


@pytest.fixture(scope="module")
def keys(shared: LiveEndpoint) -> dict[str, dict[str, str]]:
    return {
        space: {"authorization": f"Bearer {shared.key(space)}"} for space in ("acme", "beta")
    } | {"operator": {"authorization": f"Bearer {shared.key('acme', operator=True)}"}}


@pytest.fixture(scope="module")
def unlocked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveEndpoint]:
    with live_endpoint(tmp_path_factory.mktemp("unlocked")) as live:
        live.publish("rex")
        yield live


# -- tenants ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "status"), [("mine", 200), ("hush", 400), ("other", 400)])
def test_a_shared_subject_is_called_by_the_callers_own_name_alone(
    shared: LiveEndpoint, keys: dict[str, dict[str, str]], name: str, status: int
) -> None:
    body = {"model": "mine", "prompt": f"a [V:{name}]", **FEW}
    answer = httpx2.post(f"{shared.url}{GENERATE}", json=body, headers=keys["acme"], timeout=60)
    assert answer.status_code == status
    assert "beta" not in answer.text
    assert status == 200 or "hush" not in answer.text.replace("[V:hush]", "")


def test_samples_of_another_tenants_prompts_are_not_shown(
    shared: LiveEndpoint, keys: dict[str, dict[str, str]]
) -> None:
    def get(path: str, whose: str) -> httpx2.Response:
        return httpx2.get(f"{shared.url}/v1/models/{path}", headers=keys[whose])

    assert get("hush", "beta").json()["num_samples"] == 1
    assert get("hush/samples/0", "beta").status_code == 200
    mine = get("mine", "acme").json()
    assert (mine["num_samples"], mine["owned_by"]) == (0, "acme")
    assert mine["note"].startswith("no samples were generated")
    assert get("hush", "beta").json()["note"] is None
    assert get("mine/samples/0", "acme").status_code == 404
    assert get("hush", "acme").status_code == 404


def test_a_shared_job_withdrawn_by_one_tenant_is_served_to_the_other(
    shared: LiveEndpoint, keys: dict[str, dict[str, str]]
) -> None:
    record = shared.publish("ours", namespace="beta", seed=2)
    shared.registry.point("acme", "theirs", record)

    def status(name: str, whose: str) -> int:
        body = {"model": name, "prompt": "a photo", **FEW}
        url = f"{shared.url}{GENERATE}"
        return httpx2.post(url, json=body, headers=keys[whose], timeout=60).status_code

    assert (status("ours", "beta"), status("theirs", "acme")) == (200, 200)
    shared.registry.revoke("beta", "ours")
    eventually(lambda: status("ours", "beta") == 404)
    assert status(f"ours@{record.job_key}", "beta") == 404
    assert status("theirs", "acme") == 200
    shared.registry.revoke(job_key=record.job_key)
    eventually(lambda: status("theirs", "acme") == 404)


def test_metrics_are_for_operators(shared: LiveEndpoint, keys: dict[str, dict[str, str]]) -> None:
    def status(whose: str) -> int:
        return httpx2.get(f"{shared.url}/metrics", headers=keys[whose]).status_code

    assert (status("acme"), status("operator")) == (403, 200)


def test_wrong_keys_are_limited_and_a_good_one_is_let_in(
    shared: LiveEndpoint, keys: dict[str, dict[str, str]]
) -> None:
    url = f"{shared.url}/v1/models"
    forged = {"authorization": f"Bearer farm_{'0' * 16}_{'A' * 43}"}
    statuses = [httpx2.get(url, headers=forged).status_code for _ in range(8)]
    assert statuses == [401] * 5 + [429] * 3
    assert httpx2.get(url, headers=keys["acme"]).status_code == 200


def test_a_name_of_an_older_farm_is_read_and_shows_only_its_own_samples(
    shared: LiveEndpoint, keys: dict[str, dict[str, str]]
) -> None:
    record = shared.publish("old", namespace="beta", seed=3)
    pointer = {"job_key": record.job_key, "sha256": "", "created": "2026-01-01T00:00:00+00:00"}
    for space in ("acme", "beta"):
        shared.store.write_json(f"names/{space}/older.json", pointer)
    for space, count in (("acme", 0), ("beta", 1)):
        answer = httpx2.get(f"{shared.url}/v1/models/older", headers=keys[space])
        assert answer.json()["num_samples"] == count


# -- pages of other origins ------------------------------------------------------------------

FOREIGN = [
    {"sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors", "sec-fetch-dest": "image"},
    {"sec-fetch-site": "same-site", "sec-fetch-mode": "cors", "sec-fetch-dest": "empty"},
    {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate", "sec-fetch-dest": "iframe"},
    {"origin": "http://localhost:3000"},
    {"origin": "null"},
    {"host": "evil.example"},
    {"host": "127.0.0.1.evil.example"},
]


@pytest.mark.parametrize("headers", FOREIGN)
@pytest.mark.parametrize(
    "path", ["/", "/page.js", "/health", "/v1/models", "/v1/models/rex/samples/0", "/metrics"]
)
def test_without_keys_another_page_learns_nothing(
    unlocked: LiveEndpoint, headers: dict[str, str], path: str
) -> None:
    answer = httpx2.get(unlocked.url + path, headers=headers)
    assert answer.status_code == 403
    assert "rex" not in answer.text
    assert answer.headers["cross-origin-resource-policy"] == "same-origin"


@pytest.mark.parametrize("kind", ["text/plain", "", "application/x-www-form-urlencoded"])
def test_a_form_of_another_page_starts_nothing(unlocked: LiveEndpoint, kind: str) -> None:
    before = unlocked.engine.stats().submitted
    body = json.dumps({"model": "rex", "prompt": "x", **FEW}).encode()
    headers = {"content-type": kind} if kind else {}
    answer = httpx2.post(unlocked.url + GENERATE, content=body, headers=headers)
    assert answer.status_code == 415
    assert unlocked.engine.stats().submitted == before


def test_its_own_page_and_links_to_it_work(unlocked: LiveEndpoint) -> None:
    own = {"sec-fetch-site": "same-origin", "origin": unlocked.url}
    assert httpx2.get(f"{unlocked.url}/v1/models", headers=own).status_code == 200
    followed = {
        "sec-fetch-site": "cross-site",
        "sec-fetch-mode": "navigate",
        "sec-fetch-dest": "document",
    }
    assert httpx2.get(unlocked.url, headers=followed).status_code == 200
    assert httpx2.get(f"{unlocked.url}/v1/models", headers=followed).status_code == 403


# -- a store that falls silent ---------------------------------------------------------------


def silence(store: Store) -> Callable[[], None]:
    """Make a real folder unreadable: files stand where its folders were. Returns how to undo it."""
    root = Path(store.url)
    for name in ("keys", "names", "revoked"):
        if (root / name).exists():
            (root / name).rename(root / f".{name}")

    def undo() -> None:
        for name in ("keys", "names", "revoked"):
            if (root / f".{name}").exists():
                shutil.move(root / f".{name}", root / name)

    return undo


def test_a_key_is_not_believed_beyond_its_age_when_the_store_is_gone(tmp_path: Path) -> None:
    store = Store(tmp_path)
    token, record = create_key(store, "acme")

    async def check(threads: ThreadPoolExecutor) -> None:
        gate = Gate(store, executor=threads, refresh_s=0, max_age_s=0.5)
        header = f"Bearer {token}"
        assert (await gate.admit(header)).namespace == "acme"
        undo = silence(store)
        assert (await gate.admit(header)).namespace == "acme"  # known a moment ago
        await asyncio.sleep(0.6)
        with pytest.raises(StoreError):
            await gate.admit(header)
        undo()
        revoke_key(store, record.key_id)
        with pytest.raises(NotAuthorized):
            await gate.admit(header)

    with ThreadPoolExecutor(4) as threads:
        asyncio.run(check(threads))


def test_a_revocation_that_was_seen_is_not_forgotten_with_the_store(tmp_path: Path) -> None:
    store = Store(tmp_path)
    registry = Registry(store)
    registry.revoke(job_key="0" * 32)

    async def check(threads: ThreadPoolExecutor) -> None:
        catalog = Catalog(registry, executor=threads, name_ttl_s=0, max_age_s=0.3)
        with pytest.raises(AdapterNotFound):
            await catalog.resolve("acme", "rex")
        await catalog.page("acme")  # the revocation has been read by now
        silence(store)
        await asyncio.sleep(0.4)
        with pytest.raises(StoreError):
            await catalog.page("acme")

    with ThreadPoolExecutor(4) as threads:
        asyncio.run(check(threads))


def test_wrong_keys_from_one_address_do_not_count_against_another(tmp_path: Path) -> None:
    store = Store(tmp_path)
    create_key(store, "acme")

    async def check(threads: ThreadPoolExecutor) -> None:
        gate = Gate(store, executor=threads, failures_per_minute=1)
        for address in ("10.0.0.1", "10.0.0.2"):
            with pytest.raises(NotAuthorized):
                await gate.admit("Bearer x", address)
        with pytest.raises(TooBusy):
            await gate.admit("Bearer x", "10.0.0.1")

    with ThreadPoolExecutor(4) as threads:
        asyncio.run(check(threads))
