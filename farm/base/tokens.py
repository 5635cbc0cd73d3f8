"""Find which part of a prompt exceeds a base's token limit, using its tokenizer alone.

Owns this check and the loading of tokenizers for it. A text encoder reads a fixed number of tokens
(77 for CLIP) and ignores the rest. Imports neither torch nor the model, so that a manifest can be
checked without them.
"""

from __future__ import annotations

import json
import math
import tempfile
from contextlib import suppress
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, get_args

from tokenizers import Tokenizer

from farm.base.names import EMBEDDED, EMBEDDED_NOUNS, BuiltName, edition_of
from farm.errors import BaseModelError
from farm.local_files import full_disk

__all__ = ["MAX_WINDOWS", "PromptReader", "hub_unreachable", "prompt_reader"]

FOLDER, INDEX = "tokenizer", "model_index.json"
FOLDERS = (FOLDER, "tokenizer_2", "tokenizer_3")
FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt",
         "special_tokens_map.json")  # fmt: skip
USUAL_TOKENS = 77
"""CLIP's limit, used if a tokenizer's config has none."""
LONG_READERS = {
    "StableDiffusion3Pipeline": ("tokenizer_3", 256),
    "FluxPipeline": ("tokenizer_2", 512),
    **dict.fromkeys(
        ("ZImagePipeline", "Flux2KleinPipeline", "Flux2Pipeline", "QwenImagePipeline",
         "Krea2Pipeline"),
        (FOLDER, 512),
    ),
}  # fmt: skip
"""The tokenizer that reads most of a prompt, and how many tokens of it the pipeline reads, where
that is not CLIP's. Chat templates take some of them, which is not known here."""
WINDOWED_PIPELINES = ("StableDiffusionPipeline", "StableDiffusionXLPipeline")
"""Pipelines whose prompts can be read in windows."""
BASE_REMEDY = "name 'embedded', an existing folder, a URL, or a hub id such as 'owner/model'"
MAX_WINDOWS = 16
"""Windows of tokens that a prompt is read in at most: 1,200 of CLIP's tokens."""


