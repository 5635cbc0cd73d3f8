"""The farm against one process per subject with a plain diffusers + peft loop, end to end.

    python benchmarks/training/farm_vs_plain.py --subjects 32 --steps 100 --plain-subjects 4

Both sides start from photos in a folder and end with adapter files, on this machine, one after the
other. The farm is `farm run` as a user starts it: Ray, class images, training, publishing in three
formats. The plain side is the usual script: for each subject a new process that loads the base,
reads the photos, trains a rank-4 LoRA with peft, AdamW and a gradient clip, and saves it, with one
photo and one class image per step. It is measured in two variants. *As published*, it generates its
own class images before training (the same number and steps as the farm, four at a time, the
script's default) and encodes two images at every step. *Precomputed*, it reads existing class
latents and encodes its photos once. Neither side generates samples. A few plain subjects are
measured and their mean is used for all. Wall and CPU seconds are reported; CPU seconds are not
affected by other work on the machine.

Writes ``farm-vs-plain-<n>cpu-<date>.md`` into ``benchmarks/``.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

HERE = Path(__file__).parents[1]
FARM = "from farm.cli import main; main()"


NOUNS = ("cat", "mushroom")
"""The article's two classes; the subjects of a farm share few classes."""
NUM_PRIOR_IMAGES = 100
"""The published script's default."""


def write_subjects(folder: Path, subjects: int, steps: int) -> Path:
    """Rendered subjects with five photos each, and their manifest."""
    import yaml

    from farm.cli.commands.demo import write_demo_manifest

    manifest = write_demo_manifest(folder, subjects, steps, nouns=NOUNS)
    body = yaml.safe_load(manifest.read_text())
    body["defaults"]["recipe"] |= {
        "checkpoint_every": 100_000,
        "num_prior_images": NUM_PRIOR_IMAGES,
    }
    manifest.write_text(yaml.safe_dump(body))
    return manifest


def timed(command: list[str]) -> tuple[float, float, str]:
    """Wall and CPU seconds of a command and all its child processes, and its output."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    watched = CpuWatch()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    watched.follow(process.pid)
    output, _ = process.communicate()
    wall_s = time.perf_counter() - began
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert process.returncode == 0, f"{command} ended with {process.returncode}"
    own = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return wall_s, max(own, watched.stop()), output


class CpuWatch:
    """CPU seconds of a process and its descendants, including Ray's detached processes."""

    def __init__(self) -> None:
        import threading

        self._seen: dict[int, float] = {}
        self._ended = threading.Event()
        self._thread: Any = None

    def follow(self, pid: int) -> None:
        import threading

        self._thread = threading.Thread(target=self._watch, args=(pid,), daemon=True)
        self._thread.start()

    def _watch(self, pid: int) -> None:
        import psutil

        session = os.getsid(pid)
        while not self._ended.wait(0.5):
            for process in psutil.process_iter():
                try:
                    below = {process.pid, *(parent.pid for parent in process.parents())}
                    if pid in below or (os.getsid(process.pid) == session and process.pid == pid):
                        times = process.cpu_times()
                        self._seen[process.pid] = times.user + times.system
                except (psutil.Error, OSError):
                    continue

    def stop(self) -> float:
        self._ended.set()
        self._thread.join()
        return sum(self._seen.values())


def run_farm(manifest: Path, store: Path, base: str) -> dict[str, float]:
    """Measure `farm run` as a user starts it."""
    command = [sys.executable, "-c", FARM, "run", str(manifest), "--store", str(store)]
    command += ["--base", base, "--samples", "0", "--no-cards", "--no-report", "--json"]
    wall_s, cpu_s, output = timed(command)
    summary = json.loads(output.splitlines()[-1])
    assert summary["committed"] == summary["jobs"], summary
    return {"wall_s": wall_s, "cpu_s": cpu_s}


def run_plain(
    manifest: Path, store: Path, base: str, count: int, *, is_precomputed: bool
) -> dict[str, float]:
    """Measure one process per subject; means over ``count`` of them."""
    wall, cpu = [], []
    for number in range(count):
        arguments = ["--one-plain", str(number), "--manifest", str(manifest)]
        arguments += ["--store", str(store), "--base", base]
        arguments += ["--precomputed"] if is_precomputed else []
        wall_s, cpu_s, _ = timed([sys.executable, str(Path(__file__)), *arguments])
        wall.append(wall_s)
        cpu.append(cpu_s)
    return {"wall_s": sum(wall) / count, "cpu_s": sum(cpu) / count}


def generate_class_images(base: Any, spec: Any, count: int) -> Any:
    """Latent moments of class images, generated for one subject as in the script."""
    import torch

    pipeline = base.pipeline()
    pipeline.set_progress_bar_config(disable=True)
    moments = []
    for start in range(0, count, 4):
        pictures = pipeline(
            spec.subject.prompt(spec.subject.class_prompt),
            num_images_per_prompt=min(4, count - start),
            num_inference_steps=25,
            guidance_scale=5.0,
            output_type="pt",
        ).images
        moments.append(base.encode_photos(pictures * 2 - 1))
    return torch.cat(moments)


