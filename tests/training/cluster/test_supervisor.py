"""A driver that died is restarted; one that exited normally is not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from farm.training.cluster.jobs.supervisor import supervise


def script(folder: Path, text: str) -> list[str]:
    """A command that counts its starts in ``starts``, then runs the text."""
    file = folder / "driver.py"
    file.write_text(
        f"import os, signal, sys, time\nlog = {str(folder / 'starts')!r}\n"
        "with open(log, 'a') as f: f.write('x')\nstarts = len(open(log).read())\n" + text
    )
    return [sys.executable, str(file)]


def starts(folder: Path) -> int:
    return len((folder / "starts").read_text())


def test_a_killed_driver_is_started_again_until_it_ends(tmp_path: Path) -> None:
    reports: list[str] = []
    command = script(tmp_path, "if starts < 3: os.kill(os.getpid(), signal.SIGKILL)\nsys.exit(4)\n")
    assert supervise(command, retries=5, report=reports.append, first_pause_s=0.05) == 4
    assert starts(tmp_path) == 3
    assert [("signal 9" in line) for line in reports] == [True, True]


@pytest.mark.parametrize("code", [0, 2, 3, 4, 5, 130])
def test_an_end_is_an_end(tmp_path: Path, code: int) -> None:
    command = script(tmp_path, f"sys.exit({code})\n")
    assert supervise(command, retries=3, report=lambda _: None, first_pause_s=0.05) == code
    assert starts(tmp_path) == 1


def test_retries_run_out(tmp_path: Path) -> None:
    command = script(tmp_path, "sys.exit(1)\n")
    reports: list[str] = []
    assert supervise(command, retries=2, report=reports.append, first_pause_s=0.05) == 1
    assert starts(tmp_path) == 3
    assert "not started again" in reports[-1]


def test_a_stop_reaches_the_driver_and_ends_the_supervision(tmp_path: Path) -> None:
    driver = script(
        tmp_path,
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))\n"
        f"open({str(tmp_path / 'ready')!r}, 'w').close()\ntime.sleep(60)\n",
    )
    code = (
        "import sys; from farm.training.cluster.jobs.supervisor import supervise;"
        f"sys.exit(supervise({driver!r}, retries=5, report=print))"
    )
    process = subprocess.Popen([sys.executable, "-c", code])
    while not (tmp_path / "ready").exists():
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGTERM)
    assert process.wait(30) == 1
    assert starts(tmp_path) == 1
