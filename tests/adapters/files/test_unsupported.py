"""Files that are no plain LoRA are called what they are, with a remedy that works."""

import io
import json
import pickle
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save, save_file
from support.lora_files import attention_of, change, kohya_name, pair, written
from torch import Tensor

from farm.adapters.files.folder import adapter_files, load_adapter
from farm.adapters.files.importing import ImportRequest, import_adapter
from farm.base.loading import load_base
from farm.errors import AdapterFileError, UserError
from farm.storage import Store

Known = dict[str, tuple[int, ...]]
CONFIG = json.dumps({"peft_type": "LORA", "r": 4, "lora_alpha": 8})


def kohya(known: Known, alpha: Tensor | None = None) -> dict[str, Tensor]:
    tensors = {}
    for name, shape in list(attention_of(known).items())[:2]:
        prefix = kohya_name(name)
        halves = pair(shape)
        tensors[f"{prefix}.lora_down.weight"], tensors[f"{prefix}.lora_up.weight"] = halves
        if alpha is not None:
            tensors[f"{prefix}.alpha"] = alpha.clone()
    return tensors


def peft(known: Known, prefix: str = "base_model.model.") -> dict[str, Tensor]:
    tensors = {}
    for name, shape in list(attention_of(known).items())[:2]:
        path = name.split(".", 1)[1]
        tensors[f"{prefix}{path}.lora_A.weight"], tensors[f"{prefix}{path}.lora_B.weight"] = pair(
            shape
        )
    return tensors


def pickled(*, legacy: bool = False) -> bytes:
    buffer = io.BytesIO()
    torch.save({"a": torch.ones(2)}, buffer, _use_new_zipfile_serialization=not legacy)
    return buffer.getvalue()


def whole() -> bytes:
    return save({"x.lora_A.weight": torch.ones(2, 2)})


def zipped() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("tom.safetensors", b"x")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("name", "data", "message", "remedy"),
    [
        ("a.pt", pickled(), "is a pickled file", "weights_only=True"),
        ("a.safetensors", pickled(), "is a pickled file", "save_file"),
        ("a.safetensors", pickled(legacy=True), "is a pickled file", "save_file"),
        ("a.pth", pickle.dumps({"a": 1}), "is a pickled file", "save_file"),
        ("a.safetensors", b"<!DOCTYPE html><html>sign in", "a web page", "signed in"),
        ("a.safetensors", b'{"error": "Unauthorized"}', "JSON text", "signed in"),
        ("a.safetensors", zipped(), "is a zip archive", "unpack it"),
        ("a.gguf", b"GGUF\3\0\0\0" + bytes(40), "GGUF", "name a LoRA"),
        ("a.safetensors", b"", "the file is empty", "fetch it again"),
        ("a.safetensors", whole()[:-9], "a download that broke off", "fetch it again"),
        ("a.safetensors", whole()[:20], "a download that broke off", "fetch it again"),
        ("adapter_config.json", CONFIG.encode(), "an adapter's config", "name the folder"),
        ("a.safetensors", bytes(99), "begins with zeros", "fetch it again"),
        ("a.safetensors", b"\xef\xbb\xbf\n <!DOCTYPE html>", "a web page", "signed in"),
        ("a.safetensors", b"Entry not found", "is text, not the adapter itself: `Entry", "again"),
        ("a.safetensors.crdownload", b"\x60\1\0\0\0\0\0\0{", "has not ended", "wait"),
        ("a.png", b"\x89PNG\r\n\x1a\n" + bytes(40), "is not a safetensors file", "name a LoRA"),
    ],
)
def test_a_file_of_another_format_is_named_by_its_content(
    tmp_path: Path, name: str, data: bytes, message: str, remedy: str
) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(AdapterFileError, match=message) as caught:
        load_adapter(tmp_path / name, {})
    assert remedy in caught.value.remedy


