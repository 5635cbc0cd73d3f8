"""The HTML report of a large run: CPU time and memory to build it, and the time until it is shown.

    python benchmarks/cluster/scale_report.py --subjects 20000 --pictures 0.1 --names 100000

A run with jobs, ledger and committed adapters is written to a local folder; a share of the subjects
has a photo and a sample image that can be read. The report is built in its own process and opened
in a headless Chromium, if there is one with chromedriver. ``--names`` also makes and opens the
first page of a run of this many subjects, from invented rows: reading as many adapters takes
minutes, and adds nothing to that page.

Writes ``scale-report-<number>-<n>cpu-<date>.md`` into ``benchmarks/``.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from scale_lanes import STEPS, make_jobs

from farm.adapters.record import AdapterRecord, utc_now
from farm.intake.subject import Photo
from farm.quality.report.view import VERDICT_ORDER
from farm.storage import Store
from farm.training.dispatch.ledger import Ledger
from farm.training.dispatch.messages import Assignment
from farm.training.run.files import write_settings
from farm.training.run.job_files import write_assignments

HERE = Path(__file__).parents[1]
RUN, LANES, NUM_IMAGES, FAILED = "scale", 1000, 200, 0.02
NOUNS = ("cat", "dog", "backpack", "vase", "robot")
REASONS = ("a photo is truncated", "the weights are not finite", "six lanes died", "cancelled")
OPENED = """
const paint = performance.getEntriesByName("first-contentful-paint")[0];
const page = performance.getEntriesByType("navigation")[0];
return {paint_ms: paint ? paint.startTime : null, ready_ms: page.domContentLoadedEventEnd};
"""
TURNED = """
const began = performance.now();
%s
document.body.offsetHeight;
return performance.now() - began;
"""
ACTIONS = {
    "next": 'document.getElementById("next").click();',
    "search": 'const s = document.getElementById("search"); s.value = "subject-0099";'
    ' s.dispatchEvent(new Event("input"));',
    "name": 'document.querySelector("[data-sort=name]").click();',
    "gain": 'document.querySelector("[data-sort=gain]").click();',
}


def write_images(folder: Path) -> list[bytes]:
    """Images of 96 px as photos, and their bytes."""
    rng, found = np.random.default_rng(0), []
    for number in range(NUM_IMAGES):
        coarse = Image.fromarray(rng.integers(0, 255, (6, 6, 3), dtype=np.uint8))
        path = folder / f"{number}.jpg"
        coarse.resize((96, 96), Image.Resampling.BICUBIC).save(path, "JPEG", quality=85)
        found.append(path.read_bytes())
    return found


def jobs_of(number: int, photos: Path, share: float) -> Iterator[Assignment]:
    """Jobs whose photos are local; those of some subjects exist."""
    for index, job in enumerate(make_jobs(number)):
        is_there = index % round(1 / share) == 0 if share else False
        place = photos / f"{index % NUM_IMAGES}.jpg" if is_there else photos / "gone.jpg"
        changed = {"photos": (Photo(str(place)),), "class_noun": NOUNS[index % len(NOUNS)]}
        subject = job.spec.subject.model_copy(update=changed)
        yield Assignment(job.spec.model_copy(update={"subject": subject}), job.names)


def card(gain: float) -> dict[str, Any]:
    """A quality card with one score."""
    label = "learned well" if gain > 0.5 else "partly learned" if gain > 0.3 else "never learned"
    verdict = {"label": label, "headline": f"It {label}.", "reasons": [], "remedies": []}
    scores = {"clip_i": {"mean": gain, "low": gain - 0.03, "high": gain + 0.03, "num": 8}}
    evidence = {"gain": gain, "capture": 0.1, "prompt_ratio": 0.95, "diversity_ratio": 0.9}
    card = {"scores": scores, "base_scores": {}, "evidence": evidence, "verdict": verdict}
    return card | {"scorers": {"clip": "embedded"}, "protocol": "synthetic world"}


def write_adapter(folder: Path, job: Assignment, image: bytes | None, gain: float) -> None:
    """A committed adapter's record, with a sample image if there is one."""
    spec = job.spec
    place = folder / "adapters" / spec.key
    place.mkdir(parents=True)
    names = [f"samples/{n:03d}.png" for n in range(len(spec.subject.sample_prompts))]
    if image is not None:
        (place / "samples").mkdir()
        for name in names:
            (place / name).write_bytes(image)
    record = AdapterRecord.model_validate(
        {
            "job_key": spec.key,
            "subject_id": spec.subject.id,
            "name": spec.subject.id,
            "class_noun": spec.subject.class_noun,
            "instance_prompt": "a photo of sks cat",
            "base_id": "sd15",
            "base_fingerprint": "f" * 64,
            "recipe": spec.subject.recipe,
            "photo_digests": spec.photo_digests,
            "steps_trained": STEPS,
            "stopped_because": "steps",
            "loss_curve": [0.3] * 100,
            "gpu_seconds": 120.0 * (1 + gain),
            "created": utc_now(),
            "files": dict.fromkeys(() if image is None else names, "a" * 64),
            "quality": card(gain),
        }
    )
    (place / "adapter.json").write_text(record.model_dump_json())


