"""Time and memory of `farm check` on 10,000 subjects with 50,000 small photos.

    python benchmarks/check_intake.py [--subjects 10000] [--photos 5] [--side 256] [--keep FOLDER]
    python benchmarks/check_intake.py --twice --photos 3 --side 96

Generates the photos, writes the manifest in every format, measures each reading and the check in
separate processes, and writes benchmarks/intake-<cpu>-<date>.md. ``--twice`` only runs the command
`farm check` two times, the second time with what the first one remembers, then `farm plan`, and
writes benchmarks/check-twice-<subjects>x<photos>-<date>.md.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import io
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

HERE = Path(__file__).parent
FORMS = ("yaml", "json", "jsonl", "csv", "parquet", "folder")
POOL = 500
"""Number of different images; more than photos per subject, so that no two of a subject match."""
NOUNS = ("cat", "dog", "toy", "vase", "backpack")


def generate_photos(folder: Path, num_subjects: int, num_photos: int, side_px: int) -> None:
    """Write the photos: images from a pool, each file made unique by bytes after its end."""
    pool = [_picture(seed, side_px) for seed in range(min(POOL, num_subjects * num_photos))]
    number = 0
    for subject in range(num_subjects):
        place = folder / f"subject-{subject:05}"
        place.mkdir(parents=True, exist_ok=True)
        for photo in range(num_photos):
            data = pool[number % len(pool)] + f"photo {number}".encode()
            (place / f"{photo}.jpg").write_bytes(data)
            number += 1


def _picture(seed: int, side_px: int) -> bytes:
    """A JPEG file of a smooth random image with grain, as expensive to decode as a photo."""
    random = np.random.default_rng(seed)
    coarse = random.integers(0, 255, (8, 8, 3), dtype=np.uint8)
    smooth = Image.fromarray(coarse).resize((side_px, side_px), Image.Resampling.BICUBIC)
    grain = random.integers(-9, 9, (side_px, side_px, 1), dtype=np.int16)
    pixels = (np.asarray(smooth, dtype=np.int16) + grain).clip(0, 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


def write_manifests(folder: Path, num_subjects: int) -> None:
    """The same subjects in every format; `folder` needs its subjects.csv."""
    subjects = [
        {"id": f"subject-{n:05}", "class_noun": NOUNS[n % len(NOUNS)], "priority": n % 3}
        for n in range(num_subjects)
    ]
    rows = [subject | {"photos": subject["id"]} for subject in subjects]
    yaml = ["version: 1", "defaults:", "  recipe: {steps: 300, rank: 4}", "subjects:"]
    for row in rows:
        yaml += [f"  - id: {row['id']}", f"    class_noun: {row['class_noun']}"]
        yaml += [f"    priority: {row['priority']}", f"    photos: {row['photos']}"]
    (folder / "m.yaml").write_text("\n".join(yaml) + "\n")
    (folder / "m.json").write_text(json.dumps({"version": 1, "subjects": rows}, indent=1))
    (folder / "m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with open(folder / "m.csv", "w", newline="") as file:
        table = csv.DictWriter(file, rows[0])
        table.writeheader()
        table.writerows(rows)
    with open(folder / "subjects.csv", "w", newline="") as file:
        short = csv.writer(file)
        short.writerow(("subject", "class"))
        short.writerows((subject["id"], subject["class_noun"]) for subject in subjects)


def measure(url: str, with_photos: bool) -> dict[str, float]:
    """Read, and check, one manifest in this process."""
    import imagehash  # noqa: F401  # not the check's time

    from farm.intake.check import check_manifest
    from farm.intake.manifest import read_manifest

    facts: dict[str, float] = {"start_mib": _rss_mib()}
    started, cpu = time.perf_counter(), time.process_time()
    manifest = read_manifest(url, strict=False)
    facts["read_s"] = time.perf_counter() - started
    facts["read_cpu_s"] = time.process_time() - cpu
    facts["read_mib"] = _rss_mib()
    facts["subjects"] = len(manifest)
    if not with_photos:
        return facts
    marks: dict[int, float] = {}

    def progress(done: int, total: int) -> None:
        marks.setdefault(10 * done // total, _rss_mib())

    started, cpu = time.perf_counter(), time.process_time()
    report = check_manifest(manifest, resolution_px=64, progress=progress)
    facts["check_s"] = time.perf_counter() - started
    facts["check_cpu_s"] = time.process_time() - cpu
    facts |= {"photos": report.num_photos, "faults": len(report.faults)}
    facts |= {"mib": report.num_bytes / 2**20, "trainable": len(report.good_subjects)}
    return facts | {f"rss_at_{tenth}0": mib for tenth, mib in marks.items()} | {"peak_mib": _peak()}


def _rss_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def _peak() -> float:
    # not getrusage: its maximum is inherited from the parent
    found = re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())
    return int(found.group(1)) / 1024 if found else float("nan")


def compare_workers(folder: Path, num_photos: int) -> dict[str, float]:
    """Photos per second with one thread, a thread per core, one more, and a process per core."""
    from farm.intake.photos.inspect import inspect_photos

    uris = [str(path) for path in sorted(folder.glob("subject-*/*.jpg"))[:num_photos]]
    chunks = [uris[start : start + 16] for start in range(0, len(uris), 16)]
    cores = len(os.sched_getaffinity(0))
    inspect_photos(uris[:500])  # warm the disk cache and load scipy before measuring
    pools = {
        "1 thread(s)": ThreadPoolExecutor(1),
        f"{cores + 1} threads": ThreadPoolExecutor(cores + 1),
        f"{cores} thread(s)": ThreadPoolExecutor(cores),
        f"{cores} process(es)": ProcessPoolExecutor(cores, mp_context=get_context("forkserver")),
    }
    rates = {}
    for name, pool in pools.items():
        with pool:
            list(pool.map(inspect_photos, chunks[:cores]))
            started = time.perf_counter()
            list(pool.map(inspect_photos, chunks))
            rates[name] = len(uris) / (time.perf_counter() - started)
    return rates


def in_fresh_process(url: str, with_photos: bool) -> dict[str, float]:
    """``measure`` in a separate process."""
    command = [sys.executable, __file__, "--measure", url] + ["--with-photos"] * with_photos
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    facts: dict[str, float] = json.loads(output.splitlines()[-1])
    return facts


def cpu_name() -> str:
    """The processor's name, and how many cores this process may use."""
    info = Path("/proc/cpuinfo")
    text = info.read_text() if info.exists() else ""
    match = re.search(r"model name\s*:\s*(.+)", text)
    name = match.group(1) if match else platform.processor() or platform.machine()
    plain = re.sub(r"\((R|TM)\)", "", name)
    cores = len(os.sched_getaffinity(0))
    return f"{plain}, {cores} core{'s' if cores > 1 else ''}"


