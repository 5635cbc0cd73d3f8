"""Random kills of the endpoint on Ray under callers; every image is compared.

    python benchmarks/serving/chaos_serve.py --kills 100 --seed 1 --callers 20 --think 3

Runs ``farm serve --ray`` and kills engines, ingresses and proxies with -9, sometimes two at once;
at intervals the endpoint receives SIGTERM under load and is started again. Each image is
compared with the same image generated alone by other code. ``--minutes`` or SIGTERM ends the
campaign early. Exits 1 after a wrong image, a request without a response, a 5xx other than an
honest 503 (JSON, ``Retry-After``), or a broken connection that neither a killed proxy nor a restart
explains. Writes ``chaos-serve-<date>.md`` after every kill.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import httpx2
import psutil
import torch
from chaos_callers import Caller, Outcome
from serve_soak import Studio, nearest_pictures

from farm.storage import Store

TITLES = {
    "engine": "ray::ServeReplica:farm:engine",
    "ingress": "ray::ServeReplica:farm:ingress",
    "proxy": "ray::ProxyActor",
}
WEIGHTS = {"engine": 4, "ingress": 4, "proxy": 2}
BOTH_AT_ONCE = 0.15
"""Share of kills that take two processes."""
RECOVER_S = 240.0
"""An endpoint that cannot generate after this long has not recovered."""
COMPLETE_S = 8.0
"""After this long the next kill comes, even if processes are still starting."""
GOOD = {"right", "listed", "unavailable"}


@dataclass
class Event:
    """One kill or drain."""

    kind: str
    at_s: float
    ready_s: float | None = None
    """Until the endpoint could generate again; None if it did not."""
    complete_s: float | None = None
    """Until all processes ran again; None if the next kill came first."""


@dataclass(frozen=True)
class Gap:
    """A time in which something is expected: ``proxy``, connections are cut or refused until a dead
    proxy is replaced; ``stopped``, the same between two starts; ``drain``, 503s until the end."""

    kind: str
    start_s: float
    end_s: float

    def covers(self, outcome: Outcome) -> bool:
        """Whether the request ran in it."""
        return self.start_s <= outcome.at_s + outcome.took_s and outcome.at_s <= self.end_s


@dataclass
class Campaign:
    """What happened."""

    events: list[Event] = field(default_factory=list)
    outcomes: list[Outcome] = field(default_factory=list)
    gaps: list[Gap] = field(default_factory=list)
    drain_exits: list[int] = field(default_factory=list)


class Endpoint:
    """``farm serve --ray`` in its own processes."""

    def __init__(self, root: Path, store: Store, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self._log = root / "serve.log"
        config = root / "serve.yaml"
        config.write_text(
            "engine: {num_slots: 9, max_rank: 8, batch_rows: 8}\n"
            "limits: {pictures_per_minute: 1000000, pictures_waiting: 1000}\n"
            "replicas: {cpus_per_engine: 0.4, cpus_per_ingress: 0.2, stats_every_s: 0.5}\n"
            f"cache_folder: {root / 'disk'}\n"
        )
        self._command = [
            *(sys.executable, "-c", "from farm.cli import main; main()", "serve", "--ray"),
            *("--engines", "2", "--base", "tiny", "--store", store.url, "--port", str(port)),
            *("--config", str(config), "--start-timeout", "300"),
        ]
        self._environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("RAY_")},
            "RAY_TMPDIR": str(root / "r"),
            "RAY_worker_niceness": "0",
            "RAY_USAGE_STATS_ENABLED": "0",
            "OMP_NUM_THREADS": "1",
            # Ray's statistics take a share of the core that generates the images
            "REPORTER_UPDATE_INTERVAL_MS": "60000",
            "METRICS_RECORD_INTERVAL_S": "60",
        }
        (root / "r").mkdir(exist_ok=True)
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, and wait until it serves."""
        num_starts = self._num_starts()
        with open(self._log, "ab") as log:
            self._process = subprocess.Popen(
                self._command, env=self._environment, stdout=log, stderr=log
            )
        until_s = time.monotonic() + 400
        while self._num_starts() == num_starts or not self.is_complete():
            if self._process.poll() is not None or time.monotonic() > until_s:
                raise RuntimeError(self.output())
            time.sleep(0.5)

    def _num_starts(self) -> int:
        return self.output().count(" at http://")

    def stop(self) -> int:
        """Send SIGTERM and wait; returns the exit status."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        return self._process.wait(240)

    def output(self) -> str:
        """Everything that it printed."""
        return self._log.read_text() if self._log.exists() else ""

    def pids(self, kind: str) -> list[int]:
        """The processes of a kind that have begun to serve."""
        assert self._process is not None
        found = []
        with suppress(psutil.NoSuchProcess):
            for process in psutil.Process(self._process.pid).children(recursive=True):
                with suppress(psutil.Error):
                    if (process.cmdline() or [""])[0].startswith(TITLES[kind]):
                        found.append(process.pid)
        return found

    def is_complete(self) -> bool:
        """Whether every process is there and images can be generated."""
        counts = {kind: len(self.pids(kind)) for kind in TITLES}
        if counts["engine"] < 2 or counts["ingress"] < 2 or counts["proxy"] < 1:
            return False
        return self.is_ready()

    def is_ready(self) -> bool:
        """Whether images can be generated."""
        with suppress(httpx2.HTTPError, ValueError):
            answer = httpx2.get(f"{self.url}/ready", timeout=10)
            return answer.status_code == 200
        return False


def kill_some(endpoint: Endpoint, dice: random.Random) -> str:
    """Kill one process or two with -9; returns their kinds."""
    count = 2 if dice.random() < BOTH_AT_ONCE else 1
    kinds = dice.choices(list(WEIGHTS), list(WEIGHTS.values()), k=count)
    killed = []
    for kind in sorted(kinds):
        alive = endpoint.pids(kind)
        if alive:
            with suppress(ProcessLookupError):
                os.kill(dice.choice(alive), signal.SIGKILL)
                killed.append(kind)
    return " and ".join(killed)


def run(options: argparse.Namespace, root: Path) -> list[str]:
    """Run the campaign and write its page; returns all problems."""
    store, expected = Store(root / "store"), root / "expected"
    studio = Studio(store, expected, "tiny")
    for _ in range(options.adapters):
        studio.publish()
    nearest = nearest_pictures(expected)
    campaign, dice = Campaign(), random.Random(options.seed)
    endpoint, stop = Endpoint(root, store, options.port), threading.Event()
    endpoint.start()
    threads = _start_callers(options, endpoint.url, expected, campaign, stop)
    until_s = time.time() + 60 * options.minutes
    enough = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: enough.set())
    faults: list[str] = []

    def write() -> None:
        faults[:] = judge(campaign, endpoint.output())
        day = f"{datetime.now(UTC):%Y-%m-%d}"
        text = page(campaign, faults, nearest, options)
        (options.out / f"chaos-serve-{day}.md").write_text(text)

    try:
        while len(campaign.events) < options.kills and time.time() < until_s:
            if enough.is_set():
                break
            time.sleep(dice.uniform(0.5, 4.0))
            is_drain = (len(campaign.events) + 1) % options.drain_every == 0
            _drain(endpoint, campaign) if is_drain else _kill(endpoint, campaign, dice)
            print(campaign.events[-1], len(campaign.outcomes), flush=True)
            write()
    finally:
        stop.set()
        for thread in threads:
            thread.join(200)
        campaign.drain_exits.append(endpoint.stop())
        write()
    print(json.dumps(endpoint.output().splitlines()[-40:], indent=1))
    return faults


def _start_callers(
    options: argparse.Namespace,
    url: str,
    expected: Path,
    campaign: Campaign,
    stop: threading.Event,
) -> list[threading.Thread]:
    """Threads that send requests until ``stop`` is set."""
    write = campaign.outcomes.append  # atomic
    threads = []
    for number in range(options.callers):
        caller = Caller(url, expected, write, number, think_s=options.think)
        threads.append(threading.Thread(target=caller.run, args=(stop,)))
        threads[-1].start()
    return threads


def _kill(endpoint: Endpoint, campaign: Campaign, dice: random.Random) -> None:
    event = Event("", time.time())
    event.kind = kill_some(endpoint, dice)
    campaign.events.append(event)
    time.sleep(0.3)
    while event.ready_s is None and time.time() < event.at_s + RECOVER_S:
        if endpoint.is_ready():
            event.ready_s = time.time() - event.at_s
        time.sleep(0.2)
    if "proxy" in event.kind:
        campaign.gaps.append(Gap("proxy", event.at_s, time.time()))
    while event.complete_s is None and time.time() < event.at_s + COMPLETE_S:
        if endpoint.is_complete():
            event.complete_s = time.time() - event.at_s
        time.sleep(0.5)


def _drain(endpoint: Endpoint, campaign: Campaign) -> None:
    event = Event("drain", time.time())
    campaign.events.append(event)
    campaign.drain_exits.append(endpoint.stop())
    ended_s = time.time()
    endpoint.start()
    event.ready_s = event.complete_s = time.time() - event.at_s
    campaign.gaps.append(Gap("drain", event.at_s, ended_s))
    # the proxies end some seconds before the command
    campaign.gaps.append(Gap("stopped", ended_s - 15.0, time.time()))


# -- the page ------------------------------------------------------------------------------------


def judge(campaign: Campaign, output: str) -> list[str]:
    """All problems."""
    faults = [f"not recovered: {event}" for event in campaign.events if event.ready_s is None]
    faults += [f"exit status {status}" for status in campaign.drain_exits if status]
    for outcome in list(campaign.outcomes):
        if outcome.verdict == "cut" and _is_in(outcome, campaign, "proxy", "stopped"):
            continue
        if outcome.verdict not in GOOD:
            faults.append(f"{outcome}")
    noise = re.findall(r".*(?:infinite|worker died|RayActorError|Traceback).*", output)
    return faults + [f"on the terminal: {line}" for line in noise]


def _is_in(outcome: Outcome, campaign: Campaign, *kinds: str) -> bool:
    return any(gap.kind in kinds and gap.covers(outcome) for gap in campaign.gaps)


def page(campaign: Campaign, faults: list[str], nearest: float, options: argparse.Namespace) -> str:
    """The campaign's page."""
    outcomes = list(campaign.outcomes)  # callers still add to it
    verdicts = Counter(outcome.verdict for outcome in outcomes)
    images = [outcome for outcome in outcomes if outcome.num_images]
    took = sorted(outcome.took_s for outcome in images) or [0.0]
    largest = max((outcome.difference for outcome in images), default=0.0)
    unavailable = [one for one in outcomes if one.verdict == "unavailable"]
    at_drains = sum(_is_in(one, campaign, "drain", "stopped") for one in unavailable)
    cut = [one for one in outcomes if one.verdict == "cut"]
    while_stopped = sum(_is_in(one, campaign, "stopped") for one in cut)
    minutes = (max(o.at_s for o in outcomes) - campaign.events[0].at_s) / 60
    others = "\n".join(f"| {name} | {count} |" for name, count in sorted(verdicts.items()))
    return (
        f"""# Kills of the endpoint on Ray, {datetime.now(UTC):%Y-%m-%d}

{platform.machine()}, {os.cpu_count()} cores shared with other work (load average \
{os.getloadavg()[2]:.1f}), Python {platform.python_version()}, torch {torch.__version__}; base \
`tiny`, `farm serve --ray --engines 2` with 2 ingresses and 1 proxy on one node, \
{options.callers} callers that wait {options.think:g} s on average between two requests: `python \
benchmarks/serving/chaos_serve.py --callers {options.callers} --think {options.think:g} --seed \
{options.seed}`. Times on this busy machine are not those of a cluster: most of a recovery is the \
start of a Python process.

- {len(campaign.events)} kills and drains in {minutes:.0f} minutes, \
{len(outcomes)} requests, {sum(o.num_images for o in images)} images compared
- wrong images: {verdicts["wrong"]}; requests without a response after 120 s: {verdicts["hung"]}
- 5xx other than an honest 503: {verdicts["error"]}
- honest 503 (JSON, `Retry-After`): {verdicts["unavailable"]}, of these {at_drains} during drains
- connections cut or refused: {verdicts["cut"]}, of these {while_stopped} between a drain's end \
and the next start, and the others while the only proxy was dead
- largest mean difference from the image generated alone: {largest:.3f} of 255 levels; the two \
most similar adapters differ by {nearest:.1f}
- seconds per image request: median {statistics.median(took):.2f}, worst {took[-1]:.1f}
- faults: {len(faults)}

| killed | times | seconds until `/ready` again, median | worst | all processes ran again before \
the next kill |
|---|---|---|---|---|
{_rows(campaign)}

| outcome | requests |
|---|---|
{others}

{chr(10).join(f"- {fault}" for fault in faults[:50])}
""".rstrip()
        + "\n"
    )


def _rows(campaign: Campaign) -> str:
    """One line of the table for each kind of kill."""
    rows = []
    for kind in sorted({event.kind for event in campaign.events}):
        events = [event for event in campaign.events if event.kind == kind]
        times = [event.ready_s for event in events if event.ready_s]
        middle, worst = (statistics.median(times), max(times)) if times else (0.0, 0.0)
        complete = sum(event.complete_s is not None for event in events)
        rows.append(f"| {kind} | {len(events)} | {middle:.1f} | {worst:.1f} | {complete} |")
    return "\n".join(rows)


def main() -> None:
    """Run the campaign and write its page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--callers", type=int, default=20)
    parser.add_argument("--think", type=float, default=3.0, help="mean s between two requests")
    parser.add_argument("--adapters", type=int, default=6)
    parser.add_argument("--drain-every", type=int, default=20, help="every n-th is a drain")
    parser.add_argument("--minutes", type=float, default=600, help="end earlier, after this long")
    parser.add_argument("--port", type=int, default=18790)
    parser.add_argument("--out", type=Path, default=Path("benchmarks"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="chaos-serve-", dir="/tmp") as folder:
        faults = run(options, Path(folder))
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    main()
