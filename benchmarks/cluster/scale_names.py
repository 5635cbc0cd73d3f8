"""Listing many adapters: the first page, one search, and all names, as ``/v1/models`` reads them.

    python benchmarks/cluster/scale_names.py --names 100000 --against ../earlier-checkout

The catalog is real, on names in a local folder. Also measured: the longest time for which the event
loop could do nothing else. Each measurement runs in its own process.

Writes ``scale-names-<number>-<n>cpu-<date>.md`` into ``benchmarks/``.
"""

from __future__ import annotations

import argparse
import asyncio
import datetime
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).parents[1]
ROWS = {
    "first_s": "first page of 100",
    "search_s": "search, first page",
    "all_s": "all names, in pages of 1,000",
    "again_s": "all names again, within a minute",
    "blocked_s": "longest block of the event loop",
}


def write_names(folder: Path, number: int) -> None:
    """Pointers, as publishing writes them."""
    place = folder / "names" / "default"
    place.mkdir(parents=True)
    body = {"job_key": "a" * 32, "sha256": "b" * 64, "created": "2026-11-27T12:00:00+00:00"}
    text = json.dumps({**body, "samples": ["samples/000.png", "samples/001.png"]}, indent=2)
    for index in range(number):
        (place / f"subject-{index:07d}.json").write_text(text)


async def measure(url: str) -> dict[str, float]:
    """Read the catalog with the farm of this process."""
    from farm.adapters.registry import Registry
    from farm.serving.access.catalog import Catalog
    from farm.serving.ttl_cache import store_threads
    from farm.storage import Store

    facts: dict[str, float] = {"blocked_s": 0.0}

    async def watch() -> None:
        while True:
            began = time.perf_counter()
            await asyncio.sleep(0.005)
            facts["blocked_s"] = max(facts["blocked_s"], time.perf_counter() - began - 0.005)

    with store_threads() as executor:
        catalog = Catalog(Registry(Store(url)), executor=executor)
        watcher = asyncio.create_task(watch())
        began = time.perf_counter()
        await catalog.page("default", limit=100)
        facts["first_s"] = time.perf_counter() - began
        began = time.perf_counter()
        await catalog.page("default", search="SUBJECT-00", limit=100)
        facts["search_s"] = time.perf_counter() - began
        for name in ("all_s", "again_s"):
            began, after, more = time.perf_counter(), "", True
            while more:
                page = await catalog.page("default", after=after, limit=1000)
                after, more = page.adapters[-1].name, page.has_more
            facts[name] = time.perf_counter() - began
        watcher.cancel()
    return facts


def probe_in(checkout: Path, folder: str) -> dict[str, float]:
    """Measure in a process of its own, with the farm of a checkout."""
    command = [sys.executable, __file__, "--probe", folder]
    env = os.environ | {"PYTHONPATH": str(checkout)}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    facts: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return facts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--names", type=int, default=10_000)
    parser.add_argument("--against", type=Path, required=False, help="a checkout to compare with")
    parser.add_argument("--out", type=Path, default=HERE)
    parser.add_argument("--probe", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.probe:
        print(json.dumps(asyncio.run(measure(arguments.probe))))
        return
    trees = [HERE.parent] if arguments.against is None else [arguments.against, HERE.parent]
    with tempfile.TemporaryDirectory() as folder:
        write_names(Path(folder), arguments.names)
        results = [probe_in(tree.resolve(), folder) for tree in trees]
    heads = ["before", "after"] if arguments.against else ["measured"]
    lines = [
        f"# Listing {arguments.names:,} adapters",
        "",
        f"{datetime.date.today()}, {os.cpu_count()} CPU cores shared with other work (load average"
        f" {os.getloadavg()[0]:.1f}), local folder as the store, Python {sys.version.split()[0]}."
        f" Wall clock seconds; `python benchmarks/cluster/scale_names.py --names {arguments.names}"
        f"{' --against EARLIER-CHECKOUT' if arguments.against else ''}`.",
        "",
        f"| | {' | '.join(heads)} |",
        "|---|" + "---|" * len(heads),
        *(
            f"| {text} | {' | '.join(f'{facts[name]:.2f}' for facts in results)} |"
            for name, text in ROWS.items()
        ),
    ]
    text = "\n".join(lines) + "\n"
    name = f"scale-names-{arguments.names}-{os.cpu_count()}cpu-{datetime.date.today()}.md"
    (arguments.out / name).write_text(text)
    print(text)


if __name__ == "__main__":
    main()