def test_the_remedy_for_a_pickled_file_makes_one_that_is_read(known: Known, tmp_path: Path) -> None:
    torch.save(kohya(known), tmp_path / "a.pt")
    tensors = torch.load(tmp_path / "a.pt", weights_only=True)
    save_file(tensors, tmp_path / "a.sft")  # the content decides, not the suffix
    assert len(load_adapter(tmp_path / "a.sft", known).layers) == 2


@pytest.mark.parametrize(
    ("keys", "message", "remedy"),
    [
        (("model.diffusion_model.input_blocks.0.0.weight", "first_stage_model.x.bias"),
         "is a whole model", "--base"),
        (("down_blocks.0.resnets.0.conv1.weight", "conv_in.bias"), "is a whole model", "--base"),
        (("decoder.conv_in.weight",), "an autoencoder", "name a LoRA"),
        (("control_model.input_blocks.0.0.weight",), "a ControlNet", "name a LoRA"),
        (("ip_adapter.1.to_k_ip.weight", "image_proj.proj.weight"), "an IP-Adapter", "name a LoRA"),
        (("sks",), "textual-inversion embedding", "plain LoRA"),
        (("clip_g", "clip_l"), "textual-inversion embedding", "plain LoRA"),
        (("emb_params", "emb_params_out"), "textual-inversion embedding", "plain LoRA"),
        (("unet:0:down", "unet:0:up"), "numbers its layers", "save it again"),
        (("lora_unet_x.a1.weight", "lora_unet_x.b1.weight"), "GLoRA", "plain LoRA"),
        (("lora_unet_x.on_input", "lora_unet_x.weight"), "(IA)³", "plain LoRA"),
        (("base_model.model.x.vera_lambda_b",), "VeRA", "plain LoRA"),
        (("x.lora_A.weight", "x.lora_B.weight", "x.lora_B.bias"), "a trained bias", "plain LoRA"),
        (("x.lora_A.weight", "x.lora_B.weight", "norm.w_norm"), "normalisation", "plain LoRA"),
        (("x.lora_A.weight", "x.lora_B.weight", "conv_in.weight", "conv_in.bias"),
         "conv_in.weight belongs to a whole trained module", "modules_to_save"),
        (("x.lora_A.weight", "x.lora_B.weight", "e.token_adapter.trainable_tokens_delta"),
         "trained tokens", "plain LoRA"),
        (("lora_te_text_model_embeddings_token_embedding.alpha",
          "lora_te_text_model_embeddings_token_embedding.lora_down.weight"),
         "an adapter of the text encoder's embeddings", "plain LoRA"),
        (("x.lora_A.weight", "x.lora_B.weight", "vae.decoder.conv_in.lora_A.weight"),
         "an adapter of the VAE", "plain LoRA"),
        (("0.to_q_lora.down.weight", "0.to_q_lora.up.weight"), "an IP-Adapter", "plain LoRA"),
        (("input_blocks.0.0.down", "input_blocks.0.0.up", "lora_controlnet"), "a Control-LoRA",
         "plain LoRA"),
        (("text_model.embeddings.token_embedding.weight",), "is a whole model", "--base"),
        (("x.lora_A.v1.0.weight",), "lora_A.v1.0.weight is unknown", "save the adapter"),
    ],
)  # fmt: skip
def test_a_file_of_another_kind_is_named_by_its_tensors(
    tmp_path: Path, keys: tuple[str, ...], message: str, remedy: str
) -> None:
    path = written(tmp_path / "a.safetensors", {key: torch.ones(2, 2) for key in keys})
    with pytest.raises(AdapterFileError) as caught:
        load_adapter(path, {"unet.x": (2, 2)})
    assert message in caught.value.message
    assert remedy in caught.value.remedy


@pytest.mark.parametrize(
    "prefix",
    [
        *("module.unet.", "module.base_model.model.", "model.diffusion_model.", "unet."),
        *("unet.module.", "_fsdp_wrapped_module.unet._fsdp_wrapped_module."),
    ],
)
def test_levels_that_wrappers_add_to_names_are_dropped(
    known: Known, tmp_path: Path, prefix: str
) -> None:
    path = written(tmp_path / "A.SAFETENSORS", peft(known, prefix))
    assert len(load_adapter(path, known).layers) == 2


