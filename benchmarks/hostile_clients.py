"""The clients of ``hostile.py``: one with good manners that measures, and a flood of others."""

from __future__ import annotations

import asyncio
import json
import random
import socket
import statistics
import sys
import threading
import time
from collections import Counter
from itertools import chain, cycle, islice
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import httpx2  # noqa: E402
from support.hostile.requests import hostile_requests, raw_requests  # noqa: E402

CONCURRENCY = 16
RAW_EVERY = 10
"""One of this many hostile requests is raw bytes."""
ANSWER_S = 60.0


class GoodClient:
    """Lists adapters and generates small pictures, four times a second, on its own thread."""

    def __init__(self, url: str, key: str) -> None:
        self._client = httpx2.Client(
            base_url=url, headers={"authorization": f"Bearer {key}"}, timeout=ANSWER_S
        )
        self._answers: list[tuple[float, float]] = []
        self.failures: list[str] = []
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._is_done = threading.Event()

    def __enter__(self) -> GoodClient:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_done.set()
        self._thread.join()

    def _run(self) -> None:
        body = {"model": "hidden", "prompt": "a photo of [V]", "size": "64x64"}
        body |= {"num_inference_steps": 2, "guidance_scale": 1}
        asks = cycle((("POST", "/v1/images/generations", body), ("GET", "/v1/models", None)))
        while not self._is_done.wait(0.25):
            method, path, content = next(asks)
            started_s = time.monotonic()
            try:
                answer = self._client.request(method, path, json=content)
            except httpx2.HTTPError as error:
                self.failures.append(repr(error))
                continue
            self._answers.append((started_s, time.monotonic() - started_s))
            if answer.status_code != 200:
                self.failures.append(f"{answer.status_code} {answer.text[:200]}")

    def listen(self, seconds: float) -> dict[str, Any]:
        """The latencies of the next seconds."""
        began_s = time.monotonic()
        time.sleep(seconds)
        return self.since(began_s)

    def since(self, began_s: float) -> dict[str, Any]:
        """The latencies of requests that began after a time."""
        taken = sorted(took_s for started_s, took_s in self._answers if started_s >= began_s)
        return {
            "num": len(taken),
            "median_s": statistics.median(taken),
            "p99_s": taken[round(0.99 * (len(taken) - 1))],
            "slowest_s": taken[-1],
        }


class Flood:
    """Hostile requests, as fast as they are answered, beside connections that only wait."""

    def __init__(self, url: str, key: str, count: int, seed: int = 0) -> None:
        parts = urlsplit(url)
        self._address = (parts.hostname, parts.port)
        self._url, self._key, self._count, self._seed = url, key, count, seed
        self.statuses: Counter[str] = Counter()
        self.endings: Counter[str] = Counter()

    async def send_all(self) -> None:
        """Send everything, and stop the others when all is answered."""
        raw = cycle(list(raw_requests(self._key)))
        told = hostile_requests(random.Random(self._seed), self._key)
        mixed = chain.from_iterable([next(raw), *islice(told, RAW_EVERY - 1)] for _ in iter(int, 1))
        work = iter(islice(mixed, self._count))
        beside = [asyncio.create_task(self._drip(turn)) for turn in range(150)]
        beside += [asyncio.create_task(self._never_read()) for _ in range(50)]
        beside.append(asyncio.create_task(self._endless()))
        async with httpx2.AsyncClient(base_url=self._url, timeout=ANSWER_S) as client:
            await asyncio.gather(*(self._work(client, work) for _ in range(CONCURRENCY)))
        for task in beside:
            task.cancel()
        await asyncio.gather(*beside, return_exceptions=True)

    async def _work(self, client: httpx2.AsyncClient, work: Any) -> None:
        for item in work:
            if isinstance(item, tuple):
                await self._send_raw(item[1])
                continue
            request = {key: value for key, value in item.items() if key != "expect"}
            request["url"] = request.pop("path")
            try:
                answer = await client.request(**request)
            except httpx2.TransportError as error:
                self.endings[type(error).__name__] += 1
            except (ValueError, httpx2.InvalidURL):
                self.endings["not sendable"] += 1
            else:
                self.statuses[str(answer.status_code)] += 1

    async def _send_raw(self, sent: bytes) -> None:
        try:
            reader, writer = await asyncio.open_connection(*self._address)
            writer.write(sent)
            head = await asyncio.wait_for(reader.read(65536), 2)
            writer.close()
        except (OSError, TimeoutError) as error:
            self.endings[f"raw: {type(error).__name__}"] += 1
            return
        if head.startswith(b"HTTP/"):
            self.statuses[head.split()[1].decode()] += 1
        else:
            self.endings["raw: closed"] += 1

    async def _drip(self, turn: int) -> None:
        """A head that arrives byte by byte, on a new connection whenever one is closed."""
        await asyncio.sleep(turn * 0.02)
        while True:
            try:
                _, writer = await asyncio.open_connection(*self._address)
                writer.write(b"GET /health HTTP/1.1\r\nx: ")
                while True:
                    writer.write(b"x")
                    await writer.drain()
                    await asyncio.sleep(1)
            except OSError:
                await asyncio.sleep(0.2)

    async def _never_read(self) -> None:
        """Asks for everything and reads nothing."""
        sent = f"GET /v1/models HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {self._key}\r\n\r\n"
        loop = asyncio.get_running_loop()
        while True:
            with socket.socket() as connection:
                connection.setblocking(False)
                try:
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                    await loop.sock_connect(connection, self._address)
                    await loop.sock_sendall(connection, sent.encode() * 6)
                except OSError:
                    pass
                await asyncio.sleep(5)

    async def _endless(self) -> None:
        """Headers without end, as fast as the server reads them."""
        while True:
            try:
                _, writer = await asyncio.open_connection(*self._address)
                writer.write(b"GET / HTTP/1.1\r\n")
                while True:
                    writer.write(b"a: b\r\n" * 1_000)
                    await writer.drain()
                    await asyncio.sleep(0)
            except OSError:
                await asyncio.sleep(0.1)


def main(url: str, key: str, count: str) -> None:
    """Flood an endpoint; prints when it begins, and at the end the counts as JSON."""
    clients = Flood(url, key, int(count))
    print("begins", flush=True)
    asyncio.run(clients.send_all())
    print(json.dumps([clients.statuses, clients.endings]), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
