"""Start-up messages of ``farm serve``: its steps, and which adapters it serves."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from concurrent.futures import Future

    from farm.serving.access.inventory import Inventory
    from farm.serving.engine.engine import Engine
    from farm.serving.settings import EndpointConfig

__all__ = ["StartLines", "inventory_beside", "report_limit", "what_is_served"]

INVENTORY_S = 10.0
"""How long the start waits for the store's inventory, once the base is loaded."""


class StartLines:
    """Start-up lines on stderr, each with the seconds since the command began."""

    def __init__(self) -> None:
        self._started_s = time.monotonic()

    def __call__(self, line: str) -> None:
        print(f"{time.monotonic() - self._started_s:5.1f} s  {line}", file=sys.stderr, flush=True)


def inventory_beside(store: str) -> Future[Inventory]:
    """The store's inventory, read while the base is loaded."""
    from concurrent.futures import ThreadPoolExecutor

    from farm.adapters.registry import Registry
    from farm.serving.access.inventory import read_inventory
    from farm.storage import Store

    pool = ThreadPoolExecutor(1, thread_name_prefix="inventory")
    future = pool.submit(read_inventory, Registry(Store(store)))
    pool.shutdown(wait=False)
    return future


def what_is_served(
    inventory: Future[Inventory], settings: EndpointConfig, fingerprint: str
) -> list[str]:
    """The store's adapters, and which of them cannot be served and why."""
    from farm.errors import FarmError
    from farm.serving.access.inventory import summary

    try:
        return summary(inventory.result(INVENTORY_S), settings.engine, fingerprint)
    except TimeoutError:
        return [f"the store's adapters are not listed: it took longer than {INVENTORY_S:g} s"]
    except FarmError as error:
        return [f"the store's adapters are not listed: {error.message}"]


def report_limit(engine: Engine, report: StartLines) -> None:
    """Report the batch limit once it is measured."""
    if engine.wait_until_measured() and len(engine.capacity.seconds_by_rows) > 1:
        report(f"batch limit: {engine.capacity.reason}")