@pytest.mark.parametrize("prefix", ["text_encoders.clip_l.transformer.", "clip_l."])
def test_names_of_comfyui_and_onetrainer_find_the_text_encoder(
    known: Known, tmp_path: Path, prefix: str
) -> None:
    name = next(one for one in known if one.startswith("text_encoder.") and one.endswith("fc1"))
    key = prefix + "text_model." + name.split(".", 1)[1].removeprefix("text_model.")
    down, up = pair(known[name])
    tensors = {f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up}
    tensors[f"{key}.alpha"] = torch.tensor(1.0)
    weights = load_adapter(written(tmp_path / "a.safetensors", tensors), known)
    assert torch.allclose(change(weights, name), up @ down / 4, atol=1e-5)


def test_a_rank_above_a_slots_is_lowered_exactly_or_refused(tmp_path: Path) -> None:
    (down, up), name = pair((32, 300), 290), "unet.to_q"
    tensors = {f"{name}.lora_A.weight": down, f"{name}.lora_B.weight": up}
    path = written(tmp_path / "a.safetensors", {**tensors, f"{name}.alpha": torch.tensor(29.0)})
    weights = load_adapter(path, {name: (32, 300)})
    assert weights.layers[name].rank == 32
    assert torch.allclose(change(weights, name), up @ down / 10, atol=1e-3)
    wide = {
        f"{name}.lora_A.weight": torch.ones(290, 300),
        f"{name}.lora_B.weight": torch.ones(300, 290),
    }
    with pytest.raises(AdapterFileError, match="it has rank 290; 256 is the largest"):
        load_adapter(written(path, wide), {name: (300, 300)})


@pytest.mark.parametrize("prefix", ["lycoris_", "lycoris_unet_"])
def test_lycoris_around_a_bare_denoiser_is_read(prefix: str, known: Known, tmp_path: Path) -> None:
    own = kohya(known)
    tensors = {key.replace("lora_unet_", prefix): one for key, one in own.items()}
    read = load_adapter(written(tmp_path / "a.safetensors", tensors), known)
    plain = load_adapter(written(tmp_path / "b.safetensors", own), known)
    assert len(read.layers) == 2
    for name in plain.layers:
        assert torch.equal(change(read, name), change(plain, name))
    beyond = {**tensors, f"{prefix}mid_block.diff": torch.ones(1)}
    with pytest.raises(AdapterFileError, match=r"diff"):
        load_adapter(written(tmp_path / "c.safetensors", beyond), known)


def test_lycoris_around_the_text_encoders_is_read(tmp_path: Path) -> None:
    layer = "encoder_layers_0_self_attn_q_proj"
    known = {
        f"{component}.encoder.layers.0.self_attn.q_proj": (8, 8)
        for component in ("text_encoder", "text_encoder_2")
    }
    for first, second in (("te", "te2"), ("te1", "te2"), ("text_encoder", "text_encoder_2")):
        tensors = {}
        for number, prefix in enumerate((first, second), start=1):
            for half, shape in (("down", (2, 8)), ("up", (8, 2))):
                key = f"lycoris_{prefix}_text_model_{layer}.lora_{half}.weight"
                tensors[key] = torch.full(shape, float(number))
        read = load_adapter(written(tmp_path / f"{first}.safetensors", tensors), known)
        assert [float(read.layers[name].down[0, 0]) for name in known] == [1.0, 2.0]


def lay(folder: Path, tensors: dict[str, Tensor], *places: str) -> Path:
    for place in places:
        (folder / place).mkdir(parents=True)
        written(folder / place / "adapter_model.safetensors", tensors)
        (folder / place / "adapter_config.json").write_text(CONFIG)
    return folder