def train_one_plainly(
    manifest: Path, store: str, base_name: str, number: int, *, is_precomputed: bool
) -> None:
    """The work of one plain process, from photos to a saved adapter."""
    from dataclasses import replace

    from diffusers import StableDiffusionPipeline
    from peft.utils import get_peft_model_state_dict
    from plain_loop import PlainLoop

    from farm.base.loading import load_base
    from farm.training.lane.encode import assemble_job, prepare_photos
    from farm.training.priors.generate import as_prior_set
    from farm.training.priors.storage import read_prior_set
    from farm.training.run.prepare import prepare_run
    from farm.training.run.request import RunRequest

    prepared = prepare_run(RunRequest(str(manifest), store, base=base_name))
    spec = list(prepared.jobs.assignments())[number].spec
    base = load_base(base_name)
    assert spec.prior_key is not None
    prior = as_prior_set(read_prior_set(prepared.store, spec.prior_key), base)
    if not is_precomputed:
        generated = generate_class_images(base, spec, spec.subject.recipe.num_prior_images)
        prior = replace(prior, moments=generated)

    def encode(prompts: Any, _: str) -> Any:
        return base.tokenize(prompts), base.encode_prompts(prompts)

    job = assemble_job(spec, prepare_photos(base, spec), prior, encode)
    loop = PlainLoop(base, job, encode_every_step=not is_precomputed)
    for _ in range(spec.subject.recipe.steps):
        loop.step()
    with tempfile.TemporaryDirectory() as folder:
        StableDiffusionPipeline.save_lora_weights(
            folder, unet_lora_layers=get_peft_model_state_dict(loop.unet)
        )


def write_page(out: Path, facts: dict[str, Any]) -> None:
    farm, subjects = facts["farm"], facts["subjects"]
    rows = []
    for name, key in (("wall clock", "wall_s"), ("CPU time", "cpu_s")):
        farm_each = farm[key] / subjects
        cells = [f"| {name} | {3600 / farm_each:.0f} "]
        for kind in ("script", "precomputed"):
            each = facts[kind][key]
            cells.append(f"| {3600 / each:.0f} | **{each / farm_each:.1f}×** ")
        rows.append("".join(cells) + "|")
    out.write_text(
        f"# The farm against one process per subject, {facts['date']}\n\n"
        f"`{facts['base']}` base, {subjects} subjects of {facts['classes']} classes, "
        f"{facts['steps']} steps with prior preservation on {facts['num_prior_images']} class "
        f"images, {os.cpu_count()} cores, load average {facts['load']:.1f} at the start (from "
        f"other work). Plain: mean of {facts['plain_subjects']} processes of each variant. "
        f"Command: `{facts['command']}`; its docstring describes both sides.\n\n"
        "| subjects per hour | farm | plain, as published | speed-up | "
        "plain, precomputed | speed-up |\n|---|---|---|---|---|---|\n"
        + "\n".join(rows)
        + f"\n\nThe farm took {farm['wall_s']:.0f} s of wall clock and {farm['cpu_s']:.0f} CPU "
        f"seconds for all {subjects}, including Ray's start and class images; one "
        f"plain process took {facts['script']['wall_s']:.0f} s "
        f"({facts['script']['cpu_s']:.0f} CPU seconds) as published and "
        f"{facts['precomputed']['wall_s']:.0f} s ({facts['precomputed']['cpu_s']:.0f}) "
        "precomputed.\n"
    )


def read_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--subjects", type=int, default=32)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--plain-subjects", type=int, default=4)
    parser.add_argument("--base", default="embedded")
    parser.add_argument("--manifest", type=Path)
    parser.add_argument("--store")
    parser.add_argument("--one-plain", type=int)
    parser.add_argument("--precomputed", action="store_true")
    return parser.parse_args()


def main() -> None:
    arguments = read_arguments()
    if arguments.one_plain is not None:
        train_one_plainly(
            arguments.manifest,
            arguments.store,
            arguments.base,
            arguments.one_plain,
            is_precomputed=arguments.precomputed,
        )
        return
    today = datetime.date.today().isoformat()
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        manifest = write_subjects(Path(folder), arguments.subjects, arguments.steps)
        store = Path(folder) / "store"
        farm = run_farm(manifest, store, arguments.base)
        print("farm", farm, flush=True)
        plain = {}
        for kind in ("script", "precomputed"):
            plain[kind] = run_plain(
                manifest,
                store,
                arguments.base,
                arguments.plain_subjects,
                is_precomputed=kind == "precomputed",
            )
            print(kind, plain[kind], flush=True)
    facts = {
        "date": today,
        "base": arguments.base,
        "subjects": arguments.subjects,
        "steps": arguments.steps,
        "plain_subjects": arguments.plain_subjects,
        "load": load,
        "farm": farm,
        "command": " ".join(["python", "benchmarks/training/farm_vs_plain.py", *sys.argv[1:]]),
        "classes": len(NOUNS),
        "num_prior_images": NUM_PRIOR_IMAGES,
    } | plain
    page = HERE / f"farm-vs-plain-{os.cpu_count()}cpu-{today}.md"
    write_page(page, facts)
    print(page.read_text())


if __name__ == "__main__":
    main()