def write_report(
    results: dict[str, dict[str, float]], rates: dict[str, float], side_px: int, load: float
) -> Path:
    """The measurements as Markdown."""
    whole, today = results["yaml"], datetime.date.today().isoformat()
    cpu = cpu_name()
    tenths = sorted(int(key[7:]) for key in whole if key.startswith("rss_at_"))
    marks = [f"{whole[f'rss_at_{tenth:02}']:.0f}" for tenth in tenths]
    lines = [
        f"# Intake: {whole['subjects']:,.0f} subjects, {whole['photos']:,.0f} photos",
        "",
        f"Written by `benchmarks/check_intake.py` on {today}. {cpu}; Python "
        f"{platform.python_version()}.",
        f"Load average at the start: {load:.1f}; it affects the wall clock, not the CPU time.",
        f"Photos: JPEG, {side_px} x {side_px} px, {whole['mib']:,.0f} MiB, on a local disk.",
        "",
        "## The check (every photo decoded, hashed and compared)",
        "",
        "| | |",
        "|---|---|",
        f"| wall clock | {whole['check_s']:.1f} s |",
        f"| CPU time | {whole['check_cpu_s']:.1f} s |",
        f"| photos per second | {whole['photos'] / whole['check_s']:,.0f} |",
        f"| peak memory of the process | {whole['peak_mib']:.0f} MiB |",
        f"| peak memory before the first photo | {whole['read_mib']:.0f} MiB |",
        f"| memory after each tenth of the photos, MiB | {', '.join(marks)} |",
        f"| faults found | {whole['faults']:.0f} |",
        "",
        "## Reading the manifest (every folder listed, every subject resolved)",
        "",
        "| format | wall clock, s | CPU, s | memory growth, MiB |",
        "|---|---:|---:|---:|",
    ]
    for form, facts in results.items():
        grown = facts["read_mib"] - facts["start_mib"]
        times = f"{facts['read_s']:.1f} | {facts['read_cpu_s']:.1f}"
        lines.append(f"| {form} | {times} | {grown:.0f} |")
    lines += ["", "## Threads or processes", "", "| workers | photos per second |", "|---|---:|"]
    lines += [f"| {name} | {rate:,.0f} |" for name, rate in rates.items()]
    slug = re.sub(r"[^a-z0-9]+", "-", cpu.lower()).strip("-")
    path = HERE / f"intake-{slug}-{today}.md"
    path.write_text("\n".join(lines) + "\n")
    return path


