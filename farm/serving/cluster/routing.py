"""Which replica serves a request: the one that has its adapter, unless that one is too busy.

Owns the choice and nothing of how it is carried out; see ``app_router.py``. Rendezvous hashing
(Thaler and Ravishankar 1998) gives every adapter its own order of replicas, which changes little
when a replica comes or goes. A bound on the load (consistent hashing with bounded loads, Mirrokni
et al. 2018) passes an adapter on to its next replica while the first one is over its share: a hot
adapter so spreads over as many replicas as its heat needs, and back when it cools.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping

__all__ = ["LOAD_BOUND", "rank_replicas", "wanted_replicas"]

LOAD_BOUND = 1.25
"""A replica may have this much of the mean load before others are tried. The paper's trade: lower
spreads more evenly, higher keeps more adapters at home."""


def rank_replicas(
    adapter_key: str, loads: Mapping[str, float], *, bound: float = LOAD_BOUND
) -> list[str]:
    """All replicas in the order in which to try them.

    Args:
        adapter_key: what the replica should have at hand; empty for the bare base, which all have.
        loads: what each replica has to do already, in any one unit; NaN and negative count as 0.
    """
    known = {name: load if load > 0 else 0.0 for name, load in loads.items()}
    if not adapter_key:
        return sorted(known, key=lambda name: (known[name], name))
    order = sorted(known, key=lambda name: _score(adapter_key, name), reverse=True)
    # the request that is being placed counts too, so that an idle cluster takes it at home
    share = math.ceil(bound * (sum(known.values()) + 1) / max(1, len(known)))
    at_home = [name for name in order if known[name] < share]
    return at_home + sorted((name for name in order if known[name] >= share), key=known.__getitem__)


def _score(adapter_key: str, replica: str) -> bytes:
    return hashlib.blake2b(f"{adapter_key}\0{replica}".encode(), digest_size=8).digest()


def wanted_replicas(num_running: int, backlog_s: float, target_s: float) -> float:
    """Replicas that would finish the backlog in the target time.

    Args:
        backlog_s: seconds of work that all running replicas hold together, for one replica.
        target_s: longest wait of a picture to aim for.
    """
    if not math.isfinite(backlog_s) or backlog_s < 0:
        return float(num_running)
    return backlog_s / target_s
