"""Ten thousand hostile requests and two thousand hostile files, beside a client with good manners.

    python benchmarks/hostile.py --out benchmarks

Starts ``farm serve`` on the tiny base with keys and 1,024 open files. A good client measures its
latencies alone, then during the flood: bodies, paths, keys and raw bytes from the tests' own
generators, connections that drip or never read, and one that sends headers without end. Then
1,000 hostile photos in one manifest are checked by 16 threads, and 1,000 hostile manifests are
read. Exits 1 if there was a 5xx other than 503, a crash, or a bound was exceeded.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "tests"))

import httpx2  # noqa: E402
import psutil  # noqa: E402
from hostile_clients import GoodClient  # noqa: E402
from support.endpoint import publish  # noqa: E402
from support.hostile.files import NAMES, hostile_photo, hostile_zip  # noqa: E402
from support.hostile.manifests import hostile_manifest  # noqa: E402

from farm.base.loading import load_base  # noqa: E402
from farm.serving.access.api_keys import create_key  # noqa: E402
from farm.storage import Store  # noqa: E402

FARM = "from farm.cli import main; main()"
MAX_SERVER_GROWTH_MIB = 300
MAX_CHECK_MIB = 1536
MAX_SLOWDOWN = 3.0
MAX_MANIFEST_CPU_S = 10.0
"""With the photos that it names; a check takes a few seconds for a long one."""
PARTS = ("photos", "manifests", "requests")
"""Parts that are measured; the others are kept from the last run of the day."""


@contextmanager
def endpoint(folder: Path) -> Any:
    """``farm serve`` in a process of its own; gives its address, key and process."""
    store = Store(folder / "store")
    publish(store, load_base("tiny"), "rex", namespace="acme")
    publish(store, load_base("tiny"), "hidden", namespace="globex")
    key, _ = create_key(store, "acme", pictures_per_minute=1_000_000)
    good, _ = create_key(store, "globex", pictures_per_minute=1_000_000)
    (folder / "serve.yaml").write_text(
        "base: tiny\nengine: {num_slots: 4, batch_rows: 8}\n"
        "limits: {failed_keys_per_minute: 1000000}\n"
    )
    log = (folder / "log").open("w")
    command = [sys.executable, "-c", FARM, "serve", "--store", store.url, "--port", "0"]
    process = subprocess.Popen(
        [*command, "--config", str(folder / "serve.yaml")],
        stderr=log,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (1024, 1024)),
        env={**os.environ, "FARM_CACHE": str(folder / "cache")},
    )
    try:
        yield _address(folder / "log", process), key, good, psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait(60)


def _address(log: Path, process: subprocess.Popen[bytes]) -> str:
    until_s = time.monotonic() + 300
    while time.monotonic() < until_s and process.poll() is None:
        for word in log.read_text().split():
            if word.startswith("http://127.0.0.1:"):
                return word.rstrip(".,/")
        time.sleep(0.5)
    raise RuntimeError(f"the endpoint did not start: {log.read_text()}")


def measure_requests(folder: Path, num_requests: int, idle_s: float) -> dict[str, Any]:
    """The flood, and what the good client saw of it."""
    with endpoint(folder) as (url, key, good_key, process):
        with GoodClient(url, good_key) as good:
            time.sleep(5.0)  # first images compile and load
            before = process.memory_info().rss
            idle = good.listen(idle_s)
            arguments = [sys.executable, str(HERE / "hostile_clients.py"), url, key]
            clients = subprocess.Popen(
                [*arguments, str(num_requests)], stdout=subprocess.PIPE, text=True
            )
            assert clients.stdout is not None
            clients.stdout.readline()  # it is loaded, and begins
            peak, began_s = before, time.monotonic()
            while clients.poll() is None:
                peak = max(peak, process.memory_info().rss)
                time.sleep(0.1)
            busy = good.since(began_s)
            flood_s = time.monotonic() - began_s
            statuses, endings = json.loads(clients.stdout.readline())
            time.sleep(2)  # what was waiting is answered
            idle = merged(idle, good.listen(idle_s))
        ready = httpx2.get(f"{url}/ready").status_code
        after = process.memory_info().rss
    return {
        "statuses": dict(sorted(statuses.items())),
        "other": endings,
        "seconds": flood_s,
        "idle": idle,
        "busy": busy,
        "good_failures": good.failures,
        "mib": [round(value / 2**20) for value in (before, peak, after)],
        "ready": ready,
        "log": [line for line in (folder / "log").read_text().splitlines() if "Traceback" in line],
    }


def merged(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """Latencies alone, before and after the flood."""
    return {
        "num": one["num"] + other["num"],
        "median_s": (one["median_s"] + other["median_s"]) / 2,
        "p99_s": max(one["p99_s"], other["p99_s"]),
        "slowest_s": max(one["slowest_s"], other["slowest_s"]),
    }


CHECK = """
import json, resource, sys, time
from collections import Counter
from farm.intake.check import check_manifest
from farm.intake.manifest import read_manifest
started = time.monotonic()
report = check_manifest(read_manifest(sys.argv[1], strict=False), workers=16)
own = resource.getrusage(resource.RUSAGE_SELF)
print(json.dumps({"photos": report.num_photos, "usable": len(report.facts),
    "errors": len(report.errors), "seconds": time.monotonic() - started,
    "cpu_s": own.ru_utime + own.ru_stime, "mib": round(own.ru_maxrss / 1024)}))
