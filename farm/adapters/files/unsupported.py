"""What a file is that is no plain LoRA: other formats, whole models, adapters of other kinds.

Owns the recognition, by first bytes and by tensor names, and its errors. ``read`` decides which
tensors belong to a LoRA.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Sequence
from pathlib import Path

from farm.adapters.file_names import PEFT_CONFIG
from farm.errors import AdapterFileError

__all__ = ["PICKLE_REMEDY", "is_foreign", "unknown_tensor", "unreadable_file"]

PICKLE_REMEDY = (
    "convert it where you trust it: `torch.load(file, weights_only=True)`, then "
    "`safetensors.torch.save_file`; pickled files are never read, because loading one runs the "
    "code in it"
)
_AGAIN = "download it again, signed in if the site asks for it"
_HEADS = (
    (b"version https://git-lfs", "is a Git LFS pointer, not the adapter itself",
     "fetch it with `git lfs pull`"),
    (b"<", "is a web page, not the adapter itself", _AGAIN),
    (b"{", "is JSON text, such as a server's error message, not the adapter itself", _AGAIN),
    (b"GGUF", "is a GGUF file, which holds a whole quantised model", "name a LoRA"),
    (b"\x80", "is a pickled file, not a safetensors file", PICKLE_REMEDY),
    (b"Rar!", "is a RAR archive", "unpack it"),
    (b"7z\xbc\xaf", "is a 7z archive", "unpack it"),
    (b"\x1f\x8b", "is compressed with gzip", "unpack it"),
)  # fmt: skip
_UNFINISHED = (".crdownload", ".part", ".partial", ".download", ".incomplete", ".aria2")
"""Suffixes of browsers and download tools for files that are not complete."""
_CUT_SHORT = ("incomplete metadata", "invalid header length", "header too small")
"""In the safetensors library's messages on files that are shorter or longer than they say."""
_SPACE = b"\xef\xbb\xbf \t\r\n"
_SIZE_BYTES = 8
"""A safetensors file begins with the size of its header, whose upper half is zero."""

_RESCALED = "a DoRA adapter: it rescales the base's own weights, which no plain LoRA equals"
_ROTATED = "adapter: it rotates the base's own weights, which no plain LoRA equals"
_OTHER_KINDS = (
    (re.compile(r"dora_scale|magnitude_vector"), _RESCALED),
    (re.compile(r"boft_"), f"a BOFT {_ROTATED}"),
    (re.compile(r"oft_"), f"an OFT {_ROTATED}"),
    (re.compile(r"\.diff(?:_b)?$"), "a change of whole weights, not a plain LoRA"),
    (re.compile(r"trainable_tokens|token_adapter"), "trained tokens beside the LoRA"),
    (re.compile(r"modules_to_save"), "a whole trained module beside the LoRA"),
    (re.compile(r"lora_(?:B|up)(?:\.[^.]+)?\.bias$|\.bias$"), "a trained bias beside the LoRA"),
    (re.compile(r"\.[wb]_norm$"), "trained normalisation layers beside the LoRA"),
    (re.compile(r"\.(?:[ab][12]|bm[12])\.weight$"), "a GLoRA adapter"),
    (re.compile(r"\.on_input$"), "an (IA)³ adapter: it scales activations"),
    (re.compile(r"vera_lambda"), "a VeRA adapter: its matrices are not in the file"),
    (
        re.compile(r"lora_embedding_|(?:token|position)_embedding\.(?:lora|hada|lokr|alpha)"),
        "an adapter of the text encoder's embeddings",
    ),
    (re.compile(r"^(?:lora_)?vae[._].*\.(?:lora|hada|lokr|alpha)"), "an adapter of the VAE"),
    (re.compile(r"^\d+\.to_\w+_lora\."), "the LoRA of an IP-Adapter, which needs the rest of it"),
    (re.compile(r"^lora_controlnet$"), "a Control-LoRA"),
)
"""Tensors of adapters that are not plain LoRA, and what they mark."""
_WHOLE = (
    (re.compile(r"^control_model\.|^controlnet_"), "a ControlNet"),
    (re.compile(r"^ip_adapter\.|^image_proj\."), "an IP-Adapter"),
    (re.compile(r"motion_modules\."), "a motion module of AnimateDiff"),
    (re.compile(r"^model\.diffusion_model\.|^first_stage_model\.|^cond_stage_model\.|"
                r"^conditioner\.embedders\."), "a whole model (a checkpoint)"),
    (re.compile(r"^(?:encoder|decoder|quant_conv|post_quant_conv)\."), "an autoencoder (VAE)"),
    (re.compile(r"\.(?:weight|bias)$"), "a whole model"),
)  # fmt: skip
"""Files without any LoRA layer; the first pattern that one of their tensors matches."""
_LOW_RANK = re.compile(r"lora|hada|lokr")
_MODULE = re.compile(r"(?!.*(?:lora|hada|lokr|\.(?:down|up)\.weight$)).*\.weight$")
_WHOLE_REMEDY = (
    "name a LoRA; a fine-tuned model is used as a base instead: convert it to a diffusers folder, "
    "and name that with --base"
)
_EMBEDDING = re.compile(
    r"^bundle_emb\.(?P<bundled>[^.]+)|^(?P<alone>emb_params.*|string_to_param.*|clip_[lg]|<[^>]+>)$"
)
"""Textual-inversion embeddings, bundled with a LoRA (OneTrainer, A1111) or alone."""
_NUMBERED = re.compile(r"^\w+:\d+:(?:up|down)$")
"""Tensors of the first LoRA scripts (cloneofsimo's), which number the layers."""


