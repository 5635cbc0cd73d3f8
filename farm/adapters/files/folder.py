"""Adapter folders: all files of one adapter, written and read.

Owns the folder's contents. The formats are in ``write`` and ``read``, layer names in
``layer_names``, the card in ``model_card``; the registry owns the location in the store.

    pytorch_lora_weights.safetensors       diffusers
    peft/adapter_model.safetensors         PEFT, with adapter_config.json
    <name>.kohya.safetensors               kohya, A1111, ComfyUI
    README.md  samples/*.png               for people and the Hub
    adapter.json                           the record, with every file's sha256
"""

from __future__ import annotations

import io
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Literal

from PIL import Image

from farm.adapters.file_names import (
    DIFFUSERS_FILE,
    KOHYA_ENDING,
    PEFT_FOLDER,
    PEFT_WEIGHTS,
    RECORD_FILE,
    SAMPLES_FOLDER,
)
from farm.adapters.files.layer_names import has_kohya_names, layer_names
from farm.adapters.files.model_card import model_card
from farm.adapters.files.read import read_adapter_file
from farm.adapters.files.unsupported import PICKLE_REMEDY
from farm.adapters.files.write import (
    diffusers_file,
    kohya_file,
    peft_files,
    safe_file_name,
    thumbnail_uri,
)
from farm.adapters.record import AdapterRecord, BaseFamily
from farm.adapters.weights import AdapterWeights
from farm.base.interface import Base
from farm.errors import AdapterFileError
from farm.keys import bytes_digest, file_digest
from farm.text.listed import listed

__all__ = [
    "COMPONENT_NAMES",
    "FORMS",
    "Form",
    "adapter_files",
    "load_adapter",
    "save_adapter",
    "verify_files",
]

Form = Literal["diffusers", "peft", "kohya"]
FORMS: tuple[Form, ...] = ("diffusers", "peft", "kohya")
COMPONENT_NAMES = frozenset(
    ("unet", "transformer", "text_encoder", "text_encoder_2", "text_encoder_3")
)
"""Folders that each hold the adapter of one component, as some scripts save PEFT adapters."""
PICKLED = frozenset((".bin", ".pt", ".pth", ".ckpt", ".pkl"))
MAX_SEARCHED = 1_000
SHOWN = 3


def save_adapter(
    folder: str | Path,
    weights: AdapterWeights,
    record: AdapterRecord,
    base: Base,
    *,
    forms: Sequence[Form] = FORMS,
    samples: Sequence[Image.Image] = (),
    samples_of_others: Sequence[Image.Image] = (),
) -> AdapterRecord:
    """Write all files of an adapter's folder, the record last.

    Args:
        weights: the trained weights.
        forms: the formats to write; kohya's is left out where the family has no names for a layer.
        samples: images for the card; an image's ``info["prompt"]`` becomes its caption, and the
            first image the thumbnail in the kohya file.
        samples_of_others: images for the prompts of other namespaces that share the job; they
            appear neither on the card nor in the other files.

    Returns:
        The record as written, with the sha256 of every file.

    Raises:
        AdapterFileError: if the weights are empty or not finite; nothing is written then.
    """
    if not weights.layers or not weights.is_finite:
        raise AdapterFileError("the adapter is empty or not finite", "train it again")
    record = record.model_copy(update={"base_family": BaseFamily.of(base.family)})
    files = _weight_files(weights, record, base, forms, samples)
    kohya_name = next((name for name in files if name.endswith(KOHYA_ENDING)), None)
    pictures = {f"{SAMPLES_FOLDER}/{number:02d}.png": one for number, one in enumerate(samples)}
    captions = _captions(pictures)
    files["README.md"] = model_card(record, captions, kohya_name).encode()

    pictures |= {
        f"samples-others/{number:02d}.png": picture
        for number, picture in enumerate(samples_of_others)
    }
    files |= {name: _png(picture) for name, picture in pictures.items()}
    prompts = {name: prompt for name, prompt in _captions(pictures) if prompt}

    digests = {name: bytes_digest(data) for name, data in files.items()}
    whole = record.model_copy(update={"files": digests, "sample_prompts": prompts})
    files[RECORD_FILE] = whole.to_json().encode()
    _write(Path(folder), files)
    return whole


