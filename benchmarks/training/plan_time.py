"""Expected and measured times of runs: a folder of real photos, and the demo.

    python benchmarks/training/plan_time.py --photos PHOTOS --steps 60

Each case runs the command as a user does, in a fresh store, and compares the run's own plan with
the wall clock and with the CPU seconds of all its processes. CPU seconds divided by the number of
cores are a lower bound of the wall time on idle cores; on a busy machine the wall time is far
above it. The demo also renders its photos and generates images through an endpoint, which the plan
does not count. The expected time should be within a factor of two.

Writes ``plan-<n>cpu-<date>.md`` into ``benchmarks/``.
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from farm_vs_plain import FARM, timed

from farm.storage import Store
from farm.training.run.files import list_runs, read_settings

HERE = Path(__file__).parents[1]
PARTS = ("start_s", "class_images_s", "photos_s", "training_s", "pictures_s", "end_s")


@dataclass(frozen=True)
class Case:
    """One command and its measurements."""

    name: str
    command: Sequence[str]
    plan: dict[str, Any]
    wall_s: float
    cpu_s: float
    load: tuple[float, float]
    """Load average before and after."""

    @property
    def expected_s(self) -> float:
        """Expected by the plan."""
        return float(self.plan["hours"]) * 3600

    @property
    def idle_s(self) -> float:
        """CPU seconds divided by the number of cores."""
        return self.cpu_s / cores()


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


def run_case(name: str, store: Path, command: Sequence[str]) -> Case:
    """Run ``farm`` with these arguments and read the plan of its run."""
    before = os.getloadavg()[0]
    wall_s, cpu_s, _ = timed([sys.executable, "-c", FARM, *command])
    opened = Store(store)
    (run_id,) = list_runs(opened)
    plan = read_settings(opened, run_id)["plan"]
    return Case(name, command, plan, wall_s, cpu_s, (before, os.getloadavg()[0]))


def processor() -> str:
    """The name of the processor."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor()


def page(cases: Sequence[Case], command: str) -> str:
    """The measurements as Markdown."""
    rows = [
        f"| {case.name} | {case.expected_s:.0f} s | {case.wall_s:.0f} s | {case.cpu_s:.0f} s | "
        f"{case.idle_s:.0f} s | {case.wall_s / case.expected_s:.2f} | "
        f"{case.idle_s / case.expected_s:.2f} | {case.load[0]:.1f} → {case.load[1]:.1f} |"
        for case in cases
    ]
    parts = [
        f"| {case.name} | "
        + " | ".join(f"{case.plan['estimate'][part]:.0f} s" for part in PARTS)
        + f" | {case.plan['estimate']['class_images_s'] / case.expected_s:.0%} |"
        for case in cases
    ]
    commands = [f"- {case.name}: `farm {' '.join(_short(case.command))}`" for case in cases]
    return "\n".join(
        [
            f"# Expected and measured run times, {datetime.date.today()}",
            "",
            f"Embedded base, {cores()} cores of {processor()}. Command: `{command}`; the head of "
            "this script describes the method. If the load average is above the number of cores, "
            "other work was running, and CPU time over cores is the better measure. The demo's "
            "time includes rendering its photos and generating images through an endpoint, which "
            "the plan does not count.",
            "",
            "| case | expected | wall clock | CPU time | CPU time over cores | wall ÷ expected | "
            "CPU ÷ expected | load average |",
            "|---|---|---|---|---|---|---|---|",
            *rows,
            "",
            "What the plan expects of each part:",
            "",
            "| case | start | class images | photos | training | samples and scores | end | "
            "class images' share |",
            "|---|---|---|---|---|---|---|---|",
            *parts,
            "",
            *commands,
            "",
        ]
    )


def write_page(cases: Sequence[Case], command: str) -> None:
    """Write the page after every case, so that an interrupted benchmark keeps its results."""
    target = HERE / f"plan-{cores()}cpu-{datetime.date.today()}.md"
    target.write_text(page(cases, command))
    print(target)


def _short(words: Sequence[str]) -> list[str]:
    return [Path(word).name if "/" in word else word for word in words]


def main() -> None:
    """Measure and write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--photos", type=Path, help="A folder of real subjects, with subjects.csv.")
    parser.add_argument("--steps", type=int, default=60, help="Training steps on these photos.")
    parser.add_argument("--demo", type=int, default=16, help="Subjects of the demo; 0 skips it.")
    options = parser.parse_args()
    words = [Path(sys.argv[0]).name, *_short(sys.argv[1:])]
    typed = "python benchmarks/" + " ".join(words)
    cases = []
    with tempfile.TemporaryDirectory(prefix="plan-") as folder:
        work = Path(folder)
        if options.photos:
            num = sum(path.is_dir() for path in options.photos.iterdir())
            command = ["run", str(options.photos), "--store", str(work / "store")]
            command += ["--set", f"steps={options.steps}", "--json"]
            cases.append(run_case(f"farm run, {num} real subjects", work / "store", command))
            write_page(cases, typed)
        if options.demo:
            name = f"farm demo, {options.demo} subjects"
            command = ["demo", "--out", str(work / "demo"), "--subjects", str(options.demo)]
            cases.append(run_case(name, work / "demo" / "store", [*command, "--json"]))
            write_page(cases, typed)


if __name__ == "__main__":
    main()
