"""Imported at the start of every Python process of a campaign: its clock can jump, its lane's pace
is set, and a NaN can be written into a slot that is training.

``FARM_CHAOS_STATE`` names a JSON file with the clocks' offsets in seconds by scope (``clock``) and
the seconds that a lane waits after each step (``pace_s``). ``FARM_CHAOS_SCOPE`` is this process's
scope. SIGUSR1 writes the NaN; after SIGUSR2, a lane writes its name in the ledger to ``lane-<pid>``
beside that file.
"""

import contextlib
import importlib.machinery
import json
import os
import random
import signal
import sys
import threading
import time

READ_S = 0.5
LANE_MODULE = "farm.training.lane.lane"
LANES_MODULE = "farm.training.cluster.lanes.backend"


class State:
    """The file's content, read again after a while."""

    def __init__(self, path):
        self._path, self._content, self._read = path, {}, -READ_S

    def get(self, name, default):
        if time.monotonic() - self._read >= READ_S:
            self._read = time.monotonic()
            with contextlib.suppress(OSError, ValueError), open(self._path) as file:
                self._content = json.load(file)
        return self._content.get(name, default)


def wrap_clock(state, scope):
    real = time.time

    def shifted():
        return real() + state.get("clock", {}).get(scope, 0.0)

    # so that it is pickled by its name, not with the real clock in it
    shifted.__module__, shifted.__name__, shifted.__qualname__ = "time", "time", "time"
    time.time = shifted


class PaceFinder:
    """Lets lanes wait after each step: jobs last long enough to be hit, and cost no CPU time."""

    def __init__(self, state):
        self._state = state

    def find_spec(self, name, path=None, target=None):
        if name != LANE_MODULE:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        execute = spec.loader.exec_module

        def execute_and_wrap(module):
            execute(module)
            self._wrap(module.Lane)

        spec.loader.exec_module = execute_and_wrap
        return spec

    def _wrap(self, lane_class):
        step = lane_class._step

        def step_and_wait(lane, trainer):
            step(lane, trainer)
            time.sleep(self._state.get("pace_s", 0.0))

        lane_class._step = step_and_wait


def this_lane():
    # the signal may come while the module is imported
    lanes = getattr(sys.modules.get(LANES_MODULE), "lane_of_process", None)
    return lanes[0] if lanes else None


def write_name(*_):
    lane = this_lane()
    name = f"{lane._table.lane}#{lane._table.incarnation}" if lane is not None else ""
    path = os.path.join(os.path.dirname(os.environ["FARM_CHAOS_STATE"]), f"lane-{os.getpid()}")
    with open(path + ".new", "w") as file:
        file.write(name)
    os.replace(path + ".new", path)


def write_nan(*_):
    lane = this_lane()
    trainer = lane._pool.trainer if lane is not None else None
    if trainer is not None and trainer.active_slots:
        slot = random.choice(list(trainer.active_slots))
        trainer.bank.flat_ZP.data[slot, 0] = float("nan")


if "FARM_CHAOS_STATE" in os.environ:
    shared = State(os.environ["FARM_CHAOS_STATE"])
    wrap_clock(shared, os.environ.get("FARM_CHAOS_SCOPE", ""))
    sys.meta_path.insert(0, PaceFinder(shared))
    os.nice = lambda increment: 0  # a campaign has one priority: nothing of it starves the rest
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGUSR1, write_nan)
        signal.signal(signal.SIGUSR2, write_name)
