"""What the bounds on connections cost normal traffic: the same app behind two servers, in turns.

    python benchmarks/http_bounds.py --out benchmarks

One process holds the endpoint on the tiny base and serves its app on two ports: uvicorn as it is,
and ``farm serve``'s bounded server. A client sends the same requests to both in alternating blocks;
compared is the CPU time of the whole process, client included, by the medians over the blocks.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import platform
import statistics
import sys
import tempfile
import threading
import time
from datetime import UTC, datetime
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "tests"))

import uvicorn  # noqa: E402
from support.endpoint import live_endpoint  # noqa: E402

from farm.serving.access.limits import Limits  # noqa: E402
from farm.serving.http.app import create_app  # noqa: E402

GENERATE = json.dumps(
    {"model": "rex", "prompt": "a photo of [V]", "num_inference_steps": 4, "seed": 1}
).encode()
TRAFFIC = {
    "generate a picture": ("POST", "/v1/images/generations", GENERATE, 10),
    "list adapters": ("GET", "/v1/models", b"", 60),
    "health": ("GET", "/health", b"", 200),
}
"""Method, path, body, and requests in a block."""


def start_plain(app: object) -> int:
    """The port of uvicorn without bounds, on a thread."""
    config = uvicorn.Config(
        app,  # type: ignore[arg-type]
        host="127.0.0.1", port=0, log_level="error", lifespan="off", ws="none",
        server_header=False, timeout_keep_alive=75, proxy_headers=False,
    )  # fmt: skip
    server = uvicorn.Server(config)
    threading.Thread(target=server.run, daemon=True).start()
    while not server.started:
        time.sleep(0.01)
    return int(server.servers[0].sockets[0].getsockname()[1])


def block(port: int, key: str, what: str) -> tuple[float, float]:
    """CPU and wall seconds a request, over one block on one connection."""
    method, path, body, count = TRAFFIC[what]
    headers = {"authorization": f"Bearer {key}", "content-type": "application/json"}
    headers |= {"user-agent": "OpenAI/Python", "accept": "application/json", "x-stainless-os": "a"}
    connection = http.client.HTTPConnection("127.0.0.1", port)
    cpu_s, wall_s = time.process_time(), time.perf_counter()
    for _ in range(count):
        connection.request(method, path, body=body or None, headers=headers)
        answer = connection.getresponse()
        answer.read()
        assert answer.status == 200
    cpu_s, wall_s = time.process_time() - cpu_s, time.perf_counter() - wall_s
    connection.close()
    return cpu_s / count, wall_s / count


def measure(rounds: int) -> dict[str, dict[str, list[float]]]:
    """CPU seconds a request by traffic and server, one value a block."""
    found: dict[str, dict[str, list[float]]] = {
        what: {"plain": [], "bounded": []} for what in TRAFFIC
    }
    limits = Limits(pictures_per_minute=10**9)
    with (
        tempfile.TemporaryDirectory(prefix="http-bounds-") as folder,
        live_endpoint(Path(folder), anonymous_namespace=None, limits=limits) as live,
    ):
        live.publish("rex", namespace="acme")
        key = live.key("acme")
        ports = {"bounded": live.port, "plain": start_plain(create_app(live.services))}
        for turn in range(rounds + 1):
            for what in TRAFFIC:
                order = list(ports) if turn % 2 else list(reversed(ports))
                for server in order:
                    cpu_s, _ = block(ports[server], key, what)
                    if turn:  # the first round warms up
                        found[what][server].append(cpu_s)
    return found


def page_of(found: dict[str, dict[str, list[float]]], rounds: int) -> str:
    rows = []
    for what, taken in found.items():
        plain, bounded = (statistics.median(taken[name]) * 1e3 for name in ("plain", "bounded"))
        pairs = zip(taken["bounded"], taken["plain"], strict=True)
        ratio = statistics.median(one / other for one, other in pairs) - 1
        rows.append(f"| {what} | {plain:.3f} | {bounded:.3f} | {ratio:+.1%} |")
    return f"""# The cost of bounded connections

{os.cpu_count()} CPU cores ({platform.machine()}), Python {platform.python_version()}, uvicorn \
{uvicorn.__version__}, {datetime.now(UTC):%Y-%m-%d}; load {os.getloadavg()[0]:.1f}, from other work.
Written by `benchmarks/http_bounds.py`: {rounds} alternating blocks of the same requests to the same
app, CPU milliseconds a request of the whole process (server, engine and client), medians; the last
column is the median over pairs of neighbouring blocks.

| request | uvicorn as it is | bounded | difference |
|---|---|---|---|
{chr(10).join(rows)}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--out", type=Path, default=HERE)
    args = parser.parse_args()
    page = page_of(measure(args.rounds), args.rounds)
    print(page)
    name = f"http-bounds-{os.cpu_count()}cpu-{datetime.now(UTC).date()}.md"
    (args.out / name).write_text(page)


if __name__ == "__main__":
    main()
