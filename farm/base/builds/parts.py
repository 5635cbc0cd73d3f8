"""Parts of random-weight pipelines that several families share: tokenizers and text encoders."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tokenizers.pre_tokenizers import ByteLevel
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
)

__all__ = ["byte_tokenizer", "clip_text"]


def clip_text(
    tokenizer: CLIPTokenizer, shape: Mapping[str, Any], *, projects: bool = False
) -> CLIPTextModel | CLIPTextModelWithProjection:
    """A CLIP text encoder for a tokenizer; ``projects`` adds the projection of pooled text."""
    config = CLIPTextConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **{"vocab_size": len(tokenizer), "projection_dim": 16, **shape},
    )
    return CLIPTextModelWithProjection(config) if projects else CLIPTextModel(config)


def byte_tokenizer(tokens: int) -> CLIPTokenizer:
    """A CLIP tokenizer whose tokens are bytes (and ``sks``): it encodes any text, inefficiently."""
    symbols = sorted(ByteLevel.alphabet())
    words = [*symbols, *(symbol + "</w>" for symbol in symbols), "sk", "sks</w>"]
    vocabulary = {word: i for i, word in enumerate([*words, "<|startoftext|>", "<|endoftext|>"])}
    merges = [("s", "k"), ("sk", "s</w>")]
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=tokens)
