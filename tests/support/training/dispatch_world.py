"""A dispatcher with a clock and a store, for tests of reports and orders of lanes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from farm.storage import Store
from farm.training.dispatch.dispatcher import Dispatcher
from farm.training.dispatch.ledger import Ledger, Status
from farm.training.dispatch.messages import (
    Assignment,
    LaneOrders,
    LaneReport,
)


class World:
    """A dispatcher with a clock and a store; its lanes exist only as reports."""

    def __init__(self, folder: Path, assignments: Sequence[Assignment], **options: Any) -> None:
        self.now = 1000.0
        self.jump = 0.0
        """By how much the wall clock is wrong."""
        self.store = Store(folder)
        self.assignments = list(assignments)
        self.epoch = 0
        self.restart(**options)

    def restart(self, **options: Any) -> None:
        self.epoch += 1
        ledger = Ledger(self.store, "r", epoch=self.epoch, clock=lambda: self.now + self.jump)
        self.dispatcher = Dispatcher(
            self.assignments,
            ledger,
            resolution_px=64,
            clock=lambda: self.now,
            wall_clock=lambda: self.now + self.jump,
            **options,
        )

    def say(self, lane: str = "0", **words: Any) -> LaneOrders:
        words = {"incarnation": "x", "slots": 4, **words}
        return self.dispatcher.exchange(LaneReport(lane=lane, **words))

    def status(self, name: str) -> Status:
        return self.job(name).status

    def job(self, name: str) -> Any:
        key = next(a.spec.key for a in self.assignments if a.spec.subject.id == name)
        return next(job for job in self.dispatcher.jobs() if job.key == key)


def keys(orders: LaneOrders) -> list[str]:
    return [lease.assignment.spec.key for lease in orders.leases]


def names(orders: LaneOrders) -> list[str]:
    return [lease.assignment.spec.subject.id for lease in orders.leases]
