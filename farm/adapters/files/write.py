"""Writes the diffusers, PEFT and kohya formats with the adapter's real alpha.

Owns the tensor names and the headers of the three formats. diffusers' own helpers lose an alpha
that differs from the rank in two of them; here it is always written.
"""

from __future__ import annotations

import base64
import io
import json
from collections import Counter
from collections.abc import Collection, Iterator
from typing import Any

import torch
from PIL import Image
from safetensors.torch import save as save_tensors
from torch import Tensor

from farm.adapters.file_names import PEFT_CONFIG, PEFT_FOLDER, PEFT_WEIGHTS
from farm.adapters.files.fused_layers import fuse, original_layers
from farm.adapters.files.layer_names import (
    canonical_name,
    endings_of,
    kohya_names,
    layer_names,
)
from farm.adapters.record import AdapterRecord
from farm.adapters.weights import AdapterWeights, LayerWeights
from farm.base.interface import Base
from farm.keys import bytes_digest
from farm.recipe import Recipe

__all__ = [
    "TRIGGER_FIELD",
    "diffusers_file",
    "kohya_file",
    "peft_files",
    "renamed_kohya_file",
    "thumbnail_uri",
]

THUMBNAIL_PX = 256
TRIGGER_FIELD = "modelspec.trigger_phrase"
"""The ModelSpec header field with the trigger words."""


def diffusers_file(weights: AdapterWeights, known: Collection[str], identifier: str = "") -> bytes:
    """``pytorch_lora_weights.safetensors``, for ``pipeline.load_lora_weights``.

    The header's ``lora_adapter_metadata`` contains each component's LoraConfig; without it
    diffusers assumes alpha = rank. It names the trigger word as ModelSpec does, without the class
    noun, which copies of the adapter in other namespaces do not show.
    """
    tensors = {}
    for name, layer in weights.layers.items():
        tensors[f"{canonical_name(name)}.lora_A.weight"] = _plain(layer.down)
        tensors[f"{canonical_name(name)}.lora_B.weight"] = _plain(layer.up)
    config = {
        f"{component}.{key}": value
        for component in weights.components
        for key, value in _lora_config(weights, component, known).items()
    }
    header = {"format": "pt", "lora_adapter_metadata": json.dumps(config, sort_keys=True)}
    if identifier:
        header[TRIGGER_FIELD] = identifier
    return save_tensors(tensors, header)


def peft_files(
    weights: AdapterWeights, known: Collection[str], base_id: str, denoiser: str
) -> dict[str, bytes]:
    """PEFT folders: the denoiser in ``peft/``, the text encoder in ``peft/text_encoder/``.

    Each loads with ``PeftModel.from_pretrained(component, folder)``.
    """
    files = {}
    for component in weights.components:
        folder = PEFT_FOLDER if component == denoiser else f"{PEFT_FOLDER}/{component}"
        tensors = {}
        for name, layer in weights.of_component(component).layers.items():
            path = name.split(".", 1)[1]
            tensors[f"base_model.model.{path}.lora_A.weight"] = _plain(layer.down)
            tensors[f"base_model.model.{path}.lora_B.weight"] = _plain(layer.up)
        config = {
            "peft_type": "LORA",
            "task_type": None,
            "base_model_name_or_path": base_id,
            "inference_mode": True,
            **_lora_config(weights, component, known),
        }
        files[f"{folder}/{PEFT_WEIGHTS}"] = save_tensors(tensors, {"format": "pt"})
        files[f"{folder}/{PEFT_CONFIG}"] = (
            json.dumps(config, indent=2, sort_keys=True).encode() + b"\n"
        )
    return files


