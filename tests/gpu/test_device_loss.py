"""A lost device is recognised by the errors that CUDA really raises."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from farm.base.device.cuda_errors import device_is_lost

LOSE = """
import torch
from farm.base.device.cuda_errors import device_is_lost
try:
    torch.zeros(4, device="cuda")[torch.tensor([9], device="cuda")].sum().item()
except Exception as error:
    assert device_is_lost(error), error
    try:
        torch.ones(1, device="cuda").item()
    except Exception as later:
        assert device_is_lost(later), later
        print("lost")
"""
FULL = """
import torch
from farm.base.device.cuda_errors import device_is_lost
try:
    torch.empty(1 << 50, dtype=torch.uint8, device="cuda")
except torch.OutOfMemoryError as error:
    assert not device_is_lost(error), error
    print(torch.ones(1, device="cuda").item())
"""


@pytest.mark.gpu
@pytest.mark.parametrize(("script", "output"), [(LOSE, "lost"), (FULL, "1.0")])
def test_a_failed_assertion_loses_the_device_and_a_full_memory_does_not(
    script: str, output: str
) -> None:
    """In a process of its own, whose device is lost for good."""
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.split() == [output], done.stderr


def test_an_error_of_the_cpu_loses_no_device() -> None:
    with pytest.raises(RuntimeError) as raised:
        torch.ones(2, 3) @ torch.ones(2, 3)
    assert not device_is_lost(raised.value)
