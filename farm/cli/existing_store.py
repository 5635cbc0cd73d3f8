"""Opening a store that a command only reads.

A wrong path or prefix must not look like a store without adapters: a local folder that does not
exist is an error, and an empty prefix of an object store is pointed out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from farm.storage import Store

__all__ = ["existing_store"]


def existing_store(url: str) -> Store:
    """Open a store for reading; a note on stderr says if it holds nothing.

    Raises:
        StoreUnusable: if it is a local folder that does not exist.
    """
    from farm.cli.views.output import note
    from farm.storage import Store

    store = Store(url)
    store.check_exists()
    if not store.list():
        place = "path" if store.is_local else "URL"
        note(f"note: the store {store.url} holds nothing yet; if it should, correct its {place}")
    return store
