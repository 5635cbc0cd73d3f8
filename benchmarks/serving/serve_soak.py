"""Minutes of mixed load on the endpoint while adapters come and go and engines are killed.

    python benchmarks/serving/serve_soak.py --minutes 10 --base embedded --out benchmarks

This process serves (on Ray, or with ``--no-ray`` through ``farm serve``), publishes and revokes
adapters, kills engines and records memory; a second process sends requests (``soak_load.py``).
Exits 1 if an image was wrong, a request hung, a response was a 5xx other than 503 after a kill, or
a long-lived process kept growing. Writes ``serve-soak-<machine>-<date>.{md,csv,png}``.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import platform
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import psutil
import torch
from PIL import Image
from soak_load import PROMPT, STEPS
from soak_report import judge, note, plot_memory

from farm.adapters.bank.bank import Bank
from farm.adapters.files.folder import save_adapter
from farm.adapters.generate import generate_adapted
from farm.adapters.record import AdapterRecord
from farm.adapters.registry import Registry
from farm.adapters.weights import AdapterWeights, LayerWeights
from farm.base.loading import load_base
from farm.keys import key_of
from farm.recipe import Recipe
from farm.storage import Store

TARGETS = ("to_q", "to_k", "to_v", "to_out.0")
RANK = 4
SEEDS = (1, 2, 3)


class Studio:
    """Makes adapters, generates each one's reference images, publishes and revokes them."""

    def __init__(self, store: Store, expected: Path, base_name: str) -> None:
        self._registry = Registry(store)
        self._expected = expected
        self._base = load_base(base_name)
        self._bank = Bank(self._base, num_slots=1, max_rank=RANK, target_modules=TARGETS)
        self._bank.init_slot(0, RANK, float(RANK), 0)
        self._shape = self._bank.slot_weights(0)
        self._number = 0
        self.there: list[str] = []
        self._render("tiny" if base_name == "tiny" else base_name, -1)

    def publish(self) -> str:
        """Publish another adapter, as a run commits it."""
        self._number += 1
        name, generator = f"pet-{self._number:03d}", torch.Generator().manual_seed(self._number)
        layers = {
            layer: LayerWeights(old.down, 0.2 * torch.randn(old.up.shape, generator=generator))
            for layer, old in self._shape.layers.items()
        }
        weights = AdapterWeights(layers, self._shape.alphas)
        self._bank.set_slot(0, weights)
        record = AdapterRecord(
            job_key=key_of("soak", number=self._number),
            subject_id=name,
            name=name,
            class_noun="cat",
            instance_prompt=PROMPT,
            base_id=self._base.name,
            base_fingerprint=self._base.fingerprint,
            recipe=Recipe(rank=RANK),
        )
        with tempfile.TemporaryDirectory() as folder:
            saved = save_adapter(folder, weights, record, self._base, forms=("diffusers",))
            self._registry.publish(saved, folder)
        self._render(name, 0)
        self.there.append(name)
        return name

    def revoke(self) -> None:
        """Revoke one of the published adapters."""
        name = self.there.pop(random.randrange(len(self.there)))
        (self._expected / name / "revoked").touch()
        self._registry.revoke("default", name, reason="soak")

    def _render(self, name: str, slot: int) -> None:
        folder = self._expected / name
        folder.mkdir(parents=True)
        pictures = generate_adapted(
            self._base, self._bank, [PROMPT] * 3, SEEDS, [slot] * 3, batch=1, steps=STEPS
        )
        for seed, picture in zip(SEEDS, pictures, strict=True):
            Image.fromarray(picture.numpy()).save(folder / f"{seed}.png")
        (folder / "ready").touch()


# -- serving -----------------------------------------------------------------------------------


@contextmanager
def served_by_ray(store: Store, root: Path, options: argparse.Namespace) -> Iterator[str]:
    """Run the Ray Serve application on a local cluster; yields its address."""
    import ray
    from ray import serve

    from farm.serving.app import build_app

    os.environ.setdefault("RAY_worker_niceness", "0")  # noqa: SIM112 — Ray's spelling
    ray_folder = tempfile.mkdtemp(prefix="ray-")
    ray.init(
        address="local",
        num_cpus=8,
        include_dashboard=False,
        log_to_driver=False,
        configure_logging=False,
        _temp_dir=ray_folder,
    )
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": options.port})
        config = {
            "store": store.url,
            "base": options.base,
            "anonymous_namespace": "default",
            "cache_folder": str(root / "disk"),
            "engine": {"num_slots": 9, "max_rank": 8, "batch_rows": 16},
            "limits": {"pictures_per_minute": 1_000_000, "pictures_waiting": 1000},
            "replicas": {
                "min_engines": options.engines,
                "max_engines": options.engines,
                "cpus_per_engine": 1,
                "cpus_per_ingress": 0.5,
            },
        }
        serve.run(build_app(config), name="farm", route_prefix="/")
        yield f"http://127.0.0.1:{options.port}"
    finally:
        serve.shutdown()
        ray.shutdown()
        shutil.rmtree(ray_folder, ignore_errors=True)


