"""Runs the tests marked ``gpu``; the number that passed is the result."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from gpu.results import Result, Results
from gpu.setting import Setting
from gpu.suite import Case

__all__ = ["cases"]

ROOT = Path(__file__).parents[2]


def cases(setting: Setting) -> list[Case]:
    return [Case("gpu tests", _tests, 45)]


def _tests(setting: Setting, results: Results) -> Iterator[Result]:
    """In a process of their own, because one test loses the device.

    The ini file beside this module replaces the project's, which needs plug-ins of pytest.
    """
    ini = Path(__file__).with_name("pytest.ini")
    command = [sys.executable, "-m", "pytest", "-c", str(ini), "--rootdir", str(ROOT)]
    command += ["--confcutdir", str(ROOT / "tests" / "gpu"), "-p", "no:cacheprovider"]
    # on a CPU, where the project's own test run covers the others, one file shows that it works
    tests = ROOT / "tests" / "gpu"
    chosen = ["-m", "gpu", tests] if setting.on_gpu else [tests / "test_device_loss.py"]
    command += map(str, chosen)
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=180, cwd=ROOT,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        },
    )  # fmt: skip
    text = done.stdout + done.stderr
    (results.folder / "tests.txt").write_text(text)
    counts = {
        f"tests_{word}": int(n)
        for n, word in re.findall(r"(\d+) (passed|failed|error|skipped)", text)
    }
    if not counts.get("tests_passed"):
        raise RuntimeError(f"no test passed: {(text.strip().splitlines() or ['no output'])[-1]}")
    yield {**counts, "exit": done.returncode}
