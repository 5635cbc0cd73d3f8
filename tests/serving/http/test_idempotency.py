"""Tests of responses repeated for an idempotency key."""

import asyncio
from types import SimpleNamespace

import pytest

from farm.errors import KeyReused, TooBusy
from farm.serving.http.idempotency import IdempotencyCache, digest_of, seed_of

WINDOW_S = 600.0


def opened(*, max_bytes=1000, now=None):
    now = now or SimpleNamespace(s=0.0)
    return IdempotencyCache(window_s=WINDOW_S, max_bytes=max_bytes, clock=lambda: now.s), now


class Generating:
    """Counts how often it is asked, and answers with its number."""

    def __init__(self, *, size=10, gate=None, error=None):
        self.count, self._size, self._gate, self.error = 0, size, gate, error

    async def __call__(self):
        self.count += 1
        if self._gate is not None:
            await self._gate.wait()
        if self.error is not None:
            raise self.error
        return str(self.count).encode().ljust(self._size)


def test_a_repeated_request_is_not_generated_again():
    async def run():
        replays, _ = opened()
        generate = Generating()
        first = await replays.answer("me", "a", "body", generate)
        second = await replays.answer("me", "a", "body", generate)
        assert (first[0], first[1], second[1]) == (second[0], False, True)
        assert generate.count == 1

    asyncio.run(run())


def test_another_request_under_the_same_key_is_refused():
    async def run():
        replays, _ = opened()
        await replays.answer("me", "a", "body", Generating())
        with pytest.raises(KeyReused):
            await replays.answer("me", "a", "other", Generating())

    asyncio.run(run())


def test_keys_of_different_callers_have_nothing_to_do_with_each_other():
    async def run():
        replays, _ = opened()
        mine, yours = Generating(), Generating()
        await replays.answer("me", "a", "body", mine)
        assert not (await replays.answer("you", "a", "other", yours))[1]
        assert (mine.count, yours.count) == (1, 1)

    asyncio.run(run())


def test_twice_at_once_is_generated_once():
    async def run():
        replays, _ = opened()
        generate = Generating(gate=asyncio.Event())
        both = [asyncio.create_task(replays.answer("me", "a", "body", generate)) for _ in range(2)]
        await asyncio.sleep(0)
        generate._gate.set()
        (one, _), (other, _) = await asyncio.gather(*both)
        assert one == other
        assert generate.count == 1

    asyncio.run(run())


def test_the_generation_goes_on_when_the_caller_leaves():
    async def run():
        replays, _ = opened()
        generate = Generating(gate=asyncio.Event())
        asking = asyncio.create_task(replays.answer("me", "a", "body", generate))
        await asyncio.sleep(0)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        generate._gate.set()
        assert (await replays.answer("me", "a", "body", generate))[1]
        assert generate.count == 1

    asyncio.run(run())


def test_a_failure_is_told_to_all_who_wait_and_not_remembered():
    async def run():
        replays, _ = opened()
        generate = Generating(gate=asyncio.Event(), error=TooBusy("full"))
        both = [asyncio.create_task(replays.answer("me", "a", "body", generate)) for _ in range(2)]
        await asyncio.sleep(0)
        generate._gate.set()
        failed = await asyncio.gather(*both, return_exceptions=True)
        assert [type(error) for error in failed] == [TooBusy, TooBusy]
        generate.error = None
        assert not (await replays.answer("me", "a", "body", generate))[1]
        assert generate.count == 2

    asyncio.run(run())


def test_after_its_window_a_key_may_stand_for_another_request():
    async def run():
        replays, now = opened()
        await replays.answer("me", "a", "body", Generating())
        now.s = WINDOW_S - 1
        assert (await replays.answer("me", "a", "body", Generating()))[1]
        now.s = WINDOW_S
        assert not (await replays.answer("me", "a", "other", Generating()))[1]
        assert len(replays) == 1

    asyncio.run(run())


def test_memory_is_bounded_and_the_oldest_goes_first():
    async def run():
        replays, _ = opened(max_bytes=25)
        for key in "abc":
            await replays.answer("me", key, "body", Generating(size=10))
        await asyncio.sleep(0)
        assert replays.num_bytes == 20
        assert not (await replays.answer("me", "a", "body", Generating(size=1)))[1]
        assert (await replays.answer("me", "c", "body", Generating()))[1]

    asyncio.run(run())


def test_an_answer_that_is_too_large_is_given_but_not_kept():
    async def run():
        replays, _ = opened(max_bytes=5)
        answer, _ = await replays.answer("me", "a", "body", Generating(size=6))
        await asyncio.sleep(0)
        assert (len(answer), len(replays), replays.num_bytes) == (6, 0, 0)

    asyncio.run(run())


def test_closing_ends_what_is_under_way():
    async def run():
        replays, _ = opened()
        asking = asyncio.create_task(
            replays.answer("me", "a", "body", Generating(gate=asyncio.Event()))
        )
        await asyncio.sleep(0)
        await replays.close()
        with pytest.raises(asyncio.CancelledError):
            await asking
        assert len(replays) == 0

    asyncio.run(run())


def test_a_seed_follows_from_caller_key_and_request():
    digest = digest_of("body")
    seed = seed_of("me", "a", digest)
    assert seed == seed_of("me", "a", digest)
    assert 0 <= seed < 2**32
    others = {seed_of("you", "a", digest), seed_of("me", "b", digest), seed_of("me", "a", "x")}
    assert len(others | {seed}) == 4