def _write(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write the files in order; the record is the last of them."""
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def _weight_files(
    weights: AdapterWeights,
    record: AdapterRecord,
    base: Base,
    forms: Sequence[Form],
    samples: Sequence[Image.Image],
) -> dict[str, bytes]:
    known = layer_names(base)
    files: dict[str, bytes] = {}
    if "diffusers" in forms:
        files[DIFFUSERS_FILE] = diffusers_file(weights, known, record.identifier)
    if "peft" in forms:
        files |= peft_files(weights, known, record.base_id, base.denoiser_name)
    if "kohya" in forms and has_kohya_names(weights.layers, base):
        thumbnail = thumbnail_uri(samples[0]) if samples else None
        name = f"{safe_file_name(record.name)}{KOHYA_ENDING}"
        files[name] = kohya_file(weights, record, base, thumbnail)
    return files


def _captions(pictures: Mapping[str, Image.Image]) -> list[tuple[str, str]]:
    return [(name, str(picture.info.get("prompt", ""))) for name, picture in pictures.items()]


def load_adapter(path: str | Path, base: Base | Collection[str]) -> AdapterWeights:
    """Read an adapter in any supported format, on the CPU in float32.

    Args:
        path: a safetensors file, or a folder with an adapter.
        base: the base of the adapter, or the names of that base's layers.

    Raises:
        AdapterFileError: if there is no readable adapter, or it does not fit the base.
    """
    known = layer_names(base) if isinstance(base, Base) else base
    parts = [read_adapter_file(file, known) for file in adapter_files(Path(path))]
    return AdapterWeights(
        {name: layer for part in parts for name, layer in part.layers.items()},
        {name: alpha for part in parts for name, alpha in part.alphas.items()},
    )


def verify_files(folder: str | Path, record: AdapterRecord, names: Sequence[str] = ()) -> None:
    """Compare files with the record's digests.

    Args:
        names: the files to compare; empty means all files of the record.

    Raises:
        AdapterFileError: naming the first file that is missing or differs.
    """
    for name in names or tuple(record.files):
        path = Path(folder) / name
        if name not in record.files or not path.is_file():
            raise AdapterFileError(f"{path} is missing", "fetch the adapter again")
        if file_digest(path) != record.files[name]:
            raise AdapterFileError(
                f"{path} is not the file that was published", "fetch the adapter again"
            )


def adapter_files(path: Path) -> list[Path]:
    """The files that an adapter is read from, the main one first: the path itself, or what its
    folder holds; for PEFT, one file per component.

    Raises:
        AdapterFileError: if a folder holds none, or several adapters.
    """
    if not path.is_dir():
        return [path]
    if (path / DIFFUSERS_FILE).is_file():
        return [path / DIFFUSERS_FILE]
    for root in (path, path / PEFT_FOLDER):
        if (root / PEFT_WEIGHTS).is_file():
            return [root / PEFT_WEIGHTS, *_peft_files(root.glob("text_encoder*"))]
    # components saved one by one, or an adapter that PEFT saved under a name of its own
    inner = _peft_files(path.glob("*/"))
    found = {name: _component_files(path / name) for name in sorted(COMPONENT_NAMES)}
    parts = [file for files in found.values() for file in files]
    if parts and all(file in parts for file in inner):
        if any(len(files) > 1 for files in found.values()):
            raise _no_adapter(path, parts)
        return sorted(parts, key=lambda file: _is_text(file, path))
    if len(inner) == 1:
        return adapter_files(inner[0].parent)
    single = sorted(
        file
        for file in path.iterdir()
        if file.suffix.lower() == ".safetensors" and not file.name.startswith(".")
    )
    if len(single) == 1:
        return single
    raise _no_adapter(path, single or inner)


def _component_files(folder: Path) -> list[Path]:
    """The adapters of one component, which PEFT saves in its folder or, if they have names, in
    folders of these names below it."""
    return _peft_files([folder]) or _peft_files(folder.glob("*/"))


def _is_text(file: Path, root: Path) -> bool:
    return file.relative_to(root).parts[0].startswith("text_encoder")


def _peft_files(folders: Iterable[Path]) -> list[Path]:
    files = (folder / PEFT_WEIGHTS for folder in sorted(folders))
    return [file for file in files if file.is_file()]


def _no_adapter(folder: Path, several: Sequence[Path]) -> AdapterFileError:
    """The error for a folder without an adapter, or with several."""
    if (folder / "model_index.json").is_file():
        return AdapterFileError(
            f"{folder} is a whole model in diffusers' form, not an adapter",
            "name the adapter's file or folder; the model itself is named with --base",
        )
    if several:
        names = listed([str(file.relative_to(folder)) for file in several], SHOWN)
        return AdapterFileError(f"{folder} holds several adapters: {names}", "name one of them")
    pickled = sorted(file.name for file in folder.iterdir() if file.suffix.lower() in PICKLED)
    if pickled:
        return AdapterFileError(
            f"{folder} holds no safetensors file, only pickled ones: {listed(pickled, SHOWN)}",
            PICKLE_REMEDY,
        )
    deeper = sorted(islice(folder.rglob("*.safetensors"), MAX_SEARCHED))
    remedy = "name an adapter's file, or the folder that holds it"
    if deeper:
        remedy = f"name one of those below it: {listed([str(file) for file in deeper], SHOWN)}"
    return AdapterFileError(f"{folder} holds no adapter file", remedy)


def _png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()
