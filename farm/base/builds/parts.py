"""Parts of random-weight pipelines that several families share: tokenizers, text encoders, VAEs."""

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
    Qwen2Tokenizer,
    T5Config,
    T5EncoderModel,
    T5TokenizerFast,
)

__all__ = [
    "CLIP_L",
    "FLUX1_LATENTS",
    "LARGE_VAE",
    "NO_QUANT_CONVS",
    "QWEN3_4B",
    "T5_XXL",
    "TINY_CLIP",
    "TINY_TEXT",
    "TINY_VAE",
    "byte_tokenizer",
    "chat_tokenizer",
    "clip_text",
    "language_form",
    "letter_tokenizer",
    "t5_text",
]

CLIP_L = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "max_position_embeddings": 77,
    "vocab_size": 49408,
}
"""The text encoder of openai/clip-vit-large-patch14."""
TINY_CLIP = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 32,
}
T5_XXL = {
    "d_model": 4096,
    "d_kv": 64,
    "d_ff": 10240,
    "num_layers": 24,
    "num_heads": 64,
    "vocab_size": 32128,
}
"""The encoder of google/t5-v1_1-xxl."""
QWEN3_4B = {
    "hidden_size": 2560,
    "intermediate_size": 9728,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 40960,
    "vocab_size": 151936,
}
TINY_TEXT = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 512,
}
"""A language model."""
NO_QUANT_CONVS = {"use_quant_conv": False, "use_post_quant_conv": False}
TINY_VAE = {
    "block_out_channels": (8, 8, 16, 16),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "sample_size": 64,
    **NO_QUANT_CONVS,
}
LARGE_VAE = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "norm_num_groups": 32,
    "sample_size": 1024,
}
FLUX1_LATENTS = {"scaling_factor": 0.3611, "shift_factor": 0.1159}
"""Of the VAE of FLUX.1, which Z-Image also uses."""
QWEN3_CHAT = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
"""The form of Qwen3's own template for one message of the user."""


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


def chat_tokenizer(template: str = QWEN3_CHAT) -> Qwen2Tokenizer:
    """A chat tokenizer whose tokens are bytes: it encodes any text, inefficiently."""
    vocabulary = {symbol: i for i, symbol in enumerate(sorted(ByteLevel.alphabet()))}
    tokenizer = Qwen2Tokenizer(
        vocab=vocabulary,
        merges=[],
        additional_special_tokens=["<|im_start|>", "<|im_end|>"],
    )
    tokenizer.chat_template = template
    return tokenizer


def language_form(tokenizer: Qwen2Tokenizer, shape: Mapping[str, Any]) -> dict[str, Any]:
    """The config of a language model of a shape, for a tokenizer."""
    return {
        "vocab_size": len(tokenizer),
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        **shape,
    }
