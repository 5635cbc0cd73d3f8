"""Engines come under load and go after it, with ``serve deploy jobs/serve.yaml`` on a CPU cluster.

    python benchmarks/serving/serve_scaling.py --out benchmarks

Starts a Ray head, deploys ``jobs/serve.yaml`` with another store, base, sizes and delays, and sends
requests: calm, loaded until three engines run, calm until one is left. Every image is compared with
the same image generated alone. Each engine has room for a third of the adapters, so that requests
find theirs in the model only if the router keeps sending an adapter to the same engine. Exits 1
after a wrong image, an error, or if the engines did not come and go. Writes
``serve-scaling-<date>.md``.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import chaos_callers
import httpx2
import psutil
import serve_soak
import torch
import yaml
from chaos_callers import Caller, Outcome
from serve_soak import Studio, nearest_pictures

from farm.storage import Store

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests"))
from support.ray_head import BIN, Head, ray_head  # noqa: E402

ENGINE_TITLE = "ray::ServeReplica:farm:engine"
NUM_ADAPTERS = 9
SLOTS = 4
"""Three adapters and the bare base in each engine."""
MAX_ENGINES = 3
STEPS = 20
"""Denoising steps: enough that the engines, not the callers, are the bottleneck."""


@dataclass
class Phase:
    """One part of the run."""

    name: str
    callers: int
    started_s: float = 0.0
    ended_s: float = 0.0
    reached_s: float | None = None
    """Until the wanted number of engines ran."""
    outcomes: list[Outcome] = field(default_factory=list)


def write_config(root: Path, store: Store, port: int) -> Path:
    """``jobs/serve.yaml`` for this machine."""
    values = yaml.safe_load((ROOT / "jobs/serve.yaml").read_text())
    values["http_options"] |= {"host": "127.0.0.1", "port": port}
    application = values["applications"][0]
    application["runtime_env"]["env_vars"]["OMP_NUM_THREADS"] = "1"
    args = application["args"]
    args |= {"store": store.url, "base": "tiny", "dtype": "auto"}
    args |= {"cache_folder": str(root / "disk"), "anonymous_namespace": "default"}
    args["engine"] = {"num_slots": SLOTS, "batch_rows": 4, "max_rank": 8}
    args["limits"] |= {"pictures_per_minute": 1_000_000, "pictures_waiting": 1000}
    args["replicas"] |= {
        "max_engines": MAX_ENGINES,
        "gpus_per_engine": 0,
        "cpus_per_engine": 1,
        "cpus_per_ingress": 0.5,
        "target_wait_s": 0.3,
        "upscale_delay_s": 3,
        "downscale_delay_s": 15,
        "stats_every_s": 0.5,
    }
    file = root / "serve.yaml"
    file.write_text(yaml.safe_dump(values))
    return file


def engines(head: Head) -> int:
    """Engines of the cluster that have loaded the base."""
    count = 0
    for process in psutil.Process(head.process.pid).children(recursive=True):
        with suppress(psutil.Error):
            title = (process.cmdline() or [""])[0]
            # a process that still loads the base has the name of that call
            count += title.startswith(ENGINE_TITLE) and "initialize" not in title
    return count


def run_phase(
    phase: Phase, url: str, expected: Path, head: Head, *, until: int | None, seconds: float
) -> None:
    """Send requests for some seconds, and longer until as many engines run as wanted."""
    stop = threading.Event()
    callers = [Caller(url, expected, phase.outcomes.append, seed) for seed in range(phase.callers)]
    threads = [threading.Thread(target=caller.run, args=(stop,)) for caller in callers]
    phase.started_s = time.time()
    for thread in threads:
        thread.start()
    limit_s = phase.started_s + 240
    end_s = phase.started_s + seconds
    while time.time() < limit_s and (time.time() < end_s or phase.reached_s is None):
        time.sleep(0.5)
        if phase.reached_s is None and (until is None or engines(head) == until):
            phase.reached_s = time.time() - phase.started_s
            end_s = max(end_s, time.time() + seconds)
    stop.set()
    for thread in threads:
        thread.join(200)
    phase.ended_s = time.time()


def run(options: argparse.Namespace, root: Path) -> tuple[list[Phase], float]:
    """Deploy, run the phases, and return them."""
    store, expected = Store(root / "store"), root / "expected"
    studio = Studio(store, expected, "tiny")
    for _ in range(NUM_ADAPTERS):
        studio.publish()
    file = write_config(root, store, options.port)
    url = f"http://127.0.0.1:{options.port}"
    environment = {"RAY_worker_niceness": "0", "PYTHONPATH": str(ROOT)}
    environment |= {"FARM_CACHE": str(root / "cache")}
    with ray_head(num_cpus=8, env=environment) as head:
        subprocess.run(
            [str(BIN / "serve"), "deploy", str(file), "--address", head.dashboard],
            env=head.environment(RAY_AUTH_MODE="token"),
            check=True,
        )
        _await_ready(url)
        phases = [Phase("calm", 2), Phase("loaded", options.callers), Phase("calm again", 1)]
        for phase, until in zip(phases, (1, MAX_ENGINES, 1), strict=True):
            run_phase(phase, url, expected, head, until=until, seconds=options.seconds)
            print(phase.name, phase.reached_s, len(phase.outcomes), flush=True)
    return phases, nearest_pictures(expected)


def _await_ready(url: str) -> None:
    until_s = time.monotonic() + 300
    while time.monotonic() < until_s:
        with suppress(httpx2.HTTPError):
            if httpx2.get(f"{url}/ready", timeout=10).status_code == 200:
                return
        time.sleep(0.5)
    raise RuntimeError("the endpoint did not become ready")


# -- the page ------------------------------------------------------------------------------------


def describe(phase: Phase) -> dict[str, Any]:
    """A phase's numbers."""
    found = Counter(place for outcome in phase.outcomes for place in outcome.found_in)
    homes: dict[str, Counter[str]] = defaultdict(Counter)
    for outcome in phase.outcomes:
        homes[outcome.note].update(outcome.engines)
    at_home = sum(max(each.values()) for each in homes.values() if each)
    images = sum(outcome.num_images for outcome in phase.outcomes)
    return {
        "images": images,
        "rate": images / (phase.ended_s - phase.started_s),
        "hits": found["model"] / max(1, sum(found.values())),
        "home": at_home / max(1, images),
        "engines": len({engine for outcome in phase.outcomes for engine in outcome.engines}),
        "right": Counter(outcome.verdict for outcome in phase.outcomes),
    }


