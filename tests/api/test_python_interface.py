"""The Python interface: light to import, typed keywords, the farm's own errors, real results."""

from __future__ import annotations

import inspect
import logging
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import get_type_hints

import numpy as np
import pytest
import torch
from PIL import Image
from support.manifests import write_manifest

import farm
from farm.cli.options import RunOptions
from farm.errors import FarmError, ManifestError, UserError
from farm.storage import Store
from farm.training.run.request import RunSummary

QUICK = {"steps": 3, "prior_rows": 0, "num_prior_images": 0, "crops_per_photo": 1, "rank": 2}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, RunSummary]:
    """Two subjects trained on the embedded base in this process: manifest, store, summary."""
    folder = tmp_path_factory.mktemp("python")
    manifest = write_manifest(folder / "m", 2)
    recipe = QUICK | {"learning_rate": 1e-2}
    summary = farm.run(
        manifest,
        store=folder / "store",
        recipe=recipe,
        in_process=True,
        cards=False,
        sample_steps=2,
    )
    return manifest, folder / "store", summary


def test_everything_public_is_named_once_and_exists() -> None:
    assert farm.__all__ == ["Adapter", "__version__", "check", "load", "plan", "run"]
    for name in farm.__all__:
        assert getattr(farm, name)
        assert name in dir(farm)
    with pytest.raises(AttributeError, match="no attribute 'train'"):
        _ = farm.train  # type: ignore[attr-defined]


def test_importing_the_package_imports_nothing_heavy() -> None:
    code = "import farm, sys; print({'torch', 'ray', 'typer', 'pydantic'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@pytest.mark.parametrize("function", [farm.plan, farm.run])
def test_the_keywords_are_the_options_of_the_command_line(function: object) -> None:
    parameters = list(inspect.signature(function).parameters)  # type: ignore[arg-type]
    assert parameters == ["manifest", *(one.name for one in fields(RunOptions))]
    for name in parameters[1:]:
        assert f"\n    {name}: " in (function.__doc__ or "")


@pytest.mark.parametrize("function", [farm.check, farm.load, farm.plan, farm.run])
def test_every_function_is_typed_and_documented(function: object) -> None:
    hints = get_type_hints(inspect.unwrap(function))  # type: ignore[arg-type]
    assert "return" in hints
    assert "Raises:" in (function.__doc__ or "")


def test_check_returns_faults_instead_of_raising(tmp_path: Path) -> None:
    manifest = write_manifest(tmp_path / "m", 2)
    (tmp_path / "m/s001/0.png").write_bytes(b"not a photo")
    report = farm.check(manifest)
    assert [subject.id for subject in report.good_subjects] == ["s000"]
    assert {fault.subject for fault in report.errors} == {"s001"}
    with pytest.raises(ManifestError):
        report.raise_for_errors()
    assert not farm.check(manifest, recipe={"resolution_px": 512}).good_subjects  # photos of 72 px
    with pytest.raises(ManifestError, match="recipe"):
        farm.check(manifest, recipe={"stepps": 1})


def test_plan_writes_nothing_and_says_what_run_would_do(tmp_path: Path) -> None:
    manifest = write_manifest(tmp_path / "m", 3)
    prepared = farm.plan(manifest, store=tmp_path / "store", recipe=QUICK, in_process=True)
    assert (prepared.num_to_train, prepared.committed) == (3, frozenset())
    assert prepared.plan is not None
    assert prepared.plan.num_lanes == 1
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"step": 3}, "has no option 'step'"),
        ({"slot": 3}, "did you mean slots"),
        ({"slots": "four"}, "slots is 'four': it should be a whole number"),
        ({"slots": 0}, "slots is 0"),
        ({"gpu_fraction": 1.5}, "at most 1"),
        ({"recipe": ["steps=3"]}, "recipe is"),
        ({"recipe": {"stepz": 3}}, "stepz"),
        ({"base": "no-such-base"}, "no-such-base"),
        ({"gpu": "toy"}, "memory of 'toy' is not known"),
    ],
)
def test_wrong_options_are_errors_of_the_farm(
    tmp_path: Path, options: dict[str, object], message: str
) -> None:
    manifest = write_manifest(tmp_path / "m", 1)
    with pytest.raises(FarmError, match=message) as caught:
        farm.run(manifest, **{"store": tmp_path / "s", "in_process": True, **options})  # type: ignore[arg-type]
    assert caught.value.remedy
    assert not (tmp_path / "s").exists()


