"""The kinds of faults, and how each is injected into a round.

A fault that lasts is ended by ``Pending``: the round calls it when its time has come.
"""

from __future__ import annotations

import random
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from subprocess import Popen
from typing import TYPE_CHECKING

import psutil

from support.chaos.ledger_view import Fault
from support.manifests import write_photo

if TYPE_CHECKING:
    from support.chaos.round import Round

LANE, CONTROLLER, DISPATCHER = "RayTrainWorker", "TrainController", "DispatchActor"


@dataclass
class Pending:
    """The end of a fault that lasts."""

    due: float
    end: Callable[[], None]


def kill_driver(round_: Round) -> Fault | None:
    """The supervisor, or a person, starts it again."""
    driver = round_.driver
    if driver is None or driver.poll() is not None:
        return None
    fault = _general("driver killed", round_)
    _kill(driver)
    return fault


def kill_lane(round_: Round) -> Fault | None:
    """Ray Train replaces the worker."""
    found = round_.cluster.pick(LANE)
    if found is None:
        return None
    fault = _of_lanes("lane killed", round_, [found[1]])
    found[1].kill()
    return fault


def pause_lane(round_: Round) -> Fault | None:
    """As when a virtual machine is moved."""
    found = round_.cluster.pick(LANE)
    if found is None:
        return None
    process, lasts = found[1], random.uniform(3, 15)
    process.send_signal(signal.SIGSTOP)

    def end() -> None:
        if process.is_running():
            process.send_signal(signal.SIGCONT)

    return _lasting("lane paused", round_, lasts, end)


def kill_controller(round_: Round) -> Fault | None:
    """Ray Train's controller of one node's lanes; its lanes die with it."""
    found = round_.cluster.pick(CONTROLLER)
    if found is None:
        return None
    fault = _general("controller killed", round_)
    found[1].kill()
    return fault


def kill_dispatcher(round_: Round) -> Fault | None:
    """Ray restarts the actor, which reads the store."""
    found = round_.cluster.pick(DISPATCHER)
    if found is None:
        return None
    fault = _general("dispatcher killed", round_)
    found[1].kill()
    return fault


def kill_node(round_: Round) -> Fault | None:
    """All processes of a node at once; another node joins later."""
    name, lanes = _node_with_lanes(round_)
    if name is None:
        return None
    fault = _of_lanes("node killed", round_, lanes)
    round_.cluster.kill_node(name)
    round_.later(random.uniform(1, 6), round_.add_node)
    return fault


def drain(round_: Round) -> Fault | None:
    """A drain notice; the machine is gone at the deadline, and another one joins."""
    name, lanes = _node_with_lanes(round_)
    if name is None:
        return None
    seconds = random.uniform(25, 40)
    fault = _of_lanes("drain notice", round_, lanes)
    round_.cluster.drain_node(name, seconds)

    def remove() -> None:
        if name in round_.cluster.nodes:
            round_.cluster.kill_node(name)
            round_.add_node()

    round_.later(seconds, remove)
    return fault


def add_node(round_: Round) -> Fault | None:
    """A node more than planned joins."""
    if len(round_.cluster.nodes) > round_.cluster.num_nodes:
        return None
    round_.add_node()
    return Fault("node added", time.monotonic(), is_measured=False)


def kill_head(round_: Round) -> Fault | None:
    """The head's server dies; the driver ends, and the same command runs on a new cluster."""
    fault = _general("head killed", round_)
    round_.cluster.head.kill_gcs()
    round_.is_head_lost = True
    return fault


def refuse(round_: Round) -> Fault | None:
    """The store refuses connections."""
    if round_.store_is_failing:
        return None
    round_.proxy.refuse()
    return _outage("store refused", round_, round_.proxy.start)


def fail_in_mode(name: str, mode: str) -> Callable[[Round], Fault | None]:
    """The store fails in a mode of the proxy."""

    def inject(round_: Round) -> Fault | None:
        if round_.store_is_failing:
            return None
        round_.proxy.set_mode(mode)
        return _outage(name, round_, lambda: round_.proxy.set_mode("well"))

    return inject


