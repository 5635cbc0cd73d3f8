"""The GPU suite runs whole on a CPU, with only the packages that a borrowed machine has."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
THERE = (
    "torch",
    "transformers",
    "accelerate",
    "peft",
    "safetensors",
    "pyarrow",
    "fsspec",
    "pytest",
)
"""Packages of the bare machine, with what they need."""
CARRIED = (
    "diffusers", "pydantic", "pydantic-core", "annotated-types", "typing-inspection", "tenacity",
    "importlib-metadata",
)  # fmt: skip
"""The seven wheels."""
HIDER = """
import sys
from importlib.machinery import PathFinder

class Hider(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name.partition(".")[0] in HIDDEN:
            return None
        return PathFinder.find_spec(name, path, target)

sys.meta_path[:] = [Hider if finder is PathFinder else finder for finder in sys.meta_path]
"""
"""Makes packages look as if they were not installed."""


def needed(names: tuple[str, ...]) -> set[str]:
    """Distributions and all that they require, extras left out."""
    found: set[str] = set()
    todo = list(names)
    while todo:
        name = re.sub(r"[-_.]+", "-", todo.pop()).lower()
        if name in found:
            continue
        found.add(name)
        try:
            requires = metadata.requires(name) or []
        except metadata.PackageNotFoundError:  # for another platform
            continue
        todo += [re.split(r"[ ;<>=!~\[(]", line)[0] for line in requires if "extra ==" not in line]
    return found


@pytest.fixture
def bare(tmp_path: Path) -> Iterator[dict[str, str]]:
    """The environment of a process that sees no other packages."""
    allowed = needed(THERE + CARRIED)
    hidden = {
        package
        for package, names in metadata.packages_distributions().items()
        if not {re.sub(r"[-_.]+", "-", name).lower() for name in names} & allowed
        and package not in ("farm", "_distutils_hack", "setuptools", "pkg_resources")
    }
    assert {"ray", "fastapi", "hypothesis"} <= hidden
    site = tmp_path / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(f"HIDDEN = {sorted(hidden)}\n{HIDER}")
    return {
        **os.environ,
        "PYTHON": sys.executable,
        "PYTHONPATH": str(site),
        "FARM_CACHE": str(tmp_path / "cache"),
    }


@pytest.mark.slow
def test_the_suite_measures_every_case_with_the_packages_of_a_bare_machine(
    bare: dict[str, str], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    script = ROOT / "benchmarks" / "gpu_suite.sh"
    done = subprocess.run(
        [str(script), str(out), "600", "--device", "cpu", "--tiny"],
        env=bare, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    results = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    assert not [one for one in results if "failed" in one or "skipped" in one], done.stderr
    kinds = {one["kind"] for one in results}
    assert kinds >= {
        "equality", "gpu tests", "ceilings", "slots", "plain loop", "serving", "swap-in", "beside",
        "profile",
    }  # fmt: skip
    assert all(one["equal"] for one in results if one["kind"] == "equality")
    assert {one["how"] for one in results if one["kind"] == "slots"} >= {
        "eager", "captured", "compiled captured", "channels-first", "checkpointing", "triton",
    }  # fmt: skip
    assert {one["method"] for one in results if one["kind"] == "serving"} >= {
        "mixed adapters", "bare base", "peft, adapter_names", "diffusers, hotswap",
    }  # fmt: skip
    files = [path for path in out.rglob("*") if path.is_file()]
    assert len(files) <= 8
    assert all(re.fullmatch(r"[\w.-]+", path.name) for path in files)
    page = (out / "page.md").read_text()
    assert all(f"## {kind}" in page for kind in kinds)


def test_a_suite_in_which_nothing_ran_fails(bare: dict[str, str], tmp_path: Path) -> None:
    script = ROOT / "benchmarks" / "gpu_suite.sh"
    command = [str(script), str(tmp_path / "out"), "5", "--device", "cuda", "--tiny"]
    hidden = {**bare, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, env=hidden, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "no CUDA device" in done.stderr