def test_folders_of_named_and_of_single_component_adapters_are_found(
    known: Known, tmp_path: Path
) -> None:
    named = lay(tmp_path / "one", peft(known), "tom")
    assert load_adapter(named, known).scale(next(iter(attention_of(known)))) == 2.0
    (tmp_path / "upper").mkdir()
    written(tmp_path / "upper/Tom.SAFETENSORS", kohya(known))
    (tmp_path / "upper/._Tom.SAFETENSORS").write_bytes(b"litter of macOS")
    assert len(load_adapter(tmp_path / "upper", known).layers) == 2
    parts = lay(tmp_path / "parts", peft(known), "text_encoder", "unet")
    assert [file.parent.name for file in adapter_files(parts)] == ["unet", "text_encoder"]
    both = lay(tmp_path / "both", peft(known), "text_encoder/tom", "unet/tom")
    files = [file.relative_to(both).parts[0] for file in adapter_files(both)]
    assert files == ["unet", "text_encoder"]
    with pytest.raises(AdapterFileError, match=r"several adapters: unet/rex.*, unet/tom"):
        adapter_files(lay(tmp_path / "two", peft(known), "unet/rex", "unet/tom"))


def test_every_part_of_a_folder_counts_when_it_is_imported_again(
    known: Known, tmp_path: Path
) -> None:
    name = next(one for one in known if one.startswith("text_encoder.") and one.endswith("fc1"))
    path = f"base_model.model.{name.split('.', 1)[1]}"
    store, base = Store(str(tmp_path / "store")), load_base("tiny")
    folder = lay(tmp_path / "both", peft(known), "text_encoder/tom", "unet/tom")
    for scale in (1.0, 2.0):
        down, up = (scale * one for one in pair(known[name]))
        tensors = {f"{path}.lora_A.weight": down, f"{path}.lora_B.weight": up}
        written(folder / "text_encoder/tom/adapter_model.safetensors", tensors)
        request = ImportRequest(folder, "tom", "cat", replace=True)
        imported = import_adapter(store, base, request)
        assert imported.is_new
        assert len(imported.weights.layers) == 3
    assert not import_adapter(store, base, request).is_new


@pytest.mark.parametrize(
    ("files", "message", "remedy"),
    [
        (("pytorch_lora_weights.bin",), "only pickled ones: pytorch_lora_weights.bin", "save_file"),
        (("model_index.json", "unet/x.safetensors"), "a whole model in diffusers' form", "--base"),
        (("a.safetensors", "b.safetensors"), "several adapters: a.safetensors, b.saf", "one of"),
        (("checkpoint-500/x.safetensors",), "no adapter file", "checkpoint-500/x.safetensors"),
        (("tom/adapter_model.safetensors", "rex/adapter_model.safetensors"), "several", "one of"),
        (("notes.txt",), "no adapter file", "name an adapter's file"),
    ],
)
def test_a_folder_without_one_adapter_says_what_it_holds(
    tmp_path: Path, files: tuple[str, ...], message: str, remedy: str
) -> None:
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(AdapterFileError) as caught:
        load_adapter(tmp_path, {})
    assert message in caught.value.message
    assert remedy in caught.value.remedy


@pytest.mark.parametrize(
    ("header", "identifier", "is_assumed"),
    [
        ({"ss_dataset_dirs": '{"10_ohwx cat": {"n_repeats": 10}}'}, "ohwx", False),
        ({"ss_tag_frequency": '{"5_ohwx man": {"ohwx man": 3}}'}, "ohwx", False),
        ({"modelspec.trigger_phrase": "ohwx cat", "ss_tag_frequency": "{"}, "ohwx", False),
        ({"ss_dataset_dirs": '{"10_a cat": {}, "5_b cat": {}}'}, "sks", True),
        ({"ss_dataset_dirs": '{"10_cat": {}}'}, "sks", True),
        ({"modelspec.trigger_phrase": "ohwx, my cat"}, "sks", True),
    ],
)
def test_the_identifier_is_read_from_what_kohyas_header_keeps(
    known: Known, tmp_path: Path, header: dict[str, str], identifier: str, is_assumed: bool
) -> None:
    path = written(tmp_path / "a.safetensors", kohya(known, torch.tensor(2)), header)
    store = Store(str(tmp_path / "store"))
    imported = import_adapter(store, load_base("tiny"), ImportRequest(path, "tom", "cat"))
    assert imported.record.identifier == identifier
    assert imported.identifier_assumed is is_assumed
    assert not imported.alpha_assumed