def check_twice(folder: Path, num_subjects: int, num_photos: int, side_px: int) -> str:
    """Run `farm check` two times and `farm plan` after it, as a user does; returns the page."""
    generate_photos(folder, num_subjects, num_photos, side_px)
    write_manifests(folder, num_subjects)
    manifest = str(folder / "m.yaml")
    rows = []
    for name in ("check, first", "check, second", "plan"):
        command = ["plan", "--store", str(folder / "store")] if name == "plan" else ["check"]
        load, began = os.getloadavg()[0], time.perf_counter()
        facts, spent, peak_mib = _farm([*command, manifest, "--json"], folder)
        found = facts["jobs"] if name == "plan" else facts["photos"] // num_photos
        assert found == num_subjects, facts
        wall = time.perf_counter() - began
        rows.append(f"| `farm {name}` | {wall:.1f} | {spent:.1f} | {peak_mib:.0f} | {load:.1f} |")
    return "\n".join(
        (
            f"# `farm check` two times, then `farm plan`: {num_subjects:,} subjects,"
            f" {num_subjects * num_photos:,} photos",
            "",
            f"{datetime.date.today()}, {cpu_name()}, Python {platform.python_version()}; `python"
            f" benchmarks/check_intake.py {' '.join(sys.argv[1:])}`. JPEG photos of {side_px} px on"
            " a local disk. The whole commands, with the interpreter's start.",
            "",
            "| | wall clock, s | CPU time, s | peak memory, MiB | load average |",
            "|---|---|---|---|---|",
            *rows,
            "",
            "Wanted: the second check within 5 s, the plan within a few seconds of CPU time.",
            "",
        )
    )


def _farm(arguments: list[str], folder: Path) -> tuple[dict[str, Any], float, float]:
    """Run a command with a cache of its own; returns its JSON, CPU seconds and peak memory."""
    command = [str(Path(sys.executable).parent / "farm"), *arguments]
    env = os.environ | {"FARM_CACHE": str(folder / "cache")}
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(command, env=env, stdout=output, stderr=subprocess.DEVNULL)
        _, _, usage = os.wait4(process.pid, 0)
        output.seek(0)
        facts: dict[str, Any] = json.loads(output.read())
    return facts, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


def run(folder: Path, num_subjects: int, num_photos: int, side_px: int) -> Path:
    """Write photos and manifests, measure, and write the report."""
    if not (folder / "m.yaml").exists():
        generate_photos(folder, num_subjects, num_photos, side_px)
        write_manifests(folder, num_subjects)
    if not (folder / "m.parquet").exists():
        from farm.intake.manifest import read_manifest

        (folder / "m.parquet").write_bytes(read_manifest(str(folder / "m.csv")).to_parquet())
    load = os.getloadavg()[0]
    results = {}
    for form in FORMS:
        url = folder if form == "folder" else folder / f"m.{form}"
        results[form] = in_fresh_process(str(url), form == "yaml")
        print(form, json.dumps(results[form]), file=sys.stderr)
    rates = compare_workers(folder, min(5_000, num_subjects * num_photos))
    return write_report(results, rates, side_px, load)


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--subjects", type=int, default=10_000)
    parser.add_argument("--photos", type=int, default=5)
    parser.add_argument("--side", type=int, default=256)
    parser.add_argument("--keep", type=Path, help="use and keep this folder of photos")
    parser.add_argument("--twice", action="store_true", help="`farm check` two times, `farm plan`")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    parser.add_argument("--with-photos", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.measure, options.with_photos)))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.keep or Path(temporary)
        if options.twice:
            text = check_twice(folder, options.subjects, options.photos, options.side)
            name = f"check-twice-{options.subjects}x{options.photos}-{datetime.date.today()}.md"
            (HERE / name).write_text(text)
            print(text)
            return
        print(run(folder, options.subjects, options.photos, options.side))


if __name__ == "__main__":
    main()