def write_run(folder: Path, photos: Path, number: int, share: float) -> None:
    """A finished run of this many subjects."""
    store, rng, clock = Store(folder), random.Random(0), [1000.0]
    images = write_images(photos)
    write_assignments(store, RUN, jobs_of(number, photos, share))
    write_settings(store, RUN, {"base": {"name": "sd15"}, "plan": {"num_nodes": 125}})
    ledger = Ledger(store, RUN, epoch=1, clock=lambda: clock[0])
    for index, job in enumerate(jobs_of(number, photos, share)):
        lane, clock[0] = f"run-1-{index % LANES}.0#x", 1000.0 + index // LANES * 15
        ledger.append("queued", job.key)
        ledger.append("leased", job.key, lane=lane)
        clock[0] += 14.0
        if rng.random() < FAILED:
            reason = rng.choice(REASONS)
            ledger.append("quarantined", job.key, reason=reason, remedy="see the log")
        else:
            is_there = share and index % round(1 / share) == 0
            image = images[index % NUM_IMAGES] if is_there else None
            write_adapter(folder, job, image, rng.random())
            ledger.append("committed", job.key, step=STEPS, seconds=120.0)
        if index % 1000 == 0:
            ledger.flush()
    ledger.flush()
    ledger.settle()


def build(url: str) -> dict[str, float]:
    """Write the report in this process."""
    from farm.quality.report.collect import report_run

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began, wall = time.process_time(), time.perf_counter()
    summary = report_run(Store(url), RUN)
    return {
        "cpu_s": time.process_time() - began,
        "wall_s": time.perf_counter() - wall,
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "import_mib": before / 1024,
        "pages": summary["pages"],
        "mib": summary["bytes"] / 2**20,
        "first_mib": (Path(summary["report"]).stat().st_size) / 2**20,
    }


def write_overview(page: Path, number: int) -> dict[str, float]:
    """The first page of a run of this many subjects; returns its cost and size."""
    from farm.quality.report.page import render_overview
    from farm.quality.report.subject import SubjectRow
    from farm.quality.report.view import LaneSpan, RunView

    rng, rows, spans = random.Random(1), list[SubjectRow](), list[LaneSpan]()
    for index in range(number):
        name, failed = f"subject-{index:07d}", rng.random() < FAILED
        gain = None if failed else rng.random()
        verdict = "failed" if gain is None else card(gain)["verdict"]["label"]
        rank = VERDICT_ORDER.index(verdict)
        kept, prompt = (None, None) if failed else (rng.random(), rng.random())
        start = index // LANES * 15.0
        spans.append(LaneSpan(f"l{index % LANES:04d}", start, start + 14, name, name, not failed))
        status, reason = ("quarantined", rng.choice(REASONS)) if failed else ("committed", "")
        row = (index, name, name, name, "default", NOUNS[index % 5], status, verdict, rank)
        work = (STEPS, STEPS, 100.0 + 40 * rng.random(), False, reason, "")
        rows.append(SubjectRow(*row, gain, prompt, kept, *work))
    run = RunView(RUN, "sd15", "now", number / LANES * 15.0, rows, spans)
    began = time.process_time()
    links = {"folder": f"report-{RUN}", "size": 200}
    text = render_overview(run, lambda n: f"report-{RUN}/{n // 200:04d}.html#subject-{n}", links)
    page.write_text(text)
    size = page.stat().st_size / 2**20
    return {"overview_cpu_s": time.process_time() - began, "overview_mib": size}


