"""Whatever happens to lanes and drivers, every job ends exactly once."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.assignments import PLAIN, assignment
from support.training.dispatch_world import World

from farm.recipe import Recipe
from farm.training.dispatch.ledger import Status
from farm.training.dispatch.messages import (
    JobResult,
    LaneReport,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(seed=st.integers(0, 2**32), num_jobs=st.integers(1, 12))
def test_under_any_mishap_every_job_ends_exactly_once(
    seed: int, num_jobs: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Lanes die, go silent, lose responses and fail jobs; drivers are killed."""
    rng = random.Random(seed)
    recipes = [PLAIN, replace_rows(2)]
    world = World(
        tmp_path_factory.mktemp("w"),
        [assignment(f"s{n}", rng.choice(recipes)) for n in range(num_jobs)],
    )
    lanes = {str(n): Lane(world, str(n), rng) for n in range(3)}
    store: set[str] = set()
    for _ in range(4000):
        if world.dispatcher.is_done:
            break
        world.now += rng.random() * 3
        if rng.random() < 0.01:
            world.restart(committed=store)
        if rng.random() < 0.1:
            world.dispatcher.tick()
        store |= lanes[rng.choice(list(lanes))].live()
    assert world.dispatcher.is_done
    statuses = {job.status for job in world.dispatcher.jobs()}
    assert statuses <= {Status.COMMITTED, Status.QUARANTINED}
    committed = {j.key for j in world.dispatcher.jobs() if j.status is Status.COMMITTED}
    assert committed == store


def replace_rows(rows: int) -> Recipe:
    return PLAIN.model_copy(update={"instance_rows": rows})


class Lane:
    """A lane with every kind of fault."""

    def __init__(self, world: World, place: str, rng: random.Random) -> None:
        self.world, self.place, self.rng = world, place, rng
        self.life = 0
        self.held: dict[str, int] = {}
        self.results: list[JobResult] = []
        self.shape: Any = None
        self.alone = False

    def live(self) -> set[str]:
        """One heartbeat; returns the keys that it committed to the store."""
        chance = self.rng.random()
        if chance < 0.03:  # killed
            self.life += 1
            self.held, self.results, self.shape, self.alone = {}, [], None, False
            return set()
        stored: set[str] = set()
        for key in list(self.held):
            self.held[key] = max(0, self.held[key] + self.rng.randrange(4))
            if self.held[key] >= 10:
                del self.held[key]
                if self.rng.random() < 0.1:
                    self.results.append(JobResult(key, "failed", "diverged"))
                else:
                    stored.add(key)
                    self.results.append(JobResult(key, "committed", step=10))
        report = LaneReport(
            lane=self.place,
            incarnation=f"i{self.life}",
            slots=3,
            held=dict(self.held),
            results=tuple(self.results),
            want=3 - len(self.held),
            shape=self.shape,
            alone=self.alone,
        )
        orders = self.world.dispatcher.exchange(report)
        if self.rng.random() < 0.1:
            return stored  # the response was lost
        self.results = []
        for key in orders.drop:
            self.held.pop(key, None)
        if orders.leases:
            self.shape, self.alone = orders.shape, orders.alone
            for lease in orders.leases:
                assert lease.assignment.spec.key not in self.held
                self.held[lease.assignment.spec.key] = -1
        if not self.held:
            self.shape = None
        return stored
