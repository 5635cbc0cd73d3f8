"""Any base: by name, folder, URL or hub id; only safetensors; one fingerprint per model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from farm.base.fingerprint import fingerprint_folder
from farm.base.loading import load_base, training_dtype
from farm.base.random_weights import build_pipeline
from farm.errors import BaseModelError, UserError


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("base") / "tiny"
    build_pipeline("tiny").save_pretrained(path)
    return path


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "copy"))


def test_two_copies_of_a_model_have_one_fingerprint(folder: Path, copy: Path) -> None:
    (copy / "README.md").write_text("another card")
    config = json.loads((copy / "unet" / "config.json").read_text())
    config["_diffusers_version"] = "0.0.1"
    (copy / "unet" / "config.json").write_text(json.dumps(config, indent=8))
    assert fingerprint_folder(folder) == fingerprint_folder(copy)
    assert load_base(str(copy)).fingerprint == load_base(str(folder)).fingerprint


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_a_changed_weight_changes_the_fingerprint(folder: Path, copy: Path, part: str) -> None:
    path = next((copy / part).glob("*.safetensors"))
    weights = load_file(path)
    name = sorted(weights)[0]
    weights[name] = weights[name] + 1e-3
    save_file(weights, path)
    assert fingerprint_folder(folder) != fingerprint_folder(copy)


def test_a_changed_schedule_changes_the_fingerprint(folder: Path, copy: Path) -> None:
    path = copy / "scheduler" / "scheduler_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "prediction_type": "v_prediction"}))
    assert fingerprint_folder(folder) != fingerprint_folder(copy)


def test_pickled_weights_alone_are_refused_with_the_remedy(copy: Path) -> None:
    path = copy / "unet" / "diffusion_pytorch_model.safetensors"
    torch.save(load_file(path), path.with_suffix(".bin"))
    path.unlink()
    with pytest.raises(BaseModelError, match="pickled weights only") as refusal:
        load_base(str(copy))
    assert "safe_serialization=True" in refusal.value.remedy


def test_a_variant_only_folder_loads(folder: Path, tmp_path: Path) -> None:
    build_pipeline("tiny").to(torch.float16).save_pretrained(tmp_path / "half", variant="fp16")
    assert load_base(str(tmp_path / "half")).dtype == torch.float32


@pytest.mark.parametrize(
    ("name", "message"),
    [("no-such-thing", "there is no base"), ("./missing", "there is no base")],
)
def test_an_unknown_base_is_refused(name: str, message: str) -> None:
    with pytest.raises(BaseModelError, match=message):
        load_base(name)


@pytest.mark.parametrize("suffix", ["safetensors", "ckpt"])
def test_a_single_file_is_called_one_and_never_looked_for_on_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    monkeypatch.chdir(tmp_path)
    name = f"models/dream.{suffix}"  # as short as a hub id
    with pytest.raises(BaseModelError, match="there is no base"):
        load_base(name)
    Path("models").mkdir()
    Path(name).write_bytes(b"x")
    with pytest.raises(BaseModelError, match="is one file, not a folder") as refused:
        load_base(name)
    assert "from_single_file" in refused.value.remedy


def test_a_folder_that_is_no_pipeline_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BaseModelError, match=r"model_index\.json"):
        load_base(str(tmp_path))


def test_another_family_is_refused_by_name(copy: Path) -> None:
    (copy / "model_index.json").write_text(json.dumps({"_class_name": "KandinskyPipeline"}))
    with pytest.raises(BaseModelError, match="KandinskyPipeline"):
        load_base(str(copy))


def test_a_url_is_fetched_once_and_again_when_it_changes(folder: Path) -> None:
    import fsspec

    remote = fsspec.filesystem("memory")
    remote.put(str(folder), "/bases/tiny", recursive=True)
    url = "memory://bases/tiny"
    first = load_base(url)
    assert first.fingerprint == fingerprint_folder(folder)
    config = json.loads(remote.cat("/bases/tiny/scheduler/scheduler_config.json"))
    remote.pipe(
        "/bases/tiny/scheduler/scheduler_config.json",
        json.dumps({**config, "prediction_type": "v_prediction"}).encode(),
    )
    assert load_base(url).prediction_type == "v_prediction"


@pytest.mark.proves("Stable Diffusion 1.x and 2.x", "load")
def test_a_hub_model_loads_from_the_local_cache_while_offline(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = "a" * 40
    repo = tmp_path / "models--someone--tiny-sd"
    shutil.copytree(folder, repo / "snapshots" / commit)
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert load_base("someone/tiny-sd").fingerprint == fingerprint_folder(folder)
    assert load_base("someone/tiny-sd", revision="main").fingerprint == fingerprint_folder(folder)


def test_a_hub_model_that_is_not_cached_says_so_while_offline() -> None:
    with pytest.raises(BaseModelError, match="hub"):
        load_base("someone/never-seen")


def test_builds_are_the_same_every_time_and_have_the_true_shape() -> None:
    one, two = load_base("tiny"), load_base("tiny")
    assert one.fingerprint == two.fingerprint
    for a, b in zip(
        one.components["unet"].parameters(), two.components["unet"].parameters(), strict=True
    ):
        assert torch.equal(a, b)
    from diffusers import UNet2DConditionModel

    from farm.base.random_weights import BUILDS

    with torch.device("meta"):
        unet = UNet2DConditionModel(**BUILDS["sd15"].unet)
    assert sum(p.numel() for p in unet.parameters()) == 859_520_964


def test_a_size_that_does_not_fit_is_refused() -> None:
    base = load_base("tiny")
    assert base.latent_shape(64, 128) == (4, 16, 8)
    with pytest.raises(UserError, match="multiples of 8"):
        base.latent_shape(65, 64)


def test_a_gpu_trains_in_bfloat16_where_it_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert training_dtype("cpu") is None
    for has_it, dtype in ((True, torch.bfloat16), (False, torch.float16)):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda has_it=has_it, **_: has_it)
        assert training_dtype("cuda") is dtype