def look(page: Path, screenshots: Path | None) -> dict[str, float]:
    """Open the report in a browser: the best of three openings, then some actions."""
    from selenium.webdriver import Chrome, ChromeOptions
    from selenium.webdriver.chrome.service import Service

    options = ChromeOptions()
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=1280,1600"):
        options.add_argument(flag)
    options.binary_location = str(shutil.which("chromium"))
    driver = Chrome(options=options, service=Service(str(shutil.which("chromedriver"))))
    try:
        opened = []
        for _ in range(3):
            driver.get("about:blank")
            driver.get(page.as_uri())
            time.sleep(0.5)
            opened.append(driver.execute_script(OPENED))
        facts: dict[str, float] = min(opened, key=lambda one: one["ready_ms"])
        if screenshots is not None:
            driver.save_screenshot(str(screenshots / "overview.png"))
        for name, action in ACTIONS.items():
            facts[f"{name}_ms"] = driver.execute_script(TURNED % action)
        if screenshots is not None:
            driver.save_screenshot(str(screenshots / "searched.png"))
        part = page.parent / f"report-{RUN}" / "0000.html"
        if part.exists():
            driver.get(part.as_uri() + "#subject-0")
            facts["part_ms"] = driver.execute_script(OPENED)["ready_ms"]
            if screenshots is not None:
                driver.save_screenshot(str(screenshots / "subject.png"))
        return facts
    finally:
        driver.quit()


TEXTS = {
    "paint_ms": "first content painted",
    "ready_ms": "all names searchable",
    "next_ms": "next page of the table",
    "search_ms": "search in all names",
    "name_ms": "sort by name",
    "gain_ms": "sort by score",
    "part_ms": "a subject's own page, from a link",
}


def page_of(
    arguments: argparse.Namespace,
    built: dict[str, float],
    seen: dict[str, float],
    many: dict[str, float],
) -> str:
    """The page, in Markdown."""
    num, names = arguments.subjects, arguments.names
    figures = [
        ("pages", f"{built['pages']:.0f}, {built['mib']:,.0f} MiB", ""),
        ("CPU time to build them", f"{built['cpu_s']:.0f} s,"
         f" {built['cpu_s'] / num * 1e3:.1f} ms per subject", f"{many['overview_cpu_s']:.1f} s"),
        ("peak memory of the process", f"{built['peak_mib']:.0f} MiB,"
         f" {built['import_mib']:.0f} MiB of it before the report", ""),
        ("size of the first page", f"{built['first_mib']:.1f} MiB",
         f"{many['overview_mib']:.1f} MiB"),
    ]  # fmt: skip
    for name, text in TEXTS.items():
        each = [f"{one[name]:.0f} ms" if one.get(name) else "" for one in (seen, many)]
        figures.append((f"first page: {text}" if name != "part_ms" else text, each[0], each[1]))
    return "\n".join(
        [
            f"# Report of {num:,} subjects, and the first page of {names:,}",
            "",
            f"{datetime.date.today()}, {os.cpu_count()} CPU cores shared with other work (load"
            f" average {os.getloadavg()[0]:.1f}), local folder as the store, Python"
            f" {sys.version.split()[0]}, headless Chromium, best of three openings;"
            f" `python benchmarks/cluster/scale_report.py --subjects {num} --pictures"
            f" {arguments.pictures:g} --names {names}`. {arguments.pictures:.0%} of the subjects"
            " have a photo and images of 96 px that can be read; larger photos cost their decoding."
            f" The first page of {names:,} subjects is made from invented rows.",
            "",
            f"| | {num:,} | first page of {names:,} |",
            "|---|---|---|",
            *(f"| {text} | {value} | {other} |" for text, value, other in figures),
            "",
            "Wanted: the first page within 300 ms.",
            "",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--subjects", type=int, default=10_000)
    parser.add_argument("--pictures", type=float, default=0.1, help="share with images")
    parser.add_argument("--names", type=int, default=100_000)
    parser.add_argument("--screenshots", type=Path, help="folder for pictures of the pages")
    parser.add_argument("--out", type=Path, default=HERE)
    parser.add_argument("--build", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.build:
        print(json.dumps(build(arguments.build)))
        return
    with tempfile.TemporaryDirectory() as folder:
        store, photos = Path(folder) / "store", Path(folder) / "photos"
        photos.mkdir()
        write_run(store, photos, arguments.subjects, arguments.pictures)
        command = [sys.executable, __file__, "--build", str(store)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        built = json.loads(done.stdout.splitlines()[-1])
        page = store / "runs" / RUN / "report.html"
        has_browser = shutil.which("chromium") and shutil.which("chromedriver")
        seen = look(page, arguments.screenshots) if has_browser else {}
        overview = Path(folder) / "overview.html"
        many = write_overview(overview, arguments.names)
        if has_browser:
            many |= look(overview, arguments.screenshots)
    text = page_of(arguments, built, seen, many)
    name = f"scale-report-{arguments.subjects}-{os.cpu_count()}cpu-{datetime.date.today()}.md"
    (arguments.out / name).write_text(text)
    print(text)


if __name__ == "__main__":
    main()