def unreadable_file(path: Path, error: Exception) -> AdapterFileError:
    """The error for a file that the safetensors library refused."""
    try:
        with open(path, "rb") as file:
            head = file.read(64)
    except IsADirectoryError:
        return AdapterFileError(f"{path} is a folder", "name a file in it")
    except OSError:
        head = b""
    if path.name == PEFT_CONFIG:
        return AdapterFileError(
            f"{path} is an adapter's config, not the adapter itself", "name the folder of both"
        )
    if path.suffix.lower() in _UNFINISHED:
        return AdapterFileError(
            f"{path} is a download that has not ended", "wait for its end, or start it again"
        )
    is_named_so = path.suffix.lower() == ".safetensors"
    if head and (not is_named_so or len(head) < _SIZE_BYTES or any(head[4:_SIZE_BYTES])):
        if (found := _by_content(path, head)) is not None:
            return found
        if not is_named_so:
            return AdapterFileError(f"{path} is not a safetensors file", "name a LoRA")
    what = "the file is empty" if not head else str(error)
    if any(cause in what for cause in _CUT_SHORT):
        what = "its size is not the one in its header, as after a download that broke off"
    elif head and not any(head):
        what = "it begins with zeros, as a download does that has not ended"
    return AdapterFileError(f"{path} cannot be read: {what}", "fetch it again")


def _by_content(path: Path, head: bytes) -> AdapterFileError | None:
    """The error for a file of another form, by its first bytes; None for unknown ones."""
    text = head.lstrip(_SPACE)
    for start, what, remedy in _HEADS:
        if text.startswith(start):
            return AdapterFileError(f"{path} {what}", remedy)
    if head.startswith(b"PK\x03\x04"):
        return _zipped(path)
    words = " ".join(text.decode(errors="ignore").split())
    if words.isprintable() and len(words.encode()) > len(text) // 2:
        return AdapterFileError(f"{path} is text, not the adapter itself: `{words}`", _AGAIN)
    return None


def _zipped(path: Path) -> AdapterFileError:
    """The error for a zip archive, as which PyTorch saves its pickled files."""
    try:
        with zipfile.ZipFile(path) as archive:
            is_pickle = any(name.endswith("data.pkl") for name in archive.namelist())
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        is_pickle = True
    if is_pickle:
        return AdapterFileError(f"{path} is a pickled file, not a safetensors file", PICKLE_REMEDY)
    return AdapterFileError(f"{path} is a zip archive", "unpack it and name the file in it")


def is_foreign(key: str) -> bool:
    """Whether a tensor marks an adapter of another kind, whatever else its name holds."""
    return any(pattern.search(key) for pattern, _ in _OTHER_KINDS)


def unknown_tensor(key: str, keys: Sequence[str], path: Path, *, is_lora: bool) -> AdapterFileError:
    """The error for a file with a tensor that no LoRA has.

    Args:
        key: the first such tensor.
        keys: all tensors of the file.
        is_lora: whether any other tensor of the file belongs to a LoRA.
    """
    if (bundled := next(filter(None, map(_EMBEDDING.match, keys)), None)) is not None:
        if word := bundled["bundled"]:
            return AdapterFileError(
                f"{path} holds the text embedding {word!r} beside the LoRA, which cannot be served",
                "save the LoRA without bundled embeddings",
            )
        return _embedding(path)
    if len(keys) == 1 and not {".", ":"} & set(key):
        return _embedding(path)  # diffusers names it by its trigger word alone
    if _NUMBERED.match(key) is not None:
        return AdapterFileError(
            f"{path} numbers its layers ({key}), as the first LoRA scripts did",
            "save it again with diffusers, PEFT or kohya's scripts",
        )
    if (other := _other_kind(keys, path, is_lora=is_lora)) is not None:
        return other
    if not is_lora and not any(_LOW_RANK.search(one) for one in keys):
        for pattern, what in _WHOLE:
            if (found := next(filter(pattern.search, keys), None)) is not None:
                remedy = _WHOLE_REMEDY if what.startswith("a whole model") else "name a LoRA"
                message = f"{path} is {what}, not a LoRA, by its tensor {found}"
                return AdapterFileError(message, remedy)
    return _unknown(key, path)


def _other_kind(keys: Sequence[str], path: Path, *, is_lora: bool) -> AdapterFileError | None:
    """The error for an adapter that is more than plain LoRA; None if no tensor marks one."""
    if is_lora and (module := next(filter(_MODULE.match, keys), None)) is not None:
        return AdapterFileError(
            f"{path} is not a plain LoRA: its tensor {module} belongs to a whole trained module",
            "train it without whole modules (PEFT's `modules_to_save`)",
        )
    for pattern, what in _OTHER_KINDS:
        if (found := next(filter(pattern.search, keys), None)) is not None and (
            is_lora or not found.endswith(".bias")
        ):
            return AdapterFileError(
                f"{path} is not a plain LoRA: its tensor {found} marks {what}", "train a plain LoRA"
            )
    return None


def _embedding(path: Path) -> AdapterFileError:
    return AdapterFileError(
        f"{path} is a textual-inversion embedding, not a LoRA", "train a plain LoRA"
    )


def _unknown(key: str, path: Path) -> AdapterFileError:
    return AdapterFileError(
        f"{path}: the tensor {key} is unknown", "save the adapter with diffusers, PEFT or kohya"
    )
