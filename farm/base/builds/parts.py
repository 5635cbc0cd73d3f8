"""Parts of random-weight pipelines that several families share: tokenizers and text encoders."""

from __future__ import annotations

import string
from collections.abc import Mapping
from typing import Any

from tokenizers.pre_tokenizers import ByteLevel
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5TokenizerFast,
)

__all__ = ["CLIP_L", "T5_XXL", "byte_tokenizer", "clip_text", "letter_tokenizer", "t5_text"]

CLIP_L = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "max_position_embeddings": 77,
    "vocab_size": 49408,
}
"""The text encoder of openai/clip-vit-large-patch14."""
T5_XXL = {
    "d_model": 4096,
    "d_kv": 64,
    "d_ff": 10240,
    "num_layers": 24,
    "num_heads": 64,
    "vocab_size": 32128,
}
"""The encoder of google/t5-v1_1-xxl."""


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


def t5_text(tokenizer: T5TokenizerFast, shape: Mapping[str, Any]) -> T5EncoderModel:
    """A T5 text encoder for a tokenizer."""
    form = {"vocab_size": len(tokenizer), "feed_forward_proj": "gated-gelu", **shape}
    return T5EncoderModel(T5Config(**form))


def letter_tokenizer() -> T5TokenizerFast:
    """A T5 tokenizer whose tokens are printable ASCII characters."""
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    letters = [(letter, -3.0) for letter in string.printable if not letter.isspace()]
    return T5TokenizerFast(vocab=[*special, *letters], extra_ids=0)
