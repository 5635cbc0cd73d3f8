"""A temporary endpoint: ``farm serve`` as a child process that lasts as long as a block.

Owns the child process, its deadlines, and the request that generates an image.
"""

from __future__ import annotations

import base64
import json
import re
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from farm.errors import FarmError

__all__ = ["EndpointFailed", "Endpoint", "temporary_endpoint"]

START_DEADLINE_S = 300.0
"""Seconds are enough on an idle machine; a busy one may need minutes."""
REQUEST_DEADLINE_S = 300.0
STOP_DEADLINE_S = 60.0
REQUESTS_AT_ONCE = 8
ADDRESS = re.compile(r"at (http://\S+:\d+)$", re.MULTILINE)
SERVE = (sys.executable, "-m", "farm", "serve")


class EndpointFailed(FarmError):
    """The endpoint did not start in time, exited, or refused a request."""


@dataclass(frozen=True)
class Endpoint:
    """A running endpoint."""

    url: str

    def generate(self, model: str, prompt: str, *, seed: int) -> bytes:
        """One image by an adapter, as a PNG file with its metadata.

        Raises:
            EndpointFailed: if the endpoint answers with an error or too late.
        """
        request = urllib.request.Request(
            f"{self.url}/v1/images/generations",
            json.dumps({"model": model, "prompt": prompt, "seed": seed}).encode(),
            {"Content-Type": "application/json"},
        )
        try:
            with urllib.request.urlopen(request, timeout=REQUEST_DEADLINE_S) as answer:
                return base64.b64decode(json.load(answer)["data"][0]["b64_json"])
        except urllib.error.HTTPError as error:
            raise EndpointFailed(
                f"the endpoint generated no image with {model}: {_message_of(error)}",
                "fix the cause, then run the command again",
            ) from error
        except OSError as error:  # includes URLError and timeouts
            raise EndpointFailed(
                f"the endpoint did not answer within {REQUEST_DEADLINE_S:.0f} s: {error}",
                "run the command again when the machine is less busy",
            ) from error

    def generate_all(self, prompts: Mapping[str, str], *, seed: int) -> dict[str, bytes]:
        """One image for each adapter's prompt; concurrent requests share batches.

        Raises:
            EndpointFailed: as in ``generate``.
        """
        with ThreadPoolExecutor(REQUESTS_AT_ONCE) as pool:
            made = pool.map(lambda item: self.generate(*item, seed=seed), prompts.items())
            return dict(zip(prompts, made, strict=True))


@contextmanager
def temporary_endpoint(
    store: str, options: Sequence[str] = (), *, deadline_s: float = START_DEADLINE_S
) -> Iterator[Endpoint]:
    """Serve a store on a free local port for as long as the block lasts.

    Args:
        options: further options of ``farm serve``.
        deadline_s: how long it may take until it listens.

    Raises:
        EndpointFailed: if it does not start; the message ends with its last lines of output.
    """
    with tempfile.TemporaryDirectory(prefix="farm-endpoint-") as folder:
        log = Path(folder) / "log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [*SERVE, "--store", store, "--port", "0", *options],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )
        try:
            yield Endpoint(_wait_for_address(process, log, deadline_s))
        finally:
            _stop(process)


def _wait_for_address(process: subprocess.Popen[bytes], log: Path, deadline_s: float) -> str:
    until_s = time.monotonic() + deadline_s
    while True:
        has_ended = process.poll() is not None
        printed = log.read_text(errors="replace")
        if has_ended:
            what = f"the endpoint exited with code {process.returncode}"
            raise EndpointFailed(f"{what}: {_last_lines(printed)}", "fix the cause that it names")
        if found := ADDRESS.search(printed):
            return found.group(1)
        if time.monotonic() > until_s:
            what = f"the endpoint did not listen within {deadline_s:.0f} s"
            raise EndpointFailed(
                f"{what}: {_last_lines(printed)}",
                "run the command again when the machine is less busy",
            )
        time.sleep(0.1)


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Let it finish running requests; kill it if that takes too long."""
    process.terminate()
    try:
        process.wait(STOP_DEADLINE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _last_lines(printed: str, num: int = 5) -> str:
    lines = [line for line in printed.splitlines() if line.strip()]
    return "\n".join(lines[-num:]) or "it printed nothing"


def _message_of(error: urllib.error.HTTPError) -> str:
    """The message of an error response in OpenAI's format, or its status line."""
    try:
        body: dict[str, Any] = json.load(error)
        return str(body["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return f"{error.code} {error.reason}"
