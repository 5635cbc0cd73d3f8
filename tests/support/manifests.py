"""Small real manifests (synthetic photos and a JSONL file), and the adapters of their runs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from farm.adapters.files.folder import load_adapter
from farm.adapters.registry import Registry
from farm.adapters.weights import AdapterWeights
from farm.base.loading import load_base
from farm.storage import Store
from farm.training.lane.settings import SampleSettings
from farm.training.run.request import RunRequest

TINY = "tiny"
QUICK = {"steps": 6, "num_prior_images": 4, "crops_per_photo": 1, "checkpoint_every": 2}


def write_photo(path: Path, seed: int, side: int = 72) -> Path:
    """An image that is unique to its seed."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 255, (6, 6, 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC).save(path)
    return path


def write_manifest(
    folder: Path,
    num_subjects: int,
    *,
    recipe: Mapping[str, object] = QUICK,
    nouns: tuple[str, ...] = ("cat",),
    photos: int = 2,
    prior_steps: int = 2,
    first_seed: int = 0,
) -> Path:
    """A JSONL manifest of subjects ``s000`` and up, with their photos beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for number in range(num_subjects):
        name = f"s{number:03d}"
        seed = first_seed + 100 * number
        files = [write_photo(folder / name / f"{i}.png", seed + i) for i in range(photos)]
        lines.append(
            {
                "id": name,
                "class_noun": nouns[number % len(nouns)],
                "photos": [str(file) for file in files],
                "recipe": dict(recipe),
                "prior": {"steps": prior_steps},
                "sample_prompts": ["a [V] {class_noun}"],
            }
        )
    manifest = folder / "manifest.jsonl"
    manifest.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return manifest


def request(manifest: Path, store: str | Path, **options: object) -> RunRequest:
    """A run of the tiny base in this process, with one quick sample image per subject."""
    defaults: dict[str, object] = {
        "base": TINY,
        "executor": "local",
        "samples": SampleSettings(steps=2),
        "beat_s": 0.1,
    }
    return RunRequest(str(manifest), str(store), **(defaults | options))  # type: ignore[arg-type]


def adapters(store: Store, folder: Path) -> dict[str, AdapterWeights]:
    """Every named adapter, fetched, checked and loaded."""
    registry, base = Registry(store), load_base("tiny")
    loaded = {}
    for named in registry.names():
        registry.fetch(named.job_key, folder / named.name)
        loaded[named.name] = load_adapter(folder / named.name, base)
    return loaded