@contextmanager
def served_here(store: Store, root: Path, options: argparse.Namespace) -> Iterator[str]:
    """Run ``farm serve`` in its own process; yields its address."""
    config = root / "serve.yaml"
    config.write_text(
        "engine: {num_slots: 9, max_rank: 8, batch_rows: 16}\n"
        "limits: {pictures_per_minute: 1000000, pictures_waiting: 1000}\n"
        f"cache_folder: {root / 'disk'}\n"
    )
    command = [sys.executable, "-c", "from farm.cli import main; main()", "serve"]
    arguments = ["--store", store.url, "--base", options.base, "--port", "0"]
    process = subprocess.Popen(
        [*command, *arguments, "--config", str(config)], stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    try:
        for line in process.stderr:
            found = re.search(r"at (http://\S+)", line)
            if found:
                threading.Thread(target=process.stderr.read, daemon=True).start()
                yield found.group(1)
                break
        else:
            raise RuntimeError("farm serve did not start")
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def kill_an_engine() -> None:
    """Kill one engine's process at any point of its work."""
    import ray

    names = [
        entry["name"]
        for entry in ray.util.list_named_actors(all_namespaces=True)
        if entry["name"].startswith("SERVE_REPLICA::farm#engine#")
    ]
    if names:
        ray.kill(ray.get_actor(random.choice(names), namespace="serve"))


def memory_mib() -> dict[str, float]:
    """Resident memory in MiB of each serving process started by this one."""
    found = {}
    for process in psutil.Process().children(recursive=True):
        try:
            line = " ".join(process.cmdline())
            if "ServeReplica:farm" in line or " serve " in line:
                part = "engine" if "engine" in line else "ingress" if "ingress" in line else "all"
                found[f"{part} {process.pid}"] = process.memory_info().rss / 2**20
        except psutil.Error:
            continue
    return found


# -- the soak ----------------------------------------------------------------------------------


def soak(options: argparse.Namespace, root: Path) -> dict[str, Any]:
    """Run the soak test; returns its log and measurements."""
    store, expected = Store(root / "store"), root / "expected"
    studio = Studio(store, expected, options.base)
    for _ in range(options.adapters):
        studio.publish()
    kills: list[float] = []
    memory: list[tuple[float, dict[str, float]]] = []
    serving = served_here if options.no_ray else served_by_ray
    with serving(store, root, options) as url:
        wait_until_ready(url)
        seconds = options.minutes * 60
        script = Path(__file__).with_name("soak_load.py")
        load = subprocess.Popen(
            [sys.executable, str(script), url, str(expected), str(root / "log.jsonl")]
            + ["--seconds", str(seconds), "--callers", str(options.callers)]
        )
        started_s = time.time()
        next_change_s, next_kill_s, next_look_s = started_s + 5, started_s + options.kill_every, 0.0
        while load.poll() is None:
            now_s = time.time()
            if now_s >= next_look_s:
                memory.append((now_s - started_s, memory_mib()))
                next_look_s = now_s + max(1.0, seconds / 120)
            if now_s >= next_change_s and now_s < started_s + seconds:
                studio.publish()
                studio.revoke()
                next_change_s = time.time() + options.change_every
            if not options.no_ray and now_s >= next_kill_s and now_s < started_s + seconds - 30:
                kill_an_engine()
                kills.append(now_s)
                next_kill_s = now_s + options.kill_every
            if now_s > started_s + seconds + 300:
                load.kill()
                raise RuntimeError("the callers did not end: a request hung")
            time.sleep(0.5)
    lines = [json.loads(line) for line in (root / "log.jsonl").read_text().splitlines()]
    nearest = nearest_pictures(expected)
    return {
        "lines": lines,
        "kills": kills,
        "kills_at_s": [kill - started_s for kill in kills],
        "memory": memory,
        "nearest": nearest,
    }


def nearest_pictures(expected: Path) -> float:
    """The smallest mean difference between images of two adapters with one seed: the least that an
    image of the wrong adapter would show."""
    pictures = [
        np.asarray(Image.open(file)).astype(float)
        for file in sorted(expected.glob(f"*/{SEEDS[0]}.png"))
    ]
    return min(
        float(np.abs(one - other).mean())
        for i, one in enumerate(pictures)
        for other in pictures[i + 1 :]
    )


def wait_until_ready(url: str) -> None:
    until_s = time.monotonic() + 300
    while time.monotonic() < until_s:
        try:
            if httpx2.get(f"{url}/ready", timeout=10).status_code == 200:
                return
        except httpx2.HTTPError:
            pass
        time.sleep(0.5)
    raise RuntimeError("the endpoint did not become ready")


def main() -> None:
    """Run the soak test and write its page; the exit code is 1 if there were problems."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--base", default="embedded")
    parser.add_argument("--engines", type=int, default=2)
    parser.add_argument("--callers", type=int, default=6)
    parser.add_argument("--adapters", type=int, default=12)
    parser.add_argument("--change-every", type=float, default=10, help="seconds")
    parser.add_argument("--kill-every", type=float, default=60, help="seconds")
    parser.add_argument("--port", type=int, default=8791)
    parser.add_argument("--no-ray", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("benchmarks"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        result = soak(options, Path(folder))
    faults = judge(result)
    options.out.mkdir(parents=True, exist_ok=True)
    name = f"serve-soak-{platform.machine()}-{os.cpu_count()}-cores-{datetime.now(UTC):%Y-%m-%d}"
    with open(options.out / f"{name}.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(result["lines"][0]))
        writer.writeheader()
        writer.writerows(result["lines"])
    plot_memory(result, options.out / f"{name}.png")
    page = note(result, faults, options, f"{name}.png")
    (options.out / f"{name}.md").write_text(page)
    print(page)
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    main()