def replace_photo(round_: Round) -> Fault | None:
    """A photo is another one for a while. The lane rejects its job; the next start trains it."""
    folders = [one for one in round_.manifest.parent.iterdir() if one.is_dir()]
    photo = next(iter(random.choice(folders).glob("*.png")))
    kept = photo.with_suffix(".kept")
    if kept.exists():
        return None
    shutil.copy(photo, kept)
    write_photo(photo, random.randrange(10**6))
    round_.later(random.uniform(4, 12), lambda: _restore(kept, photo))
    return Fault("photo replaced", time.monotonic(), is_measured=False)


def _restore(kept: Path, photo: Path) -> None:
    if kept.exists():
        kept.replace(photo)


def write_nan(round_: Round) -> Fault | None:
    """One weight of a slot becomes NaN; its job fails alone and trains again."""
    held = round_.ledger.held()
    found = round_.cluster.pick(LANE)
    if found is None or not held:
        return None
    found[1].send_signal(signal.SIGUSR1)
    return Fault("NaN in a slot", time.monotonic())


def jump_clock(round_: Round) -> Fault | None:
    """The clock of one machine jumps by up to two hours, and is corrected later."""
    scope = random.choice(["head", "driver", *round_.cluster.nodes])
    offset = random.choice([-1, 1]) * random.uniform(90, 7200)
    round_.cluster.set_clock(offset, scope)
    round_.later(random.uniform(5, 15), lambda: round_.cluster.set_clock(0.0))
    return _general("clock jump", round_)


HEAVY = {"driver killed", "head killed"}
"""Faults that take the whole run down: the next one waits until it trains again."""
KINDS: dict[str, tuple[float, Callable[[Round], Fault | None]]] = {
    "lane killed": (9, kill_lane),
    "lane paused": (9, pause_lane),
    "controller killed": (2.5, kill_controller),
    "dispatcher killed": (6, kill_dispatcher),
    "driver killed": (2, kill_driver),
    "node killed": (2.5, kill_node),
    "head killed": (1, kill_head),
    "drain notice": (2.5, drain),
    "node added": (2, add_node),
    "store refused": (8, refuse),
    "store slow": (8, fail_in_mode("store slow", "slow")),
    "store answers 503": (9, fail_in_mode("store answers 503", "503")),
    "torn transfers": (9, fail_in_mode("torn transfers", "torn")),
    "photo replaced": (7, replace_photo),
    "NaN in a slot": (9, write_nan),
    "clock jump": (8, jump_clock),
}
"""Weight and injection by kind. A fault costs CPU time by the processes that start after it, from
none to about a minute, so the costly kinds are rare."""


def deck_of(size: int) -> list[str]:
    """This many kinds by their weights, each at least once if there is room for all."""
    total = sum(weight for weight, _ in KINDS.values())
    counts = Counter({kind: max(1, int(size * KINDS[kind][0] / total)) for kind in KINDS})
    while counts.total() > size:
        counts[counts.most_common(1)[0][0]] -= 1
    while counts.total() < size:
        counts[max(KINDS, key=lambda kind: KINDS[kind][0] / (1 + counts[kind]))] += 1
    return list(counts.elements())


# -- what faults share --------------------------------------------------------------------------


def _kill(process: Popen[bytes]) -> None:
    process.kill()
    process.wait()


def _general(kind: str, round_: Round) -> Fault:
    return Fault(kind, time.monotonic(), is_measured=round_.ledger.num_open() != 0)


def _of_lanes(kind: str, round_: Round, processes: Sequence[psutil.Process]) -> Fault:
    """A fault of some lanes: it is over when their jobs train elsewhere."""
    names = {round_.cluster.lane_name(process) for process in processes} - {""}
    affected = {job: lane for job, lane in round_.ledger.held().items() if lane in names}
    return Fault(kind, time.monotonic(), affected, set(affected), is_measured=bool(affected))


def _outage(kind: str, round_: Round, end: Callable[[], None]) -> Fault:
    round_.store_is_failing = True

    def over() -> None:
        end()
        round_.store_is_failing = False

    return _lasting(kind, round_, random.uniform(2, 12), over)


def _lasting(kind: str, round_: Round, seconds: float, end: Callable[[], None]) -> Fault:
    round_.later(seconds, end)
    fault = _general(kind, round_)
    fault.at += seconds
    return fault


def _node_with_lanes(round_: Round) -> tuple[str | None, list[psutil.Process]]:
    found = round_.cluster.pick(LANE)
    if found is None or found[0] == "head":
        return None, []
    return found[0], [one for name, one in round_.cluster.processes(LANE) if name == found[0]]