def kohya_file(
    weights: AdapterWeights, record: AdapterRecord, base: Base, thumbnail: str | None
) -> bytes:
    """The format of kohya's scripts, read by A1111, ComfyUI, Forge, InvokeAI and SD.Next.

    Every layer has its own ``.alpha``. The header contains kohya's ``ss_*`` fields and ModelSpec
    1.0.1, so that front ends show trigger words and a thumbnail.
    """
    tensors = {}
    for prefix, layer, alpha in _kohya_layers(weights, base):
        tensors[f"{prefix}.lora_down.weight"] = _plain(layer.down)
        tensors[f"{prefix}.lora_up.weight"] = _plain(layer.up)
        tensors[f"{prefix}.alpha"] = torch.tensor(alpha)
    bare = save_tensors(tensors)
    body = bare[8 + int.from_bytes(bare[:8], "little") :]
    header = {
        **_kohya_header(weights, record, base),
        **_modelspec(record, base, bytes_digest(body)),
    }
    header |= _naming(record)
    header["sshs_model_hash"] = bytes_digest(body)
    header["sshs_legacy_hash"] = bytes_digest(body)[:8]
    if thumbnail is not None:
        header["modelspec.thumbnail"] = thumbnail
    return save_tensors(tensors, header)


def _kohya_layers(weights: AdapterWeights, base: Base) -> Iterator[tuple[str, LayerWeights, float]]:
    """Name, halves and alpha of each layer as kohya's files have them."""
    names, shapes = kohya_names(weights.layers, base), layer_names(base)
    fused = original_layers(shapes) if base.family.kohya_fuses else {}
    groups = {name: members for members in fused.values() for name in members}
    written = set()
    for name, layer in weights.layers.items():
        if (prefix := names[name]) in written:
            continue
        written.add(prefix)
        if name in groups:
            yield prefix, *fuse(weights, groups[name], shapes)
        else:
            yield prefix, layer, weights.alphas[name]


def renamed_kohya_file(data: bytes, record: AdapterRecord, thumbnail: str | None) -> bytes:
    """A kohya file whose header has the record's name, date and origin, and another thumbnail.

    Args:
        data: as ``kohya_file`` wrote it, for another name of the same adapter.
    """
    length = 8 + int.from_bytes(data[:8], "little")
    header: dict[str, Any] = json.loads(data[8:length])
    fields: dict[str, str] = header.pop("__metadata__", {})
    fields.pop("modelspec.thumbnail", None)
    fields |= _naming(record)
    if thumbnail is not None:
        fields["modelspec.thumbnail"] = thumbnail
    packed = json.dumps({"__metadata__": fields, **header}, separators=(",", ":")).encode()
    packed += b" " * (-len(packed) % 8)  # as the format aligns tensors
    return len(packed).to_bytes(8, "little") + packed + data[length:]


def _naming(record: AdapterRecord) -> dict[str, str]:
    """The header fields that depend on whose adapter it is: names, date and words."""
    made = "job" if record.imported is None else f"imported from {record.imported.file}, key"
    trigger = f"{record.identifier} {record.class_noun}".strip()
    noun = record.class_noun or "subject"
    fields = {
        "ss_output_name": record.name,
        "ss_training_comment": f"dreambooth-farm {record.farm_version}, {made} {record.job_key}",
        "modelspec.title": record.name,
        "modelspec.date": record.created,
        "modelspec.description": f"A LoRA adapter for one {noun}, on {record.base_id}.",
        TRIGGER_FIELD: trigger,
        "modelspec.usage_hint": f"Write '{trigger}' in the prompt, as in "
        f"'{record.instance_prompt}'.",
        "modelspec.tags": f"{noun}, {'dreambooth, ' if record.imported is None else ''}lora",
    }
    if record.recipe is not None:
        frequency = {"photos": {trigger: len(record.photo_digests)}}
        fields["ss_tag_frequency"] = json.dumps(frequency)
    return fields


def thumbnail_uri(picture: Image.Image) -> str:
    """A small JPEG as a data URI for ModelSpec."""
    small = picture.convert("RGB")
    small.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def safe_file_name(name: str) -> str:
    """A subject's name as a file name that is valid on every system."""
    kept = "".join(letter if letter.isalnum() or letter in "-_" else "_" for letter in name)
    return kept[:100] or "adapter"