class PromptReader:
    """Finds the end of a prompt that exceeds a base's token limit. Thread-safe."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        max_tokens: int,
        base: str,
    ) -> None:
        """Copy the tokenizer on first use.

        Args:
            tokenizer: copied, because callers may set truncation and padding on theirs.
            max_tokens: number of tokens that the text encoder reads, start and end included.
            base: as the user named it, for messages.
        """
        self._source = tokenizer
        self.max_tokens = max_tokens
        self.base = base
        self.class_nouns: tuple[str, ...] = ()
        """The only classes that the base can generate; empty if it has no such list."""
        self.max_windows = MAX_WINDOWS
        """Windows of tokens in which it can read a long prompt; 1 if it reads one length only."""

    @cached_property
    def _tokenizer(self) -> Any:
        own = Tokenizer.from_str(self._source.to_str())
        own.no_truncation()
        own.no_padding()
        return own

    @cached_property
    def _room(self) -> int:
        """Number of text tokens, without the start and end tokens."""
        return self.max_tokens - int(self._tokenizer.num_special_tokens_to_add(False))

    def unread(self, prompt: str, windows: int = 1) -> str:
        """The end of a prompt that the text encoder ignores; empty if it reads everything.

        Args:
            windows: in which the prompt is read.
        """
        room = windows * self._room
        if prompt.isascii() and len(prompt) <= room:
            return ""  # a token is at least one byte
        offsets = self._tokenizer.encode(prompt, add_special_tokens=False).offsets
        return prompt[offsets[room][0] :] if len(offsets) > room else ""

    def num_windows(self, prompt: str) -> int:
        """Windows of tokens that the whole prompt takes, at most ``MAX_WINDOWS``."""
        if prompt.isascii() and len(prompt) <= self._room:
            return 1
        count = len(self._tokenizer.encode(prompt, add_special_tokens=False).ids)
        return min(MAX_WINDOWS, max(1, math.ceil(count / self._room)))


@lru_cache(maxsize=8)
def prompt_reader(base: str, revision: str | None = None) -> PromptReader | None:
    """The prompt reader for a base; fetches and loads only its tokenizer.

    Returns:
        None for random-weight builds, for which prompts have no meaning.

    Raises:
        BaseModelError: if there is no such base, or it has no tokenizer.
    """
    if base in get_args(BuiltName):
        return None
    if edition_of(base) == EMBEDDED:
        folder = Path(__file__).parent / "embedded" / "weights"
        reader = _from_folder(folder, base)
        reader.class_nouns = EMBEDDED_NOUNS
        return reader
    if "://" in base:
        return _from_url(base)
    if Path(base).expanduser().is_dir():
        return _from_folder(Path(base).expanduser(), base)
    if base.count("/") != 1 or base.startswith((".", "/", "~")):
        raise BaseModelError(f"there is no base {base!r}", BASE_REMEDY)
    return _from_hub(base, revision)


def _from_folder(root: Path, base: str) -> PromptReader:
    """The reader for a diffusers folder."""
    pipeline = None
    with suppress(OSError, ValueError, AttributeError):
        pipeline = str(json.loads((root / INDEX).read_bytes()).get("_class_name"))
    part, tokens = LONG_READERS.get(pipeline or "", (FOLDER, 0))
    if (root / part / "tokenizer.json").is_file():
        reader = _from_tokenizer(root / part, base)
        reader.max_tokens = tokens or reader.max_tokens
    else:  # a pipeline that was saved without its largest text encoder, or a vocabulary alone
        reader = _from_tokenizer(root / FOLDER, base)
    if pipeline is not None:
        reader.max_windows = MAX_WINDOWS if pipeline in WINDOWED_PIPELINES else 1
    return reader


def _from_tokenizer(folder: Path, base: str) -> PromptReader:
    """The reader for a tokenizer: ``tokenizer.json``, or one built from its vocabulary."""
    try:
        if (folder / "tokenizer.json").is_file():
            config = json.loads((folder / "tokenizer_config.json").read_bytes())
            tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
            return PromptReader(tokenizer, _length(config.get("model_max_length")), base)
        from transformers import CLIPTokenizer

        slow = CLIPTokenizer.from_pretrained(folder)
        return PromptReader(slow.backend_tokenizer, _length(slow.model_max_length), base)
    except Exception as error:  # tokenizers raises nothing more precise
        raise BaseModelError(
            f"{base}: its tokenizer cannot be read: {error}", "name a diffusers folder or hub id"
        ) from error


def _length(value: object) -> int:
    """A tokenizer's token limit; configs without one hold a very large number."""
    return value if isinstance(value, int) and 2 < value < 10**6 else USUAL_TOKENS


def _from_url(url: str) -> PromptReader:
    from farm.storage import Store

    store = Store(url)
    with tempfile.TemporaryDirectory(prefix="farm-tokenizer-") as folder:
        for part in FOLDERS:
            for name in set(store.list(part)) & set(FILES):
                store.download(f"{part}/{name}", Path(folder) / part / name)
        if store.exists(INDEX):
            store.download(INDEX, Path(folder) / INDEX)
        return _from_folder(Path(folder), url)


def hub_unreachable(base: str) -> BaseModelError:
    """The error of a base that is not in the local cache, without a network to fetch it by."""
    from huggingface_hub.constants import HF_HUB_OFFLINE

    if HF_HUB_OFFLINE:
        why = "HF_HUB_OFFLINE is set, so it is not fetched"
        remedy = "unset HF_HUB_OFFLINE once"
    else:
        why = "the network does not reach the hub"
        remedy = "connect to the network"
    return BaseModelError(
        f"{base} is not in the local hub cache, and {why}",
        f"{remedy}, or copy the model into a folder and name that",
    )


def _from_hub(base: str, revision: str | None) -> PromptReader:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    wanted = [*(f"{part}/*" for part in FOLDERS), INDEX]
    try:
        folder = snapshot_download(base, revision=revision, allow_patterns=wanted)
    except LocalEntryNotFoundError as error:
        raise hub_unreachable(base) from error
    except Exception as error:  # gated, unknown: the hub's errors share no base class
        if (full := full_disk(error)) is not None:
            raise full from error
        raise BaseModelError(
            f"the tokenizer of {base} cannot be fetched: {str(error).partition(chr(10))[0]}",
            BASE_REMEDY,
        ) from error
    return _from_folder(Path(folder), base)
