"""What a namespace is given of a job that it shares holds nothing of the others."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image
from support.endpoint import make_weights

from farm.adapters.files.folder import load_adapter, save_adapter, verify_files
from farm.adapters.record import AdapterRecord
from farm.adapters.registry import Registry
from farm.base.interface import Base
from farm.base.loading import load_base
from farm.recipe import Recipe
from farm.storage import Store
from farm.training.run.export import export_adapters

BETA = ("hush", "bravo", "weasel", "in the bank vault", "2026-01-01T00:00:00+00:00")
ACME = ("mine", "acme", "on the moon")


def sample(prompt: str, colour: str) -> Image.Image:
    picture = Image.new("RGB", (8, 8), colour)
    picture.info["prompt"] = prompt
    return picture


@pytest.fixture(scope="module")
def base() -> Base:
    return load_base("tiny")


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory, base: Base) -> Registry:
    """bravo trained first; acme, in the same run, has prompts of its own; gamma came later."""
    record = AdapterRecord(
        job_key="0" * 32,
        subject_id="hush",
        namespace="bravo",
        name="hush",
        class_noun="weasel",
        instance_prompt="a photo of sks weasel",
        base_id="tiny",
        base_fingerprint=base.fingerprint,
        recipe=Recipe(rank=4),
        steps_trained=1,
        created=BETA[-1],
    )
    folder = tmp_path_factory.mktemp("saved")
    saved = save_adapter(
        folder,
        make_weights(base, 1),
        record,
        base,
        samples=[sample("sks pet in the bank vault", "red")],
        samples_of_others=[sample("sks pet on the moon", "blue")],
    )
    registry = Registry(Store(tmp_path_factory.mktemp("store")))
    registry.publish(
        saved,
        folder,
        names=[("bravo", "hush"), ("acme", "mine"), ("gamma", "late")],
        prompts=[
            ["sks pet in the bank vault"],
            ["sks pet on the moon"],
            ["sks pet at sea"],
        ],
    )
    return registry


def everything(folder: Path) -> str:
    """All names and bytes in a folder, as text."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    names = " ".join(str(path.relative_to(folder)) for path in files)
    return names + "".join(path.read_bytes().decode("latin-1") for path in files)


def test_a_tenant_that_joined_gets_its_own_name_and_pictures_only(
    registry: Registry, base: Base, tmp_path: Path
) -> None:
    ((_, folder),) = export_adapters(registry.store, tmp_path, names=["acme/mine"]).written
    text = everything(folder)
    assert not [word for word in BETA if word in text]
    record = AdapterRecord.read(folder)
    assert (record.namespace, record.name, record.subject_id) == ("acme", "mine", "mine")
    assert len(record.sample_prompts) == 1
    assert "mine.kohya.safetensors" in record.files
    verify_files(folder, record)
    assert "moon" in (folder / "README.md").read_text()
    weights = load_adapter(folder, base)
    kohya = load_adapter(folder / "mine.kohya.safetensors", base)
    assert weights.layers.keys() == kohya.layers.keys()


def test_the_tenant_that_trained_it_is_not_given_the_others_pictures(
    registry: Registry, tmp_path: Path
) -> None:
    ((_, folder),) = export_adapters(registry.store, tmp_path, names=["bravo/hush"]).written
    text = everything(folder)
    assert not [word for word in ACME if word in text]
    assert AdapterRecord.read(folder).class_noun == "weasel"
    verify_files(folder, AdapterRecord.read(folder))


def test_a_tenant_that_came_later_gets_no_pictures(registry: Registry, tmp_path: Path) -> None:
    ((_, folder),) = export_adapters(registry.store, tmp_path, names=["gamma/late"]).written
    text = everything(folder)
    assert not [word for word in (*BETA, *ACME) if word in text]
    assert not list(folder.rglob("*.png"))


def test_one_format_alone_is_exported_with_ones_own_words(
    registry: Registry, tmp_path: Path
) -> None:
    ((_, file),) = export_adapters(
        registry.store, tmp_path, names=["gamma/late"], form="kohya"
    ).written
    data = file.read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]
    assert header["modelspec.title"] == "late"
    assert "modelspec.thumbnail" not in header
    assert not [word for word in BETA if word in json.dumps(header)]


def test_an_export_is_repeated_without_traces(registry: Registry, tmp_path: Path) -> None:
    for _ in range(2):
        ((_, folder),) = export_adapters(registry.store, tmp_path, names=["gamma/late"]).written
    assert [path.name for path in tmp_path.rglob("*.kohya.safetensors")] == [
        "late.kohya.safetensors"
    ]
    assert not list(folder.parent.glob(".farm-export-*"))