"""
READ = """
import json, resource, sys, time
from pathlib import Path
from farm.errors import FarmError
from farm.intake.check import check_manifest
from farm.intake.manifest import read_manifest
crashes, slowest, slowest_cpu, slowest_name = {}, 0.0, 0.0, ""
files = sorted(Path(sys.argv[1]).iterdir())
for path in files:
    started, cpu = time.monotonic(), time.process_time()
    try:
        manifest = read_manifest(str(path), strict=False)
        check_manifest(manifest, workers=16)
    except FarmError:
        pass
    except BaseException as error:
        crashes[path.name] = repr(error)[:200]
    slowest = max(slowest, time.monotonic() - started)
    if time.process_time() - cpu > slowest_cpu:
        slowest_cpu, slowest_name = time.process_time() - cpu, path.name
own = resource.getrusage(resource.RUSAGE_SELF)
print(json.dumps({"manifests": len(files), "crashes": crashes, "slowest_s": slowest,
    "slowest_cpu_s": slowest_cpu, "slowest_name": slowest_name,
    "cpu_s": own.ru_utime + own.ru_stime, "mib": round(own.ru_maxrss / 1024)}))
"""


def run_apart(code: str, *arguments: str, timeout_s: float = 3600) -> dict[str, Any]:
    """The JSON that a process of its own prints; its failure is a result too."""
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True, text=True, timeout=timeout_s,
    )  # fmt: skip
    lines = done.stdout.splitlines()
    return json.loads(lines[-1]) if done.returncode == 0 else {"crash": done.stderr[-2000:]}


def make_photos(folder: Path, count: int) -> Path:
    """One manifest of hostile photos, archives and names, 20 files a subject."""
    names, archives = iter(NAMES), []
    for number in range(count):
        place = folder / f"s{number // 20:04d}"
        place.mkdir(parents=True, exist_ok=True)
        if number % 25 == 24:
            archives.append(folder / f"z{number:04d}.zip")
            archives[-1].write_bytes(hostile_zip(number // 25))
            continue
        name = next(names, None) or f"{number:04d}.png"
        (place / name).write_bytes(hostile_photo(number)[1])
    rows = [f"  - {{id: s{n:04d}, class_noun: cat}}" for n in range((count + 19) // 20)]
    rows += [f"  - {{id: {it.stem}, class_noun: cat, photos: {it.name}}}" for it in archives]
    manifest = folder / "m.yaml"
    manifest.write_text("subjects:\n" + "\n".join(rows) + "\n")
    return manifest


def make_manifests(folder: Path, count: int) -> Path:
    """A folder of hostile manifests of every form."""
    folder.mkdir()
    for number in range(count):
        name, data = hostile_manifest(number)
        (folder / f"{number:04d}-{name}").write_bytes(data)
    return folder


def faults_of(found: dict[str, Any]) -> list[str]:
    """What does not hold."""
    requests, photos, manifests = found["requests"], found["photos"], found["manifests"]
    bad = [status for status in requests["statuses"] if int(status) >= 500 and int(status) != 503]
    slowdown = requests["busy"]["slowest_s"] / requests["idle"]["slowest_s"]
    growth = requests["mib"][1] - requests["mib"][0]
    claims = {
        f"server errors {bad}": not bad,
        f"the good client failed: {requests['good_failures']}": not requests["good_failures"],
        f"slowest answer {slowdown:.1f} times idle": slowdown <= MAX_SLOWDOWN,
        f"server grew by {growth} MiB": growth <= MAX_SERVER_GROWTH_MIB,
        "the endpoint is not ready": requests["ready"] == 200,
        "tracebacks in the log": not requests["log"],
        f"check: {photos}": "crash" not in photos and photos["mib"] <= MAX_CHECK_MIB,
        f"manifests: {manifests}": not manifests.get("crash") and not manifests.get("crashes"),
        f"one manifest took {manifests.get('slowest_cpu_s', 0):.1f} s of CPU": (
            manifests.get("slowest_cpu_s", 0) <= MAX_MANIFEST_CPU_S
        ),
    }
    return [claim for claim, holds in claims.items() if not holds]


def page_of(found: dict[str, Any]) -> str:
    requests, photos, manifests = found["requests"], found["photos"], found["manifests"]
    idle, busy = requests["idle"], requests["busy"]
    bad = faults_of(found)
    statuses = ", ".join(f"{code}: {count}" for code, count in requests["statuses"].items())
    ends = ", ".join(f"{what}: {count}" for what, count in requests["other"].items())
    ratio = busy["slowest_s"] / idle["slowest_s"]
    return f"""# Hostile requests and files

