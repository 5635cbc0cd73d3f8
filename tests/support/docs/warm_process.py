"""Starts and ends the process that programs are forked from; ``warm`` has its two ends."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path


class WarmProcess:
    """A process that is ready to fork, or has ended where it cannot be forked safely."""

    def __init__(
        self, command: Sequence[str | Path], environment: Mapping[str, str], folder: Path
    ) -> None:
        """Start a command that calls ``warm.serve``, in a folder."""
        self._process = subprocess.Popen(
            command,
            cwd=folder,
            # numpy's own threads would start on import, and must not be forked
            env={**environment, "OPENBLAS_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        self._process.stdout.readline()  # written when it is ready, or closed when it has ended

    def close(self) -> None:
        """End it; programs that it has forked run on."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(60)


@contextmanager
def forked_farm() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Yields a function that starts a farm command, each in a fork of one warm process."""
    with tempfile.TemporaryDirectory(prefix="farm-") as short:  # sockets have short names
        environment = os.environ | {
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
            "SMALL": "{}",
            "WARM": f"{short}/warm",
        }
        serve = f"from support.docs.warm import serve; serve('{short}/warm')"
        start = [sys.executable, "-c", "from support.docs.warm import start; start('farm')"]
        warm = WarmProcess([sys.executable, "-c", serve], environment, Path(short))
        try:
            yield lambda *arguments: subprocess.Popen(
                [*start, *arguments],
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        finally:
            warm.close()
