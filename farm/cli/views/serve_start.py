"""What ``farm serve`` prints while it starts: its steps, and the adapters that it serves."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from concurrent.futures import Future

    from farm.serving.access.inventory import Inventory
    from farm.serving.engine.engine import Engine
    from farm.serving.settings import EndpointConfig

__all__ = ["StartLines", "inventory_beside", "print_batch_limit", "what_is_served"]

INVENTORY_S = 10.0
"""How long the start waits for the inventory of the store, once the base is loaded."""


class StartLines:
    """Lines on stderr, each with the seconds since the command started."""

    def __init__(self) -> None:
        self._started_s = time.monotonic()

    def __call__(self, line: str) -> None:
        print(f"{time.monotonic() - self._started_s:5.1f} s  {line}", file=sys.stderr, flush=True)


def inventory_beside(store: str) -> Future[Inventory]:
    """Read the inventory of the store while the base is loading."""
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
    """The adapters of the store, and why some of them cannot be served."""
    from farm.errors import FarmError
    from farm.serving.access.inventory import summary

    try:
        return summary(inventory.result(INVENTORY_S), settings.engine, fingerprint)
    except TimeoutError:
        return [f"the store's adapters are not listed: that took longer than {INVENTORY_S:g} s"]
    except FarmError as error:
        return [f"the store's adapters are not listed: {error.message}"]


def print_batch_limit(engine: Engine, report: StartLines) -> None:
    """Print the batch limit once it is measured."""
    if engine.wait_until_measured() and len(engine.capacity.seconds_by_rows) > 1:
        report(f"batch limit: {engine.capacity.reason}")
