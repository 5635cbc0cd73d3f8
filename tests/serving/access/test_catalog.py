"""Names, versions and pages, and how few store reads they need."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from farm.adapters.record import AdapterRecord
from farm.adapters.registry import Registry
from farm.errors import AdapterNotFound
from farm.keys import key_of
from farm.recipe import Recipe
from farm.serving.access.catalog import Catalog
from farm.storage import Store


class CountingStore(Store):
    """A real store that counts what it is asked, and may be slow as a bucket is."""

    num_calls = 0
    latency_s = 0.0

    def _attempt(self, path: str, call: Any, **options: Any) -> Any:
        self.num_calls += 1
        time.sleep(self.latency_s)
        return super()._attempt(path, call, **options)


def make_record(name: str, *, namespace: str = "default", version: int = 0) -> AdapterRecord:
    return AdapterRecord(
        job_key=key_of("catalog", name=name, namespace=namespace, version=version),
        subject_id=name,
        namespace=namespace,
        name=name,
        class_noun="dog",
        instance_prompt="a photo of sks dog",
        base_id="tiny",
        base_fingerprint="f" * 64,
        recipe=Recipe(),
    )


def commit(store: Store, record: AdapterRecord) -> None:
    """The record and the name, as publishing leaves them; no weights are needed here."""
    store.write(f"adapters/{record.job_key}/adapter.json", record.to_json().encode())
    Registry(store).point(record.namespace, record.name, record)


def write_names(store: Store, names: list[str]) -> None:
    """Many names at once, without the care that a store takes of each."""
    folder = Path(store.url) / "names" / "default"
    folder.mkdir(parents=True)
    for index, name in enumerate(names):
        body = {"job_key": f"{index:032x}", "sha256": "", "created": "2026-01-01T00:00:00+00:00"}
        (folder / f"{name}.json").write_text(json.dumps(body))


@pytest.fixture
def store(tmp_path: Path) -> CountingStore:
    return CountingStore(tmp_path)


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(16) as pool:
        yield pool


def run(
    store: Store,
    threads: ThreadPoolExecutor,
    test: Callable[[Catalog], Awaitable[None]],
    *,
    name_ttl_s: float = 60.0,
) -> None:
    asyncio.run(test(Catalog(Registry(store), executor=threads, name_ttl_s=name_ttl_s)))  # type: ignore[arg-type]


def test_a_used_adapter_costs_the_store_nothing(
    store: CountingStore, threads: ThreadPoolExecutor
) -> None:
    commit(store, make_record("rex"))

    async def check(catalog: Catalog) -> None:
        await catalog.resolve("default", "rex")
        before = store.num_calls
        for _ in range(50):
            named, facts = await catalog.resolve("default", "rex")
        assert store.num_calls == before
        assert (named.name, facts.identifier) == ("rex", "sks")

    run(store, threads, check)


def test_a_crowd_asking_for_one_adapter_reads_it_once(
    store: CountingStore, threads: ThreadPoolExecutor
) -> None:
    commit(store, make_record("rex"))
    store.latency_s = 0.02

    async def check(catalog: Catalog) -> None:
        before = store.num_calls
        await asyncio.gather(*(catalog.resolve("default", "rex") for _ in range(100)))
        assert store.num_calls - before == 3  # the name, the revocations, the record

    run(store, threads, check)


def test_names_beyond_the_namespace_and_bent_names_are_all_unknown(
    store: CountingStore, threads: ThreadPoolExecutor
) -> None:
    mine, other = make_record("rex"), make_record("tom", namespace="other")
    commit(store, mine)
    commit(store, other)

    async def check(catalog: Catalog) -> None:
        for model in (
            "tom", f"tom@{other.job_key}", f"rex@{other.job_key}", "rex@", "rex@zz",
            "../other/tom", "other/tom", "", "@", ".", "..", "rex\n", "rex\0", "x" * 300,
            f"@{mine.job_key}", mine.job_key,
        ):  # fmt: skip
            with pytest.raises(AdapterNotFound):
                await catalog.resolve("default", model)
        assert (await catalog.resolve("default", f"rex@{mine.job_key}"))[0].name == "rex"

    run(store, threads, check)


def test_a_name_that_moves_is_followed_and_its_past_can_be_pinned(
    store: CountingStore, threads: ThreadPoolExecutor
) -> None:
    old, new = make_record("rex", version=1), make_record("rex", version=2)
    commit(store, old)

    async def check(catalog: Catalog) -> None:
        assert (await catalog.resolve("default", "rex"))[0].job_key == old.job_key
        commit(store, new)
        assert (await catalog.resolve("default", "rex"))[0].job_key == new.job_key
        pinned, _ = await catalog.resolve("default", f"rex@{old.job_key}")
        assert pinned.job_key == old.job_key

    run(store, threads, check, name_ttl_s=0)


def test_a_revoked_version_is_unknown_and_its_successor_is_not(
    store: CountingStore, threads: ThreadPoolExecutor
) -> None:
    old, new = make_record("rex", version=1), make_record("rex", version=2)
    commit(store, old)

    async def check(catalog: Catalog) -> None:
        await catalog.resolve("default", "rex")
        Registry(store).revoke("default", "rex")
        with pytest.raises(AdapterNotFound):
            await catalog.resolve("default", "rex")
        assert (await catalog.page("default")).adapters == ()
        assert (await catalog.page("default")).total == 0
        for name in ("sam", "tom"):
            commit(store, make_record(name))
        pages = [await catalog.page("default", limit=1), await catalog.page("default", limit=9)]
        assert [page.total for page in pages] == [2, 2]  # on the first page of several, and on all
        commit(store, new)
        assert (await catalog.resolve("default", "rex"))[0].job_key == new.job_key
        with pytest.raises(AdapterNotFound):
            await catalog.resolve("default", f"rex@{old.job_key}")

    run(store, threads, check, name_ttl_s=0)


def test_thousands_of_names_are_paged_and_each_page_reads_only_itself(
    store: CountingStore, threads: ThreadPoolExecutor
) -> None:
    write_names(store, [f"pet-{index:04d}" for index in range(3000)])

    async def check(catalog: Catalog) -> None:
        before = store.num_calls
        page = await catalog.page("default", limit=100)
        assert store.num_calls - before <= 102  # 100 names, one listing, the revocations
        assert (page.total, page.has_more, len(page.adapters)) == (3000, True, 100)
        before = store.num_calls
        await catalog.page("default", limit=100)
        assert store.num_calls == before
        found, after = [], ""
        while True:
            page = await catalog.page("default", after=after, limit=700)
            found += [named.name for named in page.adapters]
            if not page.has_more:
                break
            after = found[-1]
        assert found == [f"pet-{index:04d}" for index in range(3000)]
        matching = await catalog.page("default", search="PET-12", limit=1000)
        assert [named.name for named in matching.adapters] == [f"pet-12{i:02d}" for i in range(100)]

    run(store, threads, check)


def test_a_page_reads_its_names_side_by_side(
    store: CountingStore, threads: ThreadPoolExecutor
) -> None:
    write_names(store, [f"pet-{index:02d}" for index in range(96)])
    store.latency_s = 0.05
    running, most = 0, 0
    read = store.read_json

    def watched(path: str) -> Any:
        nonlocal running, most
        running += 1
        most = max(most, running)
        try:
            return read(path)
        finally:
            running -= 1

    store.read_json = watched  # type: ignore[method-assign]

    async def check(catalog: Catalog) -> None:
        assert len((await catalog.page("default", limit=96)).adapters) == 96

    run(store, threads, check)
    assert most >= 8
