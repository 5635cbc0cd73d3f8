"""What the dispatcher costs at scale: real dispatcher, ledger and store, lanes that only pretend.

    python benchmarks/cluster/scale.py --jobs 1000000 --lanes 1000
    python benchmarks/cluster/scale.py --jobs 100000 --lanes 100 --against ../earlier-checkout

Simulated lanes train in virtual time: every job takes its steps, checkpoints are kept, and lanes
are lost to a Poisson trace of spot preemptions and replaced after a delay. Everything that the
dispatcher does is real and is timed in CPU seconds of its thread. At the end the run is restarted
from the store, and `farm status` is computed, of a live run and of one that was killed.
``--exchanges`` ends the simulation early; sums over the whole run are then left out.
``--against`` times the same exchanges with another checkout's dispatcher, in its own process.

Writes ``scale-<jobs>x<lanes>-<n>cpu-<date>.md`` into ``benchmarks/``.
"""

from __future__ import annotations

import argparse
import datetime
import heapq
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from scale_lanes import CHECKPOINT_STEPS, JOB_S, REPLACED_S, SLOTS, STEPS, FakeLane, make_jobs

from farm.locks import StoreLock
from farm.storage import Store
from farm.training.dispatch.dispatcher import Dispatcher
from farm.training.dispatch.ledger import Ledger
from farm.training.dispatch.messages import DispatchSettings

HERE = Path(__file__).parents[1]
RUN = "scale"


@dataclass
class Timer:
    """CPU seconds of calls in this thread."""

    calls: list[float] = field(default_factory=list)

    def __enter__(self) -> None:
        self._began = time.thread_time()

    def __exit__(self, *_: object) -> None:
        self.calls.append(time.thread_time() - self._began)

    def mean(self) -> float:
        return sum(self.calls) / max(1, len(self.calls))

    def at(self, share: float) -> float:
        return sorted(self.calls)[min(len(self.calls) - 1, int(share * len(self.calls)))]


@dataclass
class Outcome:
    """What a simulation measured."""

    exchange: Timer = field(default_factory=Timer)
    tick: Timer = field(default_factory=Timer)
    virtual_s: float = 0.0
    commits: int = 0
    losses: int = 0
    steps_trained: float = 0.0
    lane_s: float = 0.0
    is_done: bool = False


def simulate(
    dispatcher: Dispatcher,
    clock: list[float],
    *,
    lanes: int,
    beat_s: float,
    losses_per_hour: float,
    exchanges: int | None,
    seed: int = 0,
) -> Outcome:
    """Run lanes in virtual time until every job has ended, or for a number of exchanges."""
    rng, out, checkpoints = random.Random(seed), Outcome(), dict[str, int]()
    fleet = [FakeLane(str(number), at=clock[0]) for number in range(lanes)]
    begun = clock[0]
    due = [(begun + rng.uniform(0, beat_s), number) for number in range(lanes)]
    heapq.heapify(due)
    lost_at = [begun + rng.expovariate(losses_per_hour / 3600) for _ in fleet]
    next_tick = begun
    while due and (exchanges is None or len(out.exchange.calls) < exchanges):
        now, number = heapq.heappop(due)
        clock[0] = now
        while next_tick <= now:
            look(dispatcher, out)
            next_tick += beat_s / 2
        lane = fleet[number]
        if now >= lost_at[number]:
            out.losses += 1
            lane.train(lost_at[number], checkpoints, rng)
            lane.die()
            lost_at[number] = now + rng.expovariate(losses_per_hour / 3600)
            lane.at = now + REPLACED_S
            heapq.heappush(due, (lane.at, number))
            continue
        lane.train(now, checkpoints, rng)
        report = lane.report()
        out.commits += len(report.results)
        with out.exchange:
            orders = dispatcher.exchange(report)
        lane.obey(orders, checkpoints)
        out.lane_s += beat_s
        if not orders.leave or lane.held:
            heapq.heappush(due, (now + beat_s, number))
    dispatcher.tick()
    out.virtual_s = clock[0] - begun
    out.steps_trained = sum(lane.steps_trained for lane in fleet)
    out.is_done = dispatcher.is_done
    num_jobs = dispatcher.snapshot().num_jobs
    assert not out.is_done or num_jobs == out.commits, "a job was committed twice"
    return out


