"""Imported at the start of every Python process of a campaign: its clock can jump, and a NaN can be
written into a slot that is training.

``FARM_CHAOS_CLOCK`` names a JSON file with the clock's offset in seconds by scope, and
``FARM_CHAOS_SCOPE`` is this process's scope. SIGUSR1 writes the NaN; after SIGUSR2, a lane writes
its name in the ledger to ``lane-<pid>`` beside the clock's file.
"""

import contextlib
import json
import os
import random
import signal
import sys
import threading
import time

READ_S = 0.5


def wrap_clock(path, scope):
    real, monotonic = time.time, time.monotonic
    state = {"offset": 0.0, "read": -READ_S}

    def shifted():
        if monotonic() - state["read"] >= READ_S:
            state["read"] = monotonic()
            with contextlib.suppress(OSError, ValueError), open(path) as file:
                state["offset"] = json.load(file).get(scope, 0.0)
        return real() + state["offset"]

    # so that it is pickled by its name, not with the real clock in it
    shifted.__module__, shifted.__name__, shifted.__qualname__ = "time", "time", "time"
    time.time = shifted


def this_lane():
    module = sys.modules.get("farm.training.cluster.ray_train")
    return module._lane[0] if module is not None and module._lane else None


def write_name(*_):
    lane = this_lane()
    name = f"{lane._table.lane}#{lane._table.incarnation}" if lane is not None else ""
    path = os.path.join(os.path.dirname(os.environ["FARM_CHAOS_CLOCK"]), f"lane-{os.getpid()}")
    with open(path + ".new", "w") as file:
        file.write(name)
    os.replace(path + ".new", path)


def write_nan(*_):
    lane = this_lane()
    trainer = lane._pool.trainer if lane is not None else None
    if trainer is not None and trainer.active_slots:
        slot = random.choice(list(trainer.active_slots))
        trainer.bank.flat_ZP.data[slot, 0] = float("nan")


if "FARM_CHAOS_CLOCK" in os.environ:
    wrap_clock(os.environ["FARM_CHAOS_CLOCK"], os.environ.get("FARM_CHAOS_SCOPE", ""))
    os.nice = lambda increment: 0  # a campaign has one priority: nothing of it starves the rest
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGUSR1, write_nan)
        signal.signal(signal.SIGUSR2, write_name)