def page(phases: list[Phase], nearest: float, faults: list[str]) -> str:
    """The page."""
    rows = []
    for phase in phases:
        facts = describe(phase)
        reached = "never" if phase.reached_s is None else f"{phase.reached_s:.0f}"
        rows.append(
            f"| {phase.name} | {phase.callers} | {reached} | {facts['engines']} | "
            f"{facts['images']} | {facts['rate']:.1f} | {100 * facts['hits']:.0f} % | "
            f"{100 * facts['home']:.0f} % |"
        )
    verdicts = sum((describe(phase)["right"] for phase in phases), Counter())
    largest = max(outcome.difference for phase in phases for outcome in phase.outcomes)
    errors = sum(verdicts[name] for name in ("error", "hung", "cut"))
    chance = (SLOTS - 1) / NUM_ADAPTERS
    return (
        f"""# Engines under a changing load, {datetime.now(UTC):%Y-%m-%d}

{platform.machine()}, {os.cpu_count()} cores shared with other work (load average \
{os.getloadavg()[2]:.1f}), Python {platform.python_version()}, torch {torch.__version__}. \
`python benchmarks/serving/serve_scaling.py`: `serve deploy` of `jobs/serve.yaml` with the base \
`tiny`, 1 to {MAX_ENGINES} engines of 1 logical CPU, `target_wait_s` 0.3, `upscale_delay_s` 3, \
`downscale_delay_s` 15; {NUM_ADAPTERS} adapters, {SLOTS - 1} of them in an engine at once, {STEPS} \
steps an image. The two real cores are shared by all engines, so the rate does not grow with them.

| phase | callers | seconds until 1, {MAX_ENGINES}, 1 engines | engines that answered | images | \
images per second | adapter already in the model | from the adapter's main engine |
|---|---|---|---|---|---|---|---|
{chr(10).join(rows)}

- an engine chosen at random would have the adapter in {100 * chance:.0f} % of cases with a full \
cache ({SLOTS - 1} of {NUM_ADAPTERS}; computed)
- wrong images: {verdicts["wrong"]}; errors: {errors}; \
honest 503: {verdicts["unavailable"]}
- largest mean difference from the image generated alone: {largest:.3f} of 255 levels; the two \
most similar adapters differ by {nearest:.1f}

{chr(10).join(f"- {fault}" for fault in faults[:30])}
""".rstrip()
        + "\n"
    )


def main() -> None:
    """Run and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--callers", type=int, default=16, help="in the loaded phase")
    parser.add_argument("--seconds", type=float, default=25, help="of each phase, at least")
    parser.add_argument("--port", type=int, default=18795)
    parser.add_argument("--out", type=Path, default=Path("benchmarks"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    serve_soak.STEPS = chaos_callers.STEPS = STEPS
    with tempfile.TemporaryDirectory(prefix="scaling-", dir="/tmp") as folder:
        phases, nearest = run(options, Path(folder))
    faults = [
        f"{phase.name}: the engines did not change" for phase in phases if not phase.reached_s
    ]
    bad = ("wrong", "error", "hung", "cut")
    faults += [
        f"{outcome}" for phase in phases for outcome in phase.outcomes if outcome.verdict in bad
    ]
    text = page(phases, nearest, faults)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / f"serve-scaling-{datetime.now(UTC):%Y-%m-%d}.md").write_text(text)
    print(text)
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    main()
