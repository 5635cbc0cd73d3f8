"""The log of a training: one JSON line per logged step, also printed."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch


@dataclass
class ProgressLog:
    """Appends lines of `{stage, step, elapsed_s, …}` to a file."""

    path: Path
    started_s: float = field(default_factory=time.monotonic)

    def log(self, stage: str, step: int, **numbers: float) -> None:
        """Write one line."""
        line = {
            "stage": stage,
            "step": step,
            "elapsed_s": round(time.monotonic() - self.started_s, 1),
            **{name: float(f"{value:.5g}") for name, value in numbers.items()},
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")
        print(json.dumps(line), flush=True)


@dataclass(frozen=True)
class StageRun:
    """How one stage trains: its length, log, checkpoint, seed and device."""

    num_steps: int
    progress: ProgressLog
    checkpoint: Path
    seed: int
    device: torch.device
