"""Choice of the replica for a request: the one that has its adapter, unless it is too busy.

Owns only the choice; ``router.py`` carries it out. Rendezvous hashing (Thaler and Ravishankar 1998)
gives every adapter its own order of replicas, which changes little when a replica is added or
removed. A bound on the load (consistent hashing with bounded loads, Mirrokni et al. 2018) moves an
adapter to its next replica while the first one is over its share. A popular adapter thus spreads
over as many replicas as its load needs, and contracts when the load falls.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping

__all__ = ["LOAD_BOUND", "rank_replicas", "wanted_replicas"]

LOAD_BOUND = 1.25
"""A replica may have this multiple of the mean load before others are tried. The paper's trade-off:
lower values spread load more evenly, higher ones keep more adapters on their first replica."""


def rank_replicas(
    adapter_key: str, loads: Mapping[str, float], *, bound: float = LOAD_BOUND
) -> list[str]:
    """All replicas in the order in which to try them.

    Args:
        adapter_key: the adapter that the replica should have; empty for the bare base.
        loads: current load of each replica, in any one unit; NaN and negative values count as 0.
    """
    known = {name: load if load > 0 else 0.0 for name, load in loads.items()}
    if not adapter_key:
        return sorted(known, key=lambda name: (known[name], name))
    order = sorted(known, key=lambda name: _score(adapter_key, name), reverse=True)
    # the new request counts too, so that an idle cluster uses the adapter's first replica
    share = math.ceil(bound * (sum(known.values()) + 1) / max(1, len(known)))
    at_home = [name for name in order if known[name] < share]
    return at_home + sorted((name for name in order if known[name] >= share), key=known.__getitem__)


def _score(adapter_key: str, replica: str) -> bytes:
    return hashlib.blake2b(f"{adapter_key}\0{replica}".encode(), digest_size=8).digest()


def wanted_replicas(num_running: int, backlog_s: float, target_s: float) -> float:
    """Replicas that would finish the backlog in the target time.

    Args:
        backlog_s: seconds of work for one replica, summed over all running replicas.
        target_s: the targeted longest wait of an image.
    """
    if not math.isfinite(backlog_s) or backlog_s < 0:
        return float(num_running)
    return backlog_s / target_s
