"""Load a base by name: the embedded one, a random-weight build, a folder, a URL, or a hub id.

Owns locating and fetching; each model family owns its own format. Only safetensors files are read:
a pickled model is refused, because unpickling runs any code in the file.
"""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from farm.base.fingerprint import fingerprint_build, fingerprint_folder, weight_files
from farm.base.names import EMBEDDED, BuiltName, Fetched, edition_of
from farm.errors import BaseModelError
from farm.file_facts import cache_folder
from farm.keys import digest
from farm.model_imports.lean import lean_imports
from farm.model_imports.quiet import quiet_loading

if TYPE_CHECKING:
    import torch

    from farm.base.interface import Base
    from farm.recipe import Quantization
    from farm.storage import Store

__all__ = [
    "embedded_folder",
    "fingerprint_at_hand",
    "is_at_hand",
    "load_base",
    "refuse_revision",
    "resolve_folder",
    "training_dtype",
]

WEIGHTED_PARTS = (
    "text_encoder",
    "text_encoder_2",
    "text_encoder_3",
    "vae",
    "unet",
    "transformer",
)
PICKLED = (".bin", ".ckpt", ".pt", ".pth")
SINGLE_REMEDY = (
    "convert it with diffusers, and name the folder: "
    "`StableDiffusionPipeline.from_single_file(FILE).save_pretrained(FOLDER)`, for other families "
    "with their own pipeline"
)
FETCHED_ENDINGS = (".json", ".txt", ".safetensors", ".model", ".jinja")
HUB_VARIANTS = ["*.fp16*", "*.non_ema*"]
"""Copies of weights in other forms; fetched only if a part has no others."""
HUB_PATTERNS = ["model_index.json", *(f"*/*{ending}" for ending in FETCHED_ENDINGS)]


def embedded_folder(edition: str = EMBEDDED) -> Path:
    """The folder of the embedded base, or of an earlier edition of it, inside the package."""
    folder = "weights" if edition == EMBEDDED else f"weights-{edition}"
    return Path(__file__).parent / "embedded" / folder


def load_base(
    name: str,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    revision: str | None = None,
    fetched: Fetched | None = None,
    quantization: Quantization | None = None,
) -> Base:
    """Load a frozen base model.

    Args:
        name: ``embedded`` or an edition of it; ``tiny``, ``tiny-v`` or ``sd15`` (random weights);
            a folder; an fsspec URL of a folder; or a hub id such as
            ``stable-diffusion-v1-5/stable-diffusion-v1-5``.
        device: where the weights go; ``meta`` reads none, for facts that need shapes alone.
        dtype: of the weights; None means float32 on a CPU, and elsewhere the half precision that
            suits the family.
        revision: branch, tag or commit on the hub; refused for anything else.
        fetched: called with a download's progress.
        quantization: keeps the denoiser's linear layers in few bits; ignored on ``meta``.

    Raises:
        BaseModelError: if there is no such model, it has pickled weights only, it is incomplete,
            or its family is not supported; each with the remedy.
    """
    import torch as torch_

    place = torch_.device(device)
    if place.type == "meta":
        quantization = None
    if name in get_args(BuiltName):
        if quantization is not None:
            raise BaseModelError(
                f"{name} is built in memory and cannot be quantised", "save it to a folder first"
            )
        refuse_revision(name, revision)
        with quiet_loading(), lean_imports():
            return _built(name, place, dtype)
    folder = resolve_folder(name, revision=revision, fetched=fetched)
    with quiet_loading(), lean_imports():
        return _from_folder(name, folder, place, dtype, quantization)


def training_dtype(device: str) -> torch.dtype | None:
    """The base's dtype for training: bfloat16 on GPUs that support it, because its range avoids
    overflow; otherwise None, the default of ``load_base``.

    In float16 one overflowed gradient ends a job, and a retry overflows at the same step.
    """
    import torch as torch_

    if not device.startswith("cuda"):
        return None
    has_bfloat16 = torch_.cuda.is_bf16_supported(including_emulation=False)
    return torch_.bfloat16 if has_bfloat16 else torch_.float16


def resolve_folder(
    name: str, *, revision: str | None = None, fetched: Fetched | None = None
) -> Path:
    """The local diffusers folder of a base, fetched first if it is remote.

    Raises:
        BaseModelError: as ``load_base``.
    """
    if edition_of(name) == EMBEDDED:
        refuse_revision(name, revision)
        return _checked(embedded_folder(name), name)
    if "://" in name:
        refuse_revision(name, revision)
        return _checked(_fetch_url(name, fetched), name)
    if os.path.isdir(os.path.expanduser(name)):
        refuse_revision(name, revision)
        return _checked(Path(name).expanduser(), name)
    names_file = name.lower().endswith((".safetensors", *PICKLED))
    if os.path.isfile(os.path.expanduser(name)):
        raise BaseModelError(f"{name} is one file, not a folder in diffusers' form", SINGLE_REMEDY)
    if name.count("/") == 1 and not name.startswith((".", "/", "~")) and not names_file:
        return _checked(_fetch_hub(name, revision, fetched), name)
    raise BaseModelError(
        f"there is no base {name!r}",
        f"name {EMBEDDED!r}, an existing folder, a URL, or a hub id such as 'owner/model'",
    )


def is_at_hand(name: str) -> bool:
    """Whether a base is part of the package or a folder, and so needs no download."""
    is_built = name in get_args(BuiltName) or edition_of(name) == EMBEDDED
    return is_built or os.path.isdir(os.path.expanduser(name))