@pytest.mark.parametrize(
    ("changes", "message", "remedy"),
    [
        ({"name": "tiny"}, "takes 'tiny' for the base model itself", "another --name"),
        ({"name": "base"}, "takes 'base' for the base model itself", "another --name"),
        ({"name": "käse"}, "--name 'käse' is not allowed", "letters from A to Z"),
        ({"class_noun": "[V] cat"}, "--class '[V] cat' names the subject too", "the class alone"),
        ({"class_noun": " "}, "--class ' ' is not allowed", "1 to 100 characters"),
        ({"identifier": "my cat"}, "--identifier 'my cat' is not allowed", "one word"),
        ({"instance_prompt": " "}, "--prompt ' ' is not allowed", "with [V]"),
    ],
)
def test_words_that_cannot_be_served_are_refused_with_what_to_write(
    known: Known, tmp_path: Path, changes: dict[str, str], message: str, remedy: str
) -> None:
    path = written(tmp_path / "a.safetensors", kohya(known))
    words = {"name": "tom", "class_noun": "cat", **changes}
    with pytest.raises(UserError) as refused:
        import_adapter(Store(str(tmp_path)), load_base("tiny"), ImportRequest(path, **words))
    assert message in refused.value.message
    assert remedy in refused.value.remedy


def test_a_peft_file_without_its_config_has_an_assumed_strength(
    known: Known, tmp_path: Path
) -> None:
    path = written(tmp_path / "adapter_model.safetensors", peft(known))
    store, base = Store(str(tmp_path / "store")), load_base("tiny")
    first = import_adapter(store, base, ImportRequest(path, "tom", "cat"))
    assert first.alpha_assumed
    (tmp_path / "adapter_config.json").write_text(CONFIG)
    second = import_adapter(store, base, ImportRequest(tmp_path, "tom", "cat", replace=True))
    assert not second.alpha_assumed
    name = next(iter(first.weights.layers))
    assert second.weights.scale(name) == 2 * first.weights.scale(name)


def test_loha_of_fused_layers_and_names_of_xlabs_change_each_member(tmp_path: Path) -> None:
    width, block = 8, "transformer.transformer_blocks.0.attn"
    known = {f"{block}.to_{part}": (width, width) for part in "qkv"}
    for stream in ("add_q_proj", "add_k_proj", "add_v_proj", "to_out.0", "to_add_out"):
        known[f"{block}.{stream}"] = (width, width)
    tensors = {}
    for part, shape in (("w1_a", (24, 2)), ("w1_b", (2, 8)), ("w2_a", (24, 2)), ("w2_b", (2, 8))):
        tensors[f"lycoris_double_blocks_0_img_attn_qkv.hada_{part}"] = torch.randn(*shape)
    tensors["lycoris_double_blocks_0_img_attn_qkv.alpha"] = torch.tensor(1.0)
    a, b, c, d = list(tensors.values())[:4]
    loha = load_adapter(written(tmp_path / "l.safetensors", tensors), known)
    whole = 0.5 * (a @ b) * (c @ d)
    for part, rows in zip("qkv", whole.split(width), strict=True):
        assert torch.allclose(change(loha, f"{block}.to_{part}"), rows, atol=1e-4)
    xlabs = {}
    for name, outputs in (("qkv_lora2", 24), ("proj_lora1", 8)):
        xlabs[f"double_blocks.0.processor.{name}.down.weight"] = torch.randn(2, 8)
        xlabs[f"double_blocks.0.processor.{name}.up.weight"] = torch.randn(outputs, 2)
    read = load_adapter(written(tmp_path / "x.safetensors", xlabs), known)
    assert read.layers.keys() == {
        *(f"{block}.add_{part}_proj" for part in "qkv"),
        f"{block}.to_out.0",
    }