def _plain(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().contiguous()


def _lora_config(weights: AdapterWeights, component: str, known: Collection[str]) -> dict[str, Any]:
    """The fields of PEFT's LoraConfig for one component's layers."""
    part = weights.of_component(component)
    ranks = {name.split(".", 1)[1]: layer.rank for name, layer in part.layers.items()}
    alphas = {name.split(".", 1)[1]: alpha for name, alpha in part.alphas.items()}
    rank = Counter(ranks.values()).most_common(1)[0][0]
    alpha = Counter(alphas.values()).most_common(1)[0][0]
    return {
        "r": rank,
        "lora_alpha": _number(alpha),
        "rank_pattern": {path: found for path, found in ranks.items() if found != rank},
        "alpha_pattern": {path: _number(found) for path, found in alphas.items() if found != alpha},
        "target_modules": endings_of(tuple(part.layers), known),
        "lora_dropout": 0.0,
        "bias": "none",
        "use_dora": False,
        "use_rslora": False,
        "init_lora_weights": "gaussian",
    }


def _number(value: float) -> float | int:
    """PEFT writes integral alphas as integers."""
    return int(value) if float(value).is_integer() else value


def _kohya_header(weights: AdapterWeights, record: AdapterRecord, base: Base) -> dict[str, str]:
    alpha = Counter(weights.alphas.values()).most_common(1)[0][0]
    return {
        "ss_v2": "False",
        "ss_base_model_version": base.family.kohya,
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(weights.rank),
        "ss_network_alpha": str(_number(alpha)),
        "ss_network_args": "{}",
        "ss_sd_model_name": record.base_id,
        "ss_sd_model_hash": record.base_fingerprint,
        **({} if record.recipe is None else _kohya_training(record, record.recipe)),
    }


def _kohya_training(record: AdapterRecord, recipe: Recipe) -> dict[str, str]:
    """Fields about the training, which is not known for an imported adapter."""
    return {
        "ss_num_train_images": str(len(record.photo_digests)),
        "ss_num_reg_images": str(recipe.num_prior_images if recipe.uses_prior else 0),
        "ss_prior_loss_weight": str(recipe.prior_weight),
        "ss_learning_rate": str(recipe.learning_rate),
        "ss_unet_lr": str(recipe.learning_rate),
        "ss_text_encoder_lr": str(recipe.text_encoder_learning_rate or recipe.learning_rate),
        "ss_lr_scheduler": recipe.learning_rate_schedule,
        "ss_lr_warmup_steps": str(recipe.warmup_steps),
        "ss_optimizer": f"AdamW(weight_decay={recipe.weight_decay})",
        "ss_max_grad_norm": str(recipe.max_grad_norm),
        "ss_min_snr_gamma": str(recipe.snr_gamma),
        "ss_noise_offset": str(recipe.noise_offset or None),
        "ss_batch_size_per_device": str(recipe.instance_rows),
        "ss_steps": str(record.steps_trained),
        "ss_max_train_steps": str(recipe.steps),
        "ss_seed": str(recipe.seed),
    }


def _modelspec(record: AdapterRecord, base: Base, body_digest: str) -> dict[str, str]:
    prediction = {"v_prediction": "v", "epsilon": "epsilon"}.get(base.prediction_type)
    side_px = (record.recipe and record.recipe.resolution_px) or base.resolution_px
    fields = {
        "sai_model_spec": "1.0.1",
        "architecture": f"{base.family.architecture}/lora",
        "implementation": "diffusers",
        **({"author": "dreambooth-farm"} if record.imported is None else {}),
        "hash_sha256": f"0x{body_digest}",
        "resolution": f"{side_px}x{side_px}",
        **({"prediction_type": prediction} if prediction else {}),  # it has no word for flow
    }
    return {f"modelspec.{key}": value for key, value in fields.items()}
