"""Imported adapters of other tools: listed, served as those tools show them, exported."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from diffusers.utils import convert_state_dict_to_diffusers
from peft import LoHaConfig, LoKrConfig, LoraConfig, PeftModel, get_peft_model
from peft.utils import get_peft_model_state_dict
from safetensors.torch import save_file
from support.lora_files import kohya_name
from typer.testing import CliRunner

from farm.adapters.files.importing import Imported, ImportRequest, import_adapter
from farm.adapters.registry import Registry
from farm.base.interface import Base
from farm.base.loading import load_base
from farm.cli import app
from farm.errors import AdapterFileError, UserError
from farm.serving.config import EngineConfig
from farm.serving.engine.engine import Engine
from farm.serving.request import AdapterRef, GenerationRequest
from farm.storage import Store
from farm.training.run.export import export_adapters

PROMPT, SEED, STEPS, GUIDANCE = "a photo of sks cat", 5, 3, 3.0
TARGETS = ["to_q", "to_k", "to_v"]
Pipeline = StableDiffusionPipeline


def strengthened(model: PeftModel) -> PeftModel:
    torch.manual_seed(8)
    for name, parameter in model.named_parameters():
        if any(mark in name for mark in ("lora_", "hada_", "lokr_")):
            torch.nn.init.normal_(parameter, std=0.4)
    return model


def diffusers_file(folder: Path, pipeline: Pipeline) -> Path:
    config = LoraConfig(r=3, lora_alpha=6, target_modules=TARGETS, alpha_pattern={"to_k": 2})
    pipeline.unet.add_adapter(config, "tom")
    strengthened(pipeline.unet)
    state = convert_state_dict_to_diffusers(
        get_peft_model_state_dict(pipeline.unet, adapter_name="tom")
    )
    settings = {
        key: sorted(value) if isinstance(value, set) else value
        for key, value in pipeline.unet.peft_config["tom"].to_dict().items()
    }
    StableDiffusionPipeline.save_lora_weights(
        folder,
        unet_lora_layers=state,
        unet_lora_adapter_metadata=json.loads(json.dumps(settings, default=str)),
    )
    return folder / "pytorch_lora_weights.safetensors"


def peft_folder(folder: Path, pipeline: Pipeline) -> Path:
    config = LoraConfig(r=4, lora_alpha=3, target_modules=TARGETS, use_rslora=True)
    strengthened(get_peft_model(pipeline.unet, config)).save_pretrained(folder / "tom")
    return folder / "tom"


def kohya_file(folder: Path, pipeline: Pipeline) -> Path:
    model = strengthened(
        get_peft_model(pipeline.unet, LoraConfig(r=2, lora_alpha=1, target_modules=TARGETS))
    )
    tensors = {}
    for name, layer in model.base_model.model.named_modules():
        if hasattr(layer, "lora_A"):
            prefix = kohya_name(f"unet.{name}")
            tensors[f"{prefix}.lora_down.weight"] = layer.lora_A["default"].weight.detach()
            tensors[f"{prefix}.lora_up.weight"] = layer.lora_B["default"].weight.detach()
            tensors[f"{prefix}.alpha"] = torch.tensor(1.0)
    save_file(tensors, folder / "tom.safetensors", {"modelspec.trigger_phrase": "tmx cat"})
    return folder / "tom.safetensors"


def loha_folder(folder: Path, pipeline: Pipeline) -> Path:
    config = LoHaConfig(r=2, alpha=1, target_modules=TARGETS)
    strengthened(get_peft_model(pipeline.unet, config)).save_pretrained(folder / "loha")
    return folder / "loha"


def lokr_folder(folder: Path, pipeline: Pipeline) -> Path:
    config = LoKrConfig(r=2, alpha=2, target_modules=TARGETS, decompose_factor=4)
    strengthened(get_peft_model(pipeline.unet, config)).save_pretrained(folder / "lokr")
    return folder / "lokr"


MAKERS = {
    "diffusers": diffusers_file,
    "peft": peft_folder,
    "kohya": kohya_file,
    "LoHa": loha_folder,
    "LoKr": lokr_folder,
}


@pytest.fixture(scope="module")
def base() -> Base:
    return load_base("tiny")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def plain_picture(pipeline: Pipeline) -> np.ndarray:
    pipeline.set_progress_bar_config(disable=True)
    pixels = pipeline(
        PROMPT,
        num_inference_steps=STEPS,
        guidance_scale=GUIDANCE,
        generator=torch.Generator("cpu").manual_seed(SEED),
        output_type="np",
    ).images[0]
    return (pixels * 255).round().astype(int)


@pytest.fixture
def served(base: Base, store: Store, tmp_path: Path) -> Iterator[Callable[[Imported], np.ndarray]]:
    config = EngineConfig(num_slots=3, max_rank=16, batch_rows=4, text_encoder_modules=())
    engine = Engine(base, Registry(store), config, cache_folder=tmp_path / "disk")
    engine.start()

    def picture(imported: Imported) -> np.ndarray:
        ref = AdapterRef(imported.record.job_key, "default", imported.record.name)
        request = GenerationRequest(
            "1", PROMPT, seed=SEED, steps=STEPS, guidance=GUIDANCE, adapters=((ref, 1.0),)
        )
        return engine.submit(request).result(120).pixels.astype(int)

    yield picture
    engine.stop()


@pytest.mark.parametrize("form", MAKERS)
def test_an_imported_adapter_is_served_as_the_other_tool_shows_it(
    base: Base,
    store: Store,
    tmp_path: Path,
    served: Callable[[Imported], np.ndarray],
    form: str,
) -> None:
    pipeline = load_base("tiny").pipeline()
    bare = plain_picture(pipeline)
    path = MAKERS[form](tmp_path, pipeline)
    wanted = plain_picture(pipeline)  # with the other tool's own layers in it
    assert np.abs(wanted - bare).max() > 10

    imported = import_adapter(store, load_base("tiny"), ImportRequest(path, "tom", "cat"))
    found = served(imported)
    assert np.abs(found - wanted).max() <= 2

    record = Registry(store).record(imported.record.job_key)
    assert record.recipe is None
    assert record.imported is not None
    assert record.imported.form == form
    assert record.imported.file == path.name
    assert len(record.imported.sha256) == 64
    assert record.identifier == ("tmx" if form == "kohya" else "sks")
    assert imported.identifier_assumed == (form != "kohya")
    assert [named.name for named in Registry(store).names("default")] == ["tom"]


def test_an_imported_adapter_is_exported_in_every_form(
    base: Base, store: Store, tmp_path: Path
) -> None:
    pipeline = load_base("tiny").pipeline()
    path = kohya_file(tmp_path, pipeline)
    wanted = plain_picture(pipeline)
    import_adapter(store, base, ImportRequest(path, "tom", "cat"))
    ((_, folder),) = export_adapters(store, tmp_path / "out").written
    fresh = load_base("tiny").pipeline()
    fresh.load_lora_weights(folder)
    assert np.abs(plain_picture(fresh) - wanted).max() <= 1
    for form in ("kohya", "peft"):
        ((_, place),) = export_adapters(store, tmp_path / form, form=form).written
        assert place.exists()
    card = (folder / "README.md").read_text()
    assert "tom.safetensors" in card
    assert "How it was trained is not known" in card


def test_a_file_imported_twice_is_one_adapter_and_a_taken_name_is_kept(
    base: Base, store: Store, tmp_path: Path
) -> None:
    path = kohya_file(tmp_path, load_base("tiny").pipeline())
    first = import_adapter(store, base, ImportRequest(path, "tom", "cat"))
    again = import_adapter(store, base, ImportRequest(path, "tom", "cat"))
    assert (first.is_new, again.is_new) == (True, False)
    assert again.record == first.record
    other = ImportRequest(path, "tom", "cat", identifier="zwx")
    with pytest.raises(UserError, match="belongs to another adapter"):
        import_adapter(store, base, other)
    with pytest.raises(UserError, match="differs only in case from default/tom"):
        import_adapter(store, base, ImportRequest(path, "Tom", "cat", replace=True))
    assert Registry(store).committed_keys() == [first.record.job_key]
    replaced = import_adapter(
        store, base, ImportRequest(path, "tom", "cat", identifier="zwx", replace=True)
    )
    named = Registry(store).resolve("default", "tom")
    assert named is not None
    assert named.job_key == replaced.record.job_key


def test_what_cannot_be_read_commits_nothing(base: Base, store: Store, tmp_path: Path) -> None:
    path = kohya_file(tmp_path, load_base("tiny").pipeline())
    for request, error in (
        (ImportRequest(tmp_path / "none.safetensors", "tom", "cat"), AdapterFileError),
        (ImportRequest(path, "../tom", "cat"), UserError),
        (ImportRequest(path, "tom", "cat", namespace="a/b"), UserError),
        (ImportRequest(path, "tom", "cat", identifier="two words"), UserError),
        (ImportRequest(path, "tom", "cat", instance_prompt="a cat"), UserError),
        (ImportRequest(path, "tom", ""), UserError),
    ):
        with pytest.raises(error):
            import_adapter(store, base, request)
    assert list(store.walk()) == []


@pytest.mark.parametrize("form", MAKERS)
def test_the_commands_import_and_export_every_form(tmp_path: Path, form: str) -> None:
    path = MAKERS[form](tmp_path, load_base("tiny").pipeline())
    store = ["--store", str(tmp_path / "store")]
    arguments = ["import", str(path), "--name", "tom", "--class", "cat", *store, "--base", "tiny"]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    word = "tmx" if form == "kohya" else "sks"
    assert f'Prompt it with "a photo of {word} cat".' in done.output
    facts = json.loads(CliRunner().invoke(app, [*arguments, "--json"]).output.splitlines()[-1])
    assert facts["new"] is False
    assert facts["name"] == "default/tom"
    assert facts["imported"]["form"] == form

    done = CliRunner().invoke(app, ["export", str(tmp_path / "out"), *store])
    assert done.exit_code == 0, done.output
    assert (tmp_path / "out/default/tom/adapter.json").is_file()
    for wanted in ("diffusers", "peft", "kohya"):
        done = CliRunner().invoke(app, ["export", str(tmp_path / wanted), "--form", wanted, *store])
        assert done.exit_code == 0, done.output
        assert list((tmp_path / wanted / "default").iterdir())


def test_the_export_command_reports_what_it_cannot_read(tmp_path: Path) -> None:
    path = kohya_file(tmp_path, load_base("tiny").pipeline())
    store = Store(tmp_path / "store")
    imported = import_adapter(store, load_base("tiny"), ImportRequest(path, "tom", "cat"))
    store.write("names/default/rex.json", b"[]")
    arguments = ["export", str(tmp_path / "out"), "--store", str(tmp_path / "store")]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == AdapterFileError.exit_code
    assert "default/rex was not exported" in done.stderr
    assert "remedy: " in done.stderr
    assert "default/tom" in done.stdout
    assert (tmp_path / "out/default/tom/adapter.json").is_file()
    found = json.loads(CliRunner().invoke(app, [*arguments, "--json"]).stdout.splitlines()[-1])
    assert [("path" in one, "error" in one) for one in found] == [(True, False), (False, True)]
    store.delete(f"adapters/{imported.record.job_key}/adapter.json")
    done = CliRunner().invoke(app, [*arguments, "--name", "tom"])
    assert done.exit_code == AdapterFileError.exit_code
