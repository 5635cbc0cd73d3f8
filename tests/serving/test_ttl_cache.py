"""Tests of how old a value may be, and how often it is read."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from farm.errors import StoreError
from farm.serving.ttl_cache import TtlCache


class Source:
    """A store whose answers a test sets, and which counts what it is asked."""

    def __init__(self) -> None:
        self.answers: dict[str, str | Exception] = {}
        self.asked: list[str] = []
        self.open = threading.Event()
        self.open.set()

    def read(self, key: str) -> str:
        self.asked.append(key)
        self.open.wait(5)
        answer = self.answers[key]
        if isinstance(answer, Exception):
            raise answer
        return answer


def run(test: Callable[[Source, TtlCache[str, str], list[float]], Awaitable[None]]) -> None:
    """Run a test over a table of 10 s freshness with room for two, and a clock in a list."""
    source, now = Source(), [0.0]
    with ThreadPoolExecutor(4) as pool:
        table = TtlCache(source.read, ttl_s=10, executor=pool, max_items=2, clock=lambda: now[0])
        asyncio.run(test(source, table, now))  # type: ignore[arg-type]


def test_a_value_is_read_again_only_when_it_is_old() -> None:
    async def check(source: Source, table: TtlCache[str, str], now: list[float]) -> None:
        source.answers["a"] = "one"
        assert await table.get("a") == "one"
        source.answers["a"] = "two"
        now[0] = 9.9
        assert await table.get("a") == "one"
        now[0] = 10.0
        assert await table.get("a") == "two"
        assert source.asked == ["a", "a"]

    run(check)


def test_one_read_serves_all_who_wait() -> None:
    async def check(source: Source, table: TtlCache[str, str], now: list[float]) -> None:
        source.answers["a"] = "one"
        source.open.clear()
        waiting = [asyncio.create_task(table.get("a")) for _ in range(20)]
        await asyncio.sleep(0.05)
        waiting[0].cancel()
        source.open.set()
        results = await asyncio.gather(*waiting, return_exceptions=True)
        assert isinstance(results[0], asyncio.CancelledError)
        assert results[1:] == ["one"] * 19
        assert source.asked == ["a"]

    run(check)


def test_a_store_that_is_silent_leaves_the_last_value() -> None:
    async def check(source: Source, table: TtlCache[str, str], now: list[float]) -> None:
        source.answers["a"] = "one"
        await table.get("a")
        source.answers["a"] = StoreError("silent")
        now[0] = 100.0
        assert await table.get("a") == "one"
        source.answers["a"] = "two"
        assert await table.get("a") == "two"
        source.answers["b"] = StoreError("silent")
        with pytest.raises(StoreError):
            await table.get("b")

    run(check)


def test_a_silent_store_is_an_error_once_what_is_known_is_too_old() -> None:
    source, now = Source(), [0.0]

    async def check(table: TtlCache[str, str]) -> None:
        source.answers["a"] = "one"
        await table.get("a")
        source.answers["a"] = PermissionError("of whatever kind")
        now[0] = 30.0
        assert await table.get("a") == "one"
        now[0] = 31.0
        with pytest.raises(StoreError):
            await table.get("a")
        source.answers["a"] = "two"
        assert await table.get("a") == "two"
        source.open.clear()  # a store that hangs is no better than one that fails
        now[0] = 100.0
        with pytest.raises(StoreError):
            await table.get("a")
        source.open.set()

    with ThreadPoolExecutor(4) as pool:
        table = TtlCache(
            source.read,
            ttl_s=10,
            max_age_s=30,
            patience_s=0.2,
            executor=pool,
            clock=lambda: now[0],
        )
        asyncio.run(check(table))


def test_what_was_missing_is_looked_for_again() -> None:
    async def check(source: Source, table: TtlCache[str, str], now: list[float]) -> None:
        source.answers["a"] = FileNotFoundError("a")
        with pytest.raises(FileNotFoundError):
            await table.get("a")
        source.answers["a"] = "one"
        assert await table.get("a") == "one"

    run(check)


def test_what_is_gone_is_gone_when_the_value_is_old() -> None:
    async def check(source: Source, table: TtlCache[str, str], now: list[float]) -> None:
        source.answers["a"] = "one"
        await table.get("a")
        source.answers["a"] = FileNotFoundError("a")
        assert await table.get("a") == "one"
        now[0] = 10.0
        with pytest.raises(FileNotFoundError):
            await table.get("a")

    run(check)


def test_the_table_is_bounded_and_keeps_what_is_used() -> None:
    async def check(source: Source, table: TtlCache[str, str], now: list[float]) -> None:
        source.answers.update(a="1", b="2", c="3")
        for key in ("a", "b", "a", "c"):
            await table.get(key)
        assert table.peek("b") is None
        assert table.peek("a") == "1"
        assert table.peek("c") == "3"

    run(check)
