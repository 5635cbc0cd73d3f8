"""Tests of the turns in which requests begin."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from farm.serving.access.turns import Turns


class Begun(list[str]):
    """The callers of requests, in the order in which they began."""

    def __init__(self, turns: Turns, work: Callable[[], None] = lambda: None) -> None:
        super().__init__()
        self._turns, self._work = turns, work

    def send(
        self, caller: str, count: int = 1, hold: asyncio.Event | None = None
    ) -> asyncio.Future:
        return asyncio.gather(*(self._one(caller, hold) for _ in range(count)))

    async def _one(self, caller: str, hold: asyncio.Event | None) -> None:
        try:
            await self._turns.take(caller)
            self.append(caller)
            self._work()
            if hold is not None:
                await hold.wait()
        finally:
            self._turns.leave(caller)


def test_a_burst_of_one_caller_delays_another_by_one_request() -> None:
    async def main() -> None:
        begun = Begun(Turns())
        flood = begun.send("flood", 50)
        await begun.send("other")
        assert "other" in begun[:2]
        assert len(begun) < 10
        await flood
        assert len(begun) == 51

    asyncio.run(main())


def test_callers_that_all_send_many_take_turns() -> None:
    async def main() -> None:
        begun = Begun(Turns())
        await asyncio.gather(*(begun.send(caller, 10) for caller in "abc"))
        assert all(set(begun[i : i + 3]) == set("abc") for i in range(0, 30, 3))

    asyncio.run(main())


def test_while_another_request_is_open_the_loop_rests_as_long_as_it_works() -> None:
    worked_s = now_s = 0.0

    def work() -> None:
        nonlocal worked_s, now_s
        worked_s += 0.01
        now_s += 0.01

    async def main(*, is_shared: bool, rest: float = 1.0) -> tuple[float, float]:
        nonlocal worked_s, now_s
        worked_s = now_s = 0.0
        loop, rested_s = asyncio.get_running_loop(), 0.0
        later = loop.call_later

        def later_at_once(delay_s: float, *arguments: object) -> object:
            nonlocal now_s, rested_s
            now_s, rested_s = now_s + delay_s, rested_s + delay_s
            return later(0, *arguments)

        loop.call_later = later_at_once  # type: ignore[method-assign,assignment]
        turns, may_end = Turns(lambda: worked_s, lambda: now_s, rest=rest), asyncio.Event()
        begun = Begun(turns, work)
        other = begun.send("other", hold=may_end) if is_shared else None
        await begun.send("flood", 20)
        may_end.set()
        if other is not None:
            await other
        return worked_s, rested_s

    assert asyncio.run(main(is_shared=False))[1] == 0
    assert asyncio.run(main(is_shared=True, rest=0.0))[1] == 0
    worked, rested = asyncio.run(main(is_shared=True))
    assert 0.8 * worked <= rested <= 1.1 * worked


def test_a_caller_that_leaves_loses_only_its_own_turn_and_nothing_is_kept() -> None:
    async def main() -> None:
        turns = Turns()
        begun = Begun(turns)
        sent = [asyncio.ensure_future(begun.send("a")) for _ in range(4)]
        await asyncio.sleep(0)
        sent[2].cancel()
        await asyncio.gather(*sent, return_exceptions=True)
        await asyncio.sleep(0.01)
        assert begun == ["a"] * 3
        assert not turns._waiting
        assert not turns._open

    asyncio.run(main())