def test_run_trains_reports_and_finds_its_own_work(
    trained: tuple[Path, Path, RunSummary], capfd: pytest.CaptureFixture[str]
) -> None:
    manifest, store, first = trained
    assert (first.committed, first.failed, first.failures) == (2, 0, ())
    run = first.run
    assert Store(store).exists(f"runs/{run}/report.html")
    capfd.readouterr()
    recipe = QUICK | {"learning_rate": 1e-2}
    again = farm.run(manifest, store=store, recipe=recipe, in_process=True)
    assert (again.run, again.committed, again.reused) == (run, 0, 2)
    assert capfd.readouterr().out == ""


def test_run_logs_its_events(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    manifest = write_manifest(tmp_path / "m", 1)
    with caplog.at_level(logging.INFO, logger="farm"):
        farm.run(
            manifest,
            store=tmp_path / "store",
            base="tiny",
            recipe=QUICK,
            in_process=True,
            cards=False,
            samples=0,
            report=False,
        )
    assert any("s000: committed" in record.getMessage() for record in caplog.records)


def test_a_loaded_adapter_generates_what_plain_diffusers_does_with_its_export(
    trained: tuple[Path, Path, RunSummary], tmp_path: Path
) -> None:
    from diffusers import StableDiffusionPipeline

    from farm.base.loading import resolve_folder

    _, store, _ = trained
    adapter = farm.load(store, "s000")
    assert isinstance(adapter, farm.Adapter)
    image = adapter.generate("a photo of [V] cat", seed=5, steps=3)
    again = adapter.generate("a photo of [V] cat", seed=5, steps=3)
    assert image.tobytes() == again.tobytes()
    other = farm.load(store, "default/s001").generate("a photo of [V] cat", seed=5, steps=3)
    assert image.tobytes() != other.tobytes()

    file = adapter.export(tmp_path / "out", "diffusers")
    pipeline = StableDiffusionPipeline.from_pretrained(
        resolve_folder("embedded"), torch_dtype=torch.float32
    )
    pipeline.set_progress_bar_config(disable=True)
    prompt = f"a photo of {adapter.record.identifier} cat"
    ask = {"num_inference_steps": 3, "guidance_scale": 5.0}

    def plain() -> np.ndarray:
        generator = torch.Generator("cpu").manual_seed(5)
        return _pixels(pipeline(prompt, generator=generator, **ask).images[0])

    bare = plain()
    pipeline.load_lora_weights(file.parent, weight_name=file.name)
    assert np.abs(_pixels(image) - plain()).max() <= 2
    assert np.abs(_pixels(image) - bare).mean() > 0.5


def test_an_adapter_is_exported_whole_or_in_one_form(
    trained: tuple[Path, Path, RunSummary], tmp_path: Path
) -> None:
    adapter = farm.load(trained[1], "s001")
    assert (adapter.export(tmp_path / "all") / "adapter.json").is_file()
    assert adapter.export(tmp_path / "one", "kohya").name == "s001.safetensors"
    with pytest.raises(UserError, match="there is no form 'ckpt'"):
        adapter.export(tmp_path, "ckpt")


def test_what_cannot_be_loaded_or_generated_is_an_error_of_the_farm(
    trained: tuple[Path, Path, RunSummary],
) -> None:
    store = trained[1]
    with pytest.raises(UserError, match="no adapter is named default/rex"):
        farm.load(store, "rex")
    with pytest.raises(UserError, match=r"was trained on embedded \(.*\), not on tiny"):
        farm.load(store, "s000", base="tiny")
    adapter = farm.load(store, "s000")
    for wrong in (
        {"steps": 0},
        {"steps": 2.5},
        {"seed": -1},
        {"seed": "7"},
        {"guidance": float("nan")},
        {"prompt": ""},
        {"prompt": "a photo of [V:rex]"},
        {"prompt": None},
        {"size_px": 65},
        {"size_px": (65, 64)},
        {"scheduler": "magic"},
        {"long_prompts": "chop"},
    ):
        with pytest.raises(UserError):
            adapter.generate(**{"prompt": "a photo of [V] cat", **wrong})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "call",
    [
        lambda: farm.check(5),  # type: ignore[arg-type]
        lambda: farm.plan(None),  # type: ignore[arg-type]
        lambda: farm.run(5),  # type: ignore[arg-type]
        lambda: farm.load(5, "tom"),  # type: ignore[arg-type]
        lambda: farm.load("work", 5),  # type: ignore[arg-type]
    ],
)
def test_arguments_of_another_type_are_errors_of_the_farm(call: Callable[[], object]) -> None:
    with pytest.raises(UserError, match=" is (5|None)"):
        call()


def _pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image.convert("RGB")).astype(np.int16)


def test_an_unknown_recipe_field_is_named_without_the_option_of_the_command(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"unknown key `stepz`") as caught:
        farm.run(tmp_path, recipe={"stepz": 3})
    assert "--set" not in str(caught.value)
    assert "command" not in str(caught.value)
    assert "did you mean `steps`?" in caught.value.remedy
