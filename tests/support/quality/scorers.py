"""A tiny random CLIP, saved in the folder layout of real ones."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import CLIPConfig, CLIPModel, PreTrainedTokenizerFast

WORDS = ("<|startoftext|>", "<|endoftext|>", "a", "photo", "of", "cat", "dog", "in", "the", "snow")


def save_clip(folder: Path, *, side_px: int = 32) -> Path:
    """A random CLIPModel with a word tokenizer."""
    torch.manual_seed(7)
    # large random weights, so that images differ as with a trained model
    common = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    common |= {"initializer_factor": 12.0}
    config = CLIPConfig(
        text_config={
            **common,
            "num_attention_heads": 2,
            "vocab_size": len(WORDS),
            "max_position_embeddings": 12,
            "bos_token_id": 0,
            "eos_token_id": 1,
            "pad_token_id": 1,
        },
        vision_config={
            **common,
            "num_attention_heads": 2,
            "image_size": side_px,
            "patch_size": 8,
        },
        projection_dim=8,
    )
    CLIPModel(config).save_pretrained(folder)
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="a"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=words, eos_token="<|endoftext|>", pad_token="<|endoftext|>"
    ).save_pretrained(folder)
    return folder