def look(dispatcher: Dispatcher, out: Outcome) -> None:
    """What the driver does twice a second."""
    with out.tick:
        dispatcher.tick()
        dispatcher.snapshot()
        dispatcher.news()


def rss() -> int:
    """Resident bytes of this process."""
    return int(psutil.Process().memory_info().rss)


def probe(url: str, lanes: int, exchanges: int) -> dict[str, float]:
    """Load a run from the store and time exchanges: with the calls that every version has."""
    from farm.training.run import files

    store, clock = Store(url), [1000.0]
    before, began = rss(), time.process_time()
    try:
        from farm.training.run.job_files import read_run_jobs

        jobs: Any = read_run_jobs(store, RUN)
    except ImportError:  # an earlier farm
        jobs = files.read_assignments(store, RUN)
    ledger = Ledger(store, f"{RUN}-{os.getpid()}", epoch=1, clock=lambda: clock[0])
    keys = list(jobs) if hasattr(jobs, "columns") else [item.spec.key for item in jobs]
    dispatcher = Dispatcher(
        jobs,
        ledger,
        resolution_px=512,
        committed=keys[: len(keys) // 2],  # what a run finds in its middle
        clock=lambda: clock[0],
    )
    start_s = time.process_time() - began
    out = simulate(
        dispatcher, clock, lanes=lanes, beat_s=20.0, losses_per_hour=0.05, exchanges=exchanges
    )
    return {
        "start_s": start_s,
        "bytes_per_job": (rss() - before) / len(jobs),
        "exchange_ms": out.exchange.mean() * 1e3,
        "tick_ms": out.tick.mean() * 1e3,
    }


def probe_in(checkout: Path, url: str, lanes: int, exchanges: int) -> dict[str, float]:
    """The same in a process of its own, with the farm of a checkout."""
    command = [sys.executable, __file__, "--probe", url]
    command += ["--lanes", str(lanes), "--exchanges", str(exchanges)]
    env = os.environ | {"PYTHONPATH": str(checkout)}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    facts: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return facts


def run_scale(
    folder: Path, jobs: int, lanes: int, *, exchanges: int | None, losses_per_hour: float
) -> tuple[dict[str, float], Outcome]:
    """Everything of one size; returns figures by name, and the simulation's outcome."""
    from farm.training.run.files import write_settings
    from farm.training.run.job_files import read_run_jobs
    from farm.training.run.status import run_status

    store, clock = Store(folder), [time.time()]
    facts: dict[str, float] = {}
    before, began = rss(), time.process_time()
    settings = DispatchSettings(lease_s=90.0)
    run = read_run_jobs(store, RUN)
    ledger = Ledger(store, RUN, epoch=1, clock=lambda: clock[0])
    dispatcher = Dispatcher(
        run, ledger, resolution_px=512, settings=settings, clock=lambda: clock[0]
    )
    facts["start_s"] = time.process_time() - began
    ledger.settle()
    facts["bytes_per_job"] = (rss() - before) / jobs
    out = simulate(
        dispatcher,
        clock,
        lanes=lanes,
        beat_s=20.0,
        losses_per_hour=losses_per_hour,
        exchanges=exchanges,
    )
    ledger.settle()
    facts["end_bytes_per_job"] = (rss() - before) / jobs
    expected = {job.key: job for job in dispatcher.jobs()}
    del dispatcher, ledger
    began = time.process_time()
    again = Ledger(store, RUN, epoch=2, clock=lambda: clock[0])
    facts["replay_s"] = time.process_time() - began
    assert again.jobs == expected, "the ledger replays to another state"
    del again, expected
    write_settings(store, RUN, {})
    lock = StoreLock.take(store, f"runs/{RUN}/drivers", ttl_s=600.0)
    assert lock is not None
    for name in ("status_s", "status_left_s"):
        began = time.process_time()
        run_status(store, RUN)
        facts[name] = time.process_time() - began
        lock.release()
    return facts, out


def page(
    arguments: argparse.Namespace,
    facts: dict[str, float],
    out: Outcome,
    pair: tuple[dict[str, float], dict[str, float]] | None,
) -> str:
    """The page, in Markdown."""
    jobs, lanes = arguments.jobs, arguments.lanes
    rows = _rows(facts, out)
    lines = [
        f"# Dispatcher at {jobs:,} jobs and {lanes:,} lanes",
        "",
        f"{datetime.date.today()}, {os.cpu_count()} CPU cores shared with other work,"
        f" local folder as the store, Python {sys.version.split()[0]}."
        " CPU time of the dispatcher's thread;"
        f" `python {_command(arguments)}`.",
        "",
        "| | measured | wanted |",
        "|---|---|---|",
        *(f"| {name} | {value} | {wanted} |" for name, value, wanted in rows),
        "",
        f"{len(out.exchange.calls):,} exchanges and {len(out.tick.calls):,} ticks over"
        f" {out.virtual_s / 3600:.2f} virtual hours; {out.commits:,} jobs committed;"
        f" {out.losses} lanes lost.",
    ]
    if out.is_done:
        lines += ["", *_economy(jobs, lanes, out, arguments.spot_price)]
    else:
        lines += ["", "The simulation was ended before the run was done (`--exchanges`)."]
    if pair is not None:
        lines += ["", *_ratios(arguments, *pair)]
    return "\n".join(lines) + "\n"


def _command(arguments: argparse.Namespace) -> str:
    """The command line, without the path of the other checkout."""
    words = [
        "EARLIER-CHECKOUT" if word == str(arguments.against) else word for word in sys.argv[1:]
    ]
    return " ".join(["benchmarks/cluster/scale.py", *words])


def _rows(facts: dict[str, float], out: Outcome) -> list[tuple[str, str, str]]:
    status, left = f"{facts['status_s']:.2f} s", f"{facts['status_left_s']:.1f} s"
    rows = [
        ("exchange, mean", f"{out.exchange.mean() * 1e6:.0f} µs", "500 µs"),
        ("exchange, 99 %", f"{out.exchange.at(0.99) * 1e6:.0f} µs", ""),
        ("tick and snapshot, mean", f"{out.tick.mean() * 1e3:.2f} ms", "5 ms"),
        ("tick and snapshot, 99 %", f"{out.tick.at(0.99) * 1e3:.2f} ms", ""),
        ("tick and snapshot, worst", f"{out.tick.at(1) * 1e3:.1f} ms", ""),
        ("start: jobs read, ledger begun, queues filled", f"{facts['start_s']:.1f} s", ""),
        ("memory after the start", f"{facts['bytes_per_job']:,.0f} B a job", "2,000 B"),
        ("memory at the end", f"{facts['end_bytes_per_job']:,.0f} B a job", "2,000 B"),
        ("restart: state file and later segments replayed", f"{facts['replay_s']:.1f} s", "10 s"),
        ("`farm status` of a live run, without the interpreter's start", status, "2 s"),
        ("`farm status` after a kill: state file and later segments", left, ""),
    ]
    spent_s = sum(out.exchange.calls) + sum(out.tick.calls)
    rows.append(
        (
            "dispatcher's CPU time per committed job",
            f"{spent_s / max(1, out.commits) * 1e6:.0f} µs",
            "",
        )
    )
    return rows


def _economy(jobs: int, lanes: int, out: Outcome, spot_price: float) -> list[str]:
    ideal_s = jobs * JOB_S / (lanes * SLOTS)
    lost = out.steps_trained - jobs * STEPS
    trained_s = jobs * JOB_S / SLOTS
    cost = out.lane_s * spot_price / trained_s
    spent_s = sum(out.exchange.calls) + sum(out.tick.calls)
    return [
        "Every job was committed exactly once.",
        "",
        "| of the run | |",
        "|---|---|",
        f"| throughput | {jobs / out.virtual_s * 3600:,.0f} jobs an hour,"
        f" {ideal_s / out.virtual_s:.1%} of {lanes:,} lanes of {SLOTS} slots without losses,"
        " waiting or an uneven end |",
        f"| overhead per job | {spent_s / jobs * 1e6:.0f} µs of the dispatcher's CPU time, and"
        f" {(out.lane_s - trained_s) / jobs:.2f} s of a lane's time lost, idle or repeated, beside"
        f" {JOB_S / SLOTS:.0f} s of training |",
        f"| lost work | {lost:,.0f} steps trained twice, {lost / (jobs * STEPS):.2%} of all"
        f" ({lost / max(1, out.losses):,.0f} for each of {out.losses} lanes lost; a checkpoint"
        f" every {CHECKPOINT_STEPS} steps, {SLOTS} jobs in a lane) |",
        f"| cost against on-demand | {cost:.0%}, with spot at {spot_price:.0%} of the on-demand"
        " price and lost, idle and repeated time paid for |",
    ]


def _ratios(
    arguments: argparse.Namespace, before: dict[str, float], after: dict[str, float]
) -> list[str]:
    names = {
        "start_s": "start, s",
        "bytes_per_job": "memory, B a job",
        "exchange_ms": "exchange, ms",
        "tick_ms": "tick and snapshot, ms",
    }
    return [
        f"## Before and after, {arguments.against_jobs:,} jobs and {arguments.lanes:,} lanes",
        "",
        "The same jobs and exchanges, half of the jobs already committed, with the dispatcher of an"
        " earlier checkout and with this one, in one run. Four exchanges of each lane; in the first"
        " it receives eight jobs.",
        "",
        "| | before | after | ratio |",
        "|---|---|---|---|",
        *(
            f"| {text} | {before[name]:,.3f} | {after[name]:,.3f}"
            f" | {before[name] / after[name]:.1f} |"
            for name, text in names.items()
        ),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=10_000)
    parser.add_argument("--lanes", type=int, default=100)
    parser.add_argument("--exchanges", type=int, help="end the simulation after this many")
    parser.add_argument("--losses", type=float, default=0.05, help="per lane and hour")
    parser.add_argument("--spot-price", type=float, default=0.35, help="share of on-demand")
    parser.add_argument("--against", type=Path, help="a checkout to compare with")
    parser.add_argument("--against-jobs", type=int, default=20_000)
    parser.add_argument("--out", type=Path, default=HERE)
    parser.add_argument("--probe", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.probe:
        print(json.dumps(probe(arguments.probe, arguments.lanes, arguments.exchanges)))
        return
    from farm.training.run.job_files import write_assignments

    with tempfile.TemporaryDirectory() as folder:
        pair = None
        if arguments.against is not None:
            url = f"{folder}/pair"
            write_assignments(Store(url), RUN, make_jobs(arguments.against_jobs))
            trees = (arguments.against.resolve(), HERE.parent)
            before, after = (
                probe_in(tree, url, arguments.lanes, 4 * arguments.lanes) for tree in trees
            )
            pair = before, after
        write_assignments(Store(folder), RUN, make_jobs(arguments.jobs))
        facts, out = run_scale(
            Path(folder),
            arguments.jobs,
            arguments.lanes,
            exchanges=arguments.exchanges,
            losses_per_hour=arguments.losses,
        )
    text = page(arguments, facts, out, pair)
    name = f"scale-{arguments.jobs}x{arguments.lanes}-{os.cpu_count()}cpu-{datetime.date.today()}"
    (arguments.out / f"{name}.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
