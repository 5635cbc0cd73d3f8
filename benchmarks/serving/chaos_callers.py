"""The callers of ``chaos_serve.py``: each sends a request, judges the response, and repeats."""

from __future__ import annotations

import base64
import io
import json
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
from PIL import Image
from soak_load import MAX_MEAN_DIFFERENCE, PROMPT, STEPS

HUNG_S = 120.0
PATIENCE_S = 5.0


@dataclass
class Outcome:
    """One request and what became of it."""

    at_s: float
    kind: str
    took_s: float
    verdict: str
    """right, listed; unavailable, an honest 503; cut, no whole response; wrong; hung; error."""
    difference: float = 0.0
    num_images: int = 0
    note: str = ""
    engines: tuple[str, ...] = ()
    found_in: tuple[str, ...] = ()
    """For each image with an adapter: where its engine found the adapter."""


class Caller:
    """One caller."""

    def __init__(
        self,
        url: str,
        expected: Path,
        write: Callable[[Outcome], None],
        seed: int,
        *,
        think_s: float = 0.1,
    ) -> None:
        """Nothing is sent before ``run``.

        Args:
            think_s: mean seconds between a response and the next request.
        """
        self._url = url
        self._expected = expected
        self._write = write
        self._dice = random.Random(seed)
        self._think_s = think_s
        self._models = sorted(folder.name for folder in expected.iterdir())

    def run(self, stop: threading.Event) -> None:
        """Send requests until ``stop`` is set."""
        kinds = {self._generate: 6, self._several: 2, self._stream: 2, self._list: 1}
        while not stop.is_set():
            ask = self._dice.choices(list(kinds), list(kinds.values()))[0]
            at_s, started_s = time.time(), time.monotonic()
            try:
                outcome = ask()
            except httpx2.TimeoutException:
                outcome = Outcome(0, "", 0, "hung")
            except httpx2.HTTPError as error:
                outcome = Outcome(0, "", 0, "cut", note=repr(error)[:160])
            outcome.at_s, outcome.kind = at_s, ask.__name__.strip("_")
            outcome.took_s = time.monotonic() - started_s
            self._write(outcome)
            if outcome.verdict in ("unavailable", "cut"):
                stop.wait(1.0)
            stop.wait(self._dice.expovariate(1 / self._think_s))

    # -- kinds of requests -----------------------------------------------------------------------

    def _generate(self) -> Outcome:
        return self._images(1)

    def _several(self) -> Outcome:
        return self._images(2)

    def _images(self, count: int) -> Outcome:
        model, seed = self._dice.choice(self._models), 1
        if count == 1:
            seed = self._dice.choice((1, 2, 3))
        answer = self._post({"model": model, "seed": seed, "n": count})
        if answer.status_code != 200:
            return _refusal(answer)
        items = answer.json()["data"]
        return self._compare(model, {seed + index: item for index, item in enumerate(items)})

    def _stream(self) -> Outcome:
        model, seed = self._dice.choice(self._models), self._dice.choice((1, 2, 3))
        answer = self._post({"model": model, "seed": seed, "stream": True, "partial_images": 2})
        if answer.status_code != 200:
            return _refusal(answer)
        events = [part for part in answer.text.split("\n\n") if part.startswith("event: ")]
        last = events[-1] if events else ""
        name, _, data = last.partition("\n")
        event = json.loads(data.removeprefix("data: ") or "{}")
        if name == "event: error":
            is_honest = event["error"]["code"] == "service_unavailable"
            return Outcome(0, "", 0, "unavailable" if is_honest else "error", note=last[:200])
        if name != "event: image_generation.completed":
            return Outcome(0, "", 0, "error", note=f"a stream ended with {last[:120]}")
        return self._compare(model, {seed: event})

    def _list(self) -> Outcome:
        answer = httpx2.get(f"{self._url}/v1/models", timeout=HUNG_S)
        if answer.status_code != 200:
            return _refusal(answer)
        return Outcome(0, "", 0, "listed" if answer.json()["data"] else "error")

    def _post(self, body: dict[str, object]) -> httpx2.Response:
        body = {"prompt": PROMPT, "num_inference_steps": STEPS, **body}
        return httpx2.post(f"{self._url}/v1/images/generations", json=body, timeout=HUNG_S)

    def _compare(self, model: str, images: dict[int, dict[str, Any]]) -> Outcome:
        largest, found_in = 0.0, []
        for seed, item in images.items():
            with Image.open(io.BytesIO(base64.b64decode(item["b64_json"]))) as image:
                received = np.asarray(image.convert("RGB")).astype(float)
            with Image.open(self._expected / model / f"{seed}.png") as image:
                alone = np.asarray(image.convert("RGB")).astype(float)
            largest = max(largest, float(np.abs(received - alone).mean()))
            found_in += [adapter["found_in"] for adapter in item["receipt"]["adapters"]]
        verdict = "right" if largest <= MAX_MEAN_DIFFERENCE else "wrong"
        engines = tuple(str(item["receipt"].get("engine", "")) for item in images.values())
        return Outcome(0, "", 0, verdict, largest, len(images), model, engines, tuple(found_in))


def _refusal(answer: httpx2.Response) -> Outcome:
    """Whether a refusal is an honest 503: the endpoint's own error, with ``Retry-After``."""
    note = f"{answer.status_code} {dict(answer.headers)} {answer.text[:120]}"
    if answer.status_code != 503 or "retry-after" not in answer.headers:
        return Outcome(0, "", 0, "error", note=note)
    try:
        code = answer.json()["error"]["code"]
    except (ValueError, KeyError):
        return Outcome(0, "", 0, "error", note=note)
    is_honest = code in ("service_unavailable", "store_unavailable")
    return Outcome(0, "", 0, "unavailable" if is_honest else "error", note=note)
