"""The load of the soak test, run as a separate process: many callers, every kind of request.

    python benchmarks/serving/soak_load.py URL EXPECTED_FOLDER LOG.jsonl --seconds 600 --callers 6

Every image is compared with a reference image generated separately by other code, stored in
``EXPECTED_FOLDER/<name>/<seed>.png``. Each request writes one JSON line with the request, the
response, and whether the response was correct.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import random
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import openai
from PIL import Image

MAX_MEAN_DIFFERENCE = 1.0
"""Of 255 levels, from the reference image; images of different adapters differ by far more."""
HUNG_S = 120.0
REVOKED_GRACE_S = 5.0
PROMPT = "a photo of sks cat"
STEPS = 8


@dataclass
class Line:
    """One request's outcome."""

    at_s: float
    kind: str
    model: str
    status: int
    took_s: float
    verdict: str
    """right, refused (as expected), busy, restarting, left; or a description of the problem."""
    difference: float = 0.0
    engine: str = ""


class Caller:
    """One caller: sends a request, checks the response, logs it, and repeats."""

    def __init__(self, url: str, expected: Path, write: Callable[[Line], None], seed: int) -> None:
        self._client = openai.OpenAI(
            base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=HUNG_S
        )
        self._expected = expected
        self._write = write
        self._dice = random.Random(seed)

    def run(self, until_s: float) -> None:
        kinds: list[tuple[Callable[[], None], int]] = [
            (self.generate, 60), (self.stream, 12), (self.several, 8), (self.link, 4),
            (self.leave, 5), (self.models, 5), (self.unknown, 3), (self.wrong, 3), (self.gone, 4),
        ]  # fmt: skip
        actions, weights = zip(*kinds, strict=True)
        while time.time() < until_s:
            self._dice.choices(actions, weights)[0]()
            time.sleep(self._dice.expovariate(1 / 0.05))

    # -- kinds of requests --------------------------------------------------------------------

    def generate(self) -> None:
        model, seed = self._pick()
        self._ask(
            "generate", model, lambda: self._check_first(self._generate(model, seed), model, seed)
        )

    def several(self) -> None:
        model, seed = self._pick()

        def ask() -> tuple[str, float, str]:
            answer = self._generate(model, seed, n=2)
            if [item.seed for item in answer.data] != [seed, seed + 1]:
                return "wrong seeds", 0.0, ""
            return self._check_first(answer, model, seed)

        self._ask("several", model, ask)

    def stream(self) -> None:
        model, seed = self._pick()

        def ask() -> tuple[str, float, str]:
            events = list(self._generate(model, seed, stream=True, partial_images=2))
            if events[-1].type != "image_generation.completed":
                return "a stream without its end", 0.0, ""
            return self._check(events[-1].b64_json, events[-1].receipt, model, seed)

        self._ask("stream", model, ask)

    def link(self) -> None:
        model, seed = self._pick()

        def ask() -> tuple[str, float, str]:
            item = self._generate(model, seed, response_format="url").data[0]
            fetched = httpx2.get(item.url, timeout=HUNG_S)
            fetched.raise_for_status()
            return self._check(
                base64.b64encode(fetched.content).decode(), item.receipt, model, seed
            )

        self._ask("link", model, ask)

    def leave(self) -> None:
        """Start a stream and disconnect."""
        model, seed = self._pick()

        def ask() -> tuple[str, float, str]:
            stream = self._generate(model, seed, stream=True, stream_progress=True)
            next(iter(stream))
            stream.close()
            return "left", 0.0, ""

        self._ask("leave", model, ask)

    def models(self) -> None:
        def ask() -> tuple[str, float, str]:
            page = self._client.models.list()
            return ("right" if page.data else "an empty list"), 0.0, ""

        self._ask("models", "", ask)

    def unknown(self) -> None:
        self._expect(404, "unknown", f"never-{self._dice.randrange(100)}")

    def wrong(self) -> None:
        self._expect(400, "wrong", "tiny", guidance_scale=-1)

    def gone(self) -> None:
        """Request an adapter that was revoked some time ago."""
        old = [
            mark.parent.name
            for mark in self._expected.glob("*/revoked")
            if time.time() - mark.stat().st_mtime > REVOKED_GRACE_S
        ]
        if old:
            self._expect(404, "gone", self._dice.choice(old))

    # -- requests and checks ------------------------------------------------------------------

    def _pick(self) -> tuple[str, int]:
        """A model (a few are far more frequent than others) and a seed."""
        there = sorted(
            folder.name
            for folder in self._expected.iterdir()
            if (folder / "ready").exists() and not (folder / "revoked").exists()
        )
        rank = min(int(self._dice.paretovariate(0.7)) - 1, len(there) - 1)
        model = there[rank]
        seeds = sorted(int(file.stem) for file in (self._expected / model).glob("*.png"))
        return model, self._dice.choice(seeds)

    def _generate(self, model: str, seed: int, **extra: Any) -> Any:
        body = {"seed": seed, "num_inference_steps": STEPS, "stream_progress": None}
        body |= {name: extra.pop(name) for name in ("stream_progress",) if name in extra}
        body |= {name: extra.pop(name) for name in ("guidance_scale",) if name in extra}
        return self._client.images.generate(model=model, prompt=PROMPT, extra_body=body, **extra)

    def _check_first(self, answer: Any, model: str, seed: int) -> tuple[str, float, str]:
        return self._check(answer.data[0].b64_json, answer.data[0].receipt, model, seed)

    def _check(
        self, b64_json: str, receipt: dict[str, Any], model: str, seed: int
    ) -> tuple[str, float, str]:
        with Image.open(io.BytesIO(base64.b64decode(b64_json))) as image:
            received = np.asarray(image.convert("RGB")).astype(float)
        with Image.open(self._expected / model / f"{seed}.png") as image:
            alone = np.asarray(image.convert("RGB")).astype(float)
        difference = float(np.abs(received - alone).mean())
        verdict = "right" if difference <= MAX_MEAN_DIFFERENCE else "a wrong picture"
        return verdict, difference, str(receipt.get("engine", ""))

    def _expect(self, status: int, kind: str, model: str, **extra: Any) -> None:
        def ask() -> tuple[str, float, str]:
            self._generate(model, 1, **extra)
            return f"not refused with {status}", 0.0, ""

        self._ask(kind, model, ask, refusal=status)

    def _ask(
        self,
        kind: str,
        model: str,
        ask: Callable[[], tuple[str, float, str]],
        refusal: int = 0,
    ) -> None:
        at_s, started_s, status = time.time(), time.monotonic(), 200
        difference, engine = 0.0, ""
        try:
            verdict, difference, engine = ask()
        except openai.APITimeoutError:
            status, verdict = 0, "hung"
        except openai.APIStatusError as error:
            status = error.status_code
            verdict = self._judge_status(status, refusal, model)
            if verdict == "busy":
                time.sleep(min(10.0, float(error.response.headers.get("retry-after", 1))))
        except (openai.APIError, httpx2.HTTPError) as error:
            status, verdict = -1, f"{type(error).__name__}: {error}"[:200]
            if "no engine is ready" in verdict:  # a 503 after the stream has started
                status, verdict = 503, "restarting"
        took_s = time.monotonic() - started_s
        self._write(Line(at_s, kind, model, status, took_s, verdict, difference, engine))

    def _judge_status(self, status: int, refusal: int, model: str) -> str:
        if status == refusal:
            return "refused"
        if status == 429:
            return "busy"
        if status == 503:
            return "restarting"
        # revoked just before the request, or between the choice and the request
        if status == 404 and (self._expected / model / "revoked").exists():
            return "refused"
        return f"status {status}"


def main() -> None:
    """Run the callers and write their lines."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url")
    parser.add_argument("expected", type=Path)
    parser.add_argument("log", type=Path)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--callers", type=int, default=6)
    options = parser.parse_args()
    lock, until_s = threading.Lock(), time.time() + options.seconds
    with open(options.log, "w") as log:

        def write(line: Line) -> None:
            with lock:
                log.write(json.dumps(asdict(line)) + "\n")
                log.flush()

        callers = [Caller(options.url, options.expected, write, i) for i in range(options.callers)]
        threads = [threading.Thread(target=caller.run, args=(until_s,)) for caller in callers]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


if __name__ == "__main__":
    main()
