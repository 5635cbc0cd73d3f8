"""The short form of the campaign of faults (``benchmarks/cluster/chaos.py``)."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

CHAOS = Path(__file__).parents[3] / "benchmarks/cluster/chaos.py"
KINDS = (
    "torn transfers",
    "photo replaced",
    "NaN in a slot",
    "dispatcher killed",
    "clock jump",
    "driver killed",
    "lane killed",
    "store refused",
)
"""In this order, the start after the killed driver also trains the job with the replaced photo,
where another order may need a third start, which takes some twenty CPU seconds."""


@pytest.mark.slow
def test_faults_of_every_kind_lose_double_and_leave_nothing(tmp_path: Path) -> None:
    done = subprocess.run(
        [
            *(sys.executable, str(CHAOS), "--subjects", "8", "--faults", "1", "--per-round", "8"),
            *("--seed", "5", "--steps", "30", "--pause", "2", "--nodes", "1"),
            *("--spare-nodes", "0", "--budget-s", "400", "--priors-every", "0"),
            *("--out", str(tmp_path), "--in-order", "--kinds", *KINDS),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (round_,) = json.loads(done.stdout.splitlines()[-1])["rounds"]
    assert round_["found"] == {}
    assert len(round_["faults"]) >= 6  # the run may end before the last ones
    assert tuple(round_["faults"]) == KINDS[: len(round_["faults"])]
    assert list(tmp_path.glob("chaos-*.md"))