def fingerprint_at_hand(name: str) -> str:
    """The fingerprint of a base that needs no download, as ``load_base`` gives it.

    Raises:
        BaseModelError: as ``load_base``.
    """
    if name in get_args(BuiltName):
        return fingerprint_build(name)
    return fingerprint_folder(resolve_folder(name))


def refuse_revision(name: str, revision: str | None) -> None:
    """Raise BaseModelError if a base has a revision that only one on the hub can have."""
    if revision is not None:
        raise BaseModelError(
            f"{name!r} has no revisions", "leave the revision out, or name a hub id"
        )


# -- builds ---------------------------------------------------------------------------------------


def _built(name: str, device: torch.device, dtype: torch.dtype | None) -> Base:
    from farm.base.families.registry import family_of
    from farm.base.random_weights import build_pipeline

    pipeline = build_pipeline(name, device=device, dtype=dtype)  # type: ignore[arg-type]
    family = family_of(name, type(pipeline).__name__)
    return family(pipeline, name=name, fingerprint=fingerprint_build(name))


# -- folders --------------------------------------------------------------------------------------


def _checked(folder: Path, name: str) -> Path:
    """The folder, checked to hold a complete pipeline in safetensors."""
    if not (folder / "model_index.json").is_file():
        raise BaseModelError(
            f"{name}: no model_index.json in it",
            "point to a diffusers folder; convert single-file checkpoints with "
            "from_single_file(…).save_pretrained(folder) of its diffusers pipeline",
        )
    for part in WEIGHTED_PARTS:
        if (folder / part).is_dir() and not weight_files(folder / part):
            pickled = any(path.suffix in PICKLED for path in (folder / part).iterdir())
            raise BaseModelError(
                f"{name}: {part}/ holds {'pickled weights only' if pickled else 'no weights'}",
                "save it again with pipeline.save_pretrained(folder, safe_serialization=True); "
                "pickled files can run code and are never read"
                if pickled
                else "fetch the model again; only safetensors are read",
            )
    return folder


def _from_folder(
    name: str,
    folder: Path,
    device: torch.device,
    dtype: torch.dtype | None,
    quantization: Quantization | None,
) -> Base:
    from safetensors import SafetensorError

    from farm.base.families.registry import family_of

    try:
        index: dict[str, Any] = json.loads((folder / "model_index.json").read_text())
    except ValueError as error:
        raise BaseModelError(f"{name}: model_index.json is not JSON: {error}") from error
    family = family_of(name, index.get("_class_name"))
    weights = weight_files(folder / family.denoiser_part)
    try:
        return family.load(
            folder,
            name=name,
            fingerprint=fingerprint_folder(folder),
            device=device,
            dtype=dtype,
            variant="fp16" if weights and ".fp16" in weights[0].name else None,
            quantization=quantization,
        )
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        raise BaseModelError(
            f"{name} cannot be loaded: {error}", "fetch or save the model again"
        ) from error


# -- elsewhere ------------------------------------------------------------------------------------


def _fetch_hub(name: str, revision: str | None, fetched: Fetched | None) -> Path:
    """The hub's snapshot, from the local cache where it is complete or the hub is offline."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        with quiet_loading():
            fetch = partial(
                snapshot_download,
                name,
                revision=revision,
                allow_patterns=HUB_PATTERNS,
                tqdm_class=_byte_counter(fetched),
            )
            folder = Path(fetch(ignore_patterns=HUB_VARIANTS))
            parts = [folder / part for part in WEIGHTED_PARTS if (folder / part).is_dir()]
            return folder if all(map(weight_files, parts)) else Path(fetch())
    except LocalEntryNotFoundError as error:
        raise BaseModelError(
            f"{name} is not in the local hub cache and the hub is not reachable",
            "go online once, or copy the model into a folder and name that",
        ) from error
    except (HfHubHTTPError, ValueError, OSError) as error:
        raise BaseModelError(
            f"{name}{f' at {revision}' if revision else ''} is not available from the hub: {error}",
            "check the id and revision; gated models need `hf auth login`",
        ) from error


def _byte_counter(fetched: Fetched | None) -> type[Any]:
    """A silent progress bar for the hub's client that reports the bytes."""
    from tqdm.std import tqdm

    class ByteCounter(tqdm):  # type: ignore[misc]  # it has no types
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **{**options, "disable": fetched is None})

        def display(self, *args: Any, **options: Any) -> None:
            if fetched is not None and self.unit == "B" and self.total:
                fetched(int(self.n), int(self.total))

        def clear(self, *args: Any, **options: Any) -> None:
            """Do nothing: there is no bar to clear."""

        def close(self) -> None:
            self.disable = True

    return ByteCounter


def _fetch_url(url: str, fetched: Fetched | None) -> Path:
    """A cached copy of a remote folder, fetched again when a file's metadata changes."""
    from farm.storage import Store

    store = Store(url)
    names = [path for path in store.walk() if path.endswith(FETCHED_ENDINGS)]
    if "model_index.json" not in names:
        raise BaseModelError(
            f"{url}: no model_index.json in it", "name the URL of a diffusers folder"
        )
    facts = [[path, str(store.version(path))] for path in names]
    target = cache_folder() / "bases" / digest([url, facts])[:32]
    if target.is_dir():
        return target
    aside = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
    try:
        _download(store, names, aside, fetched)
        aside.rename(target)
    except OSError:
        if not target.is_dir():  # another process finished first
            raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return target


def _download(store: Store, names: Sequence[str], target: Path, fetched: Fetched | None) -> None:
    """Fetch the files one by one; progress is reported in bytes after each file."""
    sizes = [store.size(path) for path in names]
    done = 0
    for path, size in zip(names, sizes, strict=True):
        store.download(path, target / path)
        done += size
        if fetched is not None:
            fetched(done, sum(sizes))
