"""Processes that compute on CPU cores keep the memory that a pass frees."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping

import pytest

PASSES = """
import resource, sys
import numpy as np
from farm.base.device.heap import keep_freed_memory
keep_freed_memory(sys.argv[1])
for turn in range(30):
    if turn == 10:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    blocks = [np.ones(2**20) for _ in range(4)]  # 32 MB, all freed at the end of each turn
    del blocks
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(device: str, environment: Mapping[str, str] = {}) -> int:  # noqa: B006
    """Of 20 passes, after the first ones."""
    variables = {name: value for name, value in os.environ.items() if "MALLOC" not in name}
    done = subprocess.run(
        [sys.executable, "-c", PASSES, device],
        env={**variables, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return int(done.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="a setting of glibc")
def test_freed_memory_stays_on_a_cpu_unless_the_environment_says_otherwise() -> None:
    kept = page_faults("cpu")
    assert kept < 1_000
    assert page_faults("cuda") > 10 * max(kept, 100)
    assert page_faults("cpu", {"MALLOC_TRIM_THRESHOLD_": "131072"}) > 10 * max(kept, 100)