{os.cpu_count()} CPU cores ({platform.machine()}), Python {platform.python_version()}, \
{datetime.now(UTC):%Y-%m-%d}; load {requests["load"]:.1f} before the flood, from other work. \
Written by `benchmarks/hostile.py`. Server, flood and good client share the cores.

**{"Everything holds." if not bad else "Broken: " + "; ".join(bad)}**

## Endpoint

`farm serve` on the tiny base with keys and 1,024 open files. {requests["num"]:,} hostile requests \
in {requests["seconds"]:.0f} s, together with 150 connections that send one byte a second, 50 that \
never read, and one that sends headers without end.

| | |
|---|---|
| answers by status | {statuses} |
| connections without an answer | {ends or "none"} |
| the good client, idle | {idle["num"]} answers; median {idle["median_s"] * 1e3:.0f} ms, \
99th percentile {idle["p99_s"] * 1e3:.0f} ms, slowest {idle["slowest_s"] * 1e3:.0f} ms |
| the good client, during the flood | {busy["num"]} answers; median \
{busy["median_s"] * 1e3:.0f} ms, 99th percentile {busy["p99_s"] * 1e3:.0f} ms, \
slowest {busy["slowest_s"] * 1e3:.0f} ms: {ratio:.1f} times idle |
| its failures | {requests["good_failures"] or "none"} |
| server's memory before, peak, after | {" / ".join(map(str, requests["mib"]))} MiB |

## Photos and manifests

| | files | result | CPU seconds | peak memory |
|---|---|---|---|---|
| one manifest of hostile photos and archives, 16 threads | {photos.get("photos")} | \
{photos.get("errors")} errors, {photos.get("usable")} usable | {photos.get("cpu_s", 0):.0f} | \
{photos.get("mib")} MiB |
| hostile manifests, one after the other | {manifests.get("manifests")} | \
{len(manifests.get("crashes", []))} crashes; slowest {manifests.get("slowest_s", 0):.1f} s, \
{manifests.get("slowest_cpu_s", 0):.1f} s of CPU | \
{manifests.get("cpu_s", 0):.0f} | {manifests.get("mib")} MiB |

Some hostile photos are usable: a black picture of 90 megapixels in 11 kB is a photo. \
Valid requests of the flood are generated, and share the engine with the good client's.
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--files", type=int, default=1_000)
    parser.add_argument("--idle-s", type=float, default=30.0)
    parser.add_argument("--out", type=Path, default=HERE)
    args = parser.parse_args()
    page = args.out / f"hostile-{os.cpu_count()}cpu-{datetime.now(UTC).date()}.md"
    kept = page.with_suffix(".json")
    found: dict[str, Any] = json.loads(kept.read_text()) if kept.exists() else {}
    with tempfile.TemporaryDirectory(prefix="hostile-") as place:
        folder = Path(place)
        if "photos" in args.parts:
            found["photos"] = run_apart(CHECK, str(make_photos(folder / "photos", args.files)))
        if "manifests" in args.parts:
            found["manifests"] = run_apart(READ, str(make_manifests(folder / "m", args.files)))
        if "requests" in args.parts:
            load = os.getloadavg()[0]
            found["requests"] = measure_requests(folder, args.requests, args.idle_s)
            found["requests"] |= {"num": args.requests, "load": load}
    print(json.dumps(found, indent=1), flush=True)
    kept.write_text(json.dumps(found, indent=1) + "\n")
    if len(found) < len(PARTS):
        return 0
    page.write_text(page_of(found))
    print("\n".join(faults_of(found)) or "everything holds")
    return 1 if faults_of(found) else 0


if __name__ == "__main__":
    sys.exit(main())
