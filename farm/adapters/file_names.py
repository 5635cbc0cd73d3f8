"""The names of an adapter's files, in its folder and in the store."""

from __future__ import annotations

__all__ = [
    "DIFFUSERS_FILE",
    "KOHYA_ENDING",
    "PEFT_CONFIG",
    "PEFT_FOLDER",
    "PEFT_WEIGHTS",
    "RECORD_FILE",
    "SAMPLES_FOLDER",
]

RECORD_FILE = "adapter.json"
"""Written last; its presence marks a complete adapter."""
DIFFUSERS_FILE = "pytorch_lora_weights.safetensors"
"""The name that ``pipeline.load_lora_weights`` expects."""
PEFT_FOLDER = "peft"
PEFT_WEIGHTS = "adapter_model.safetensors"
PEFT_CONFIG = "adapter_config.json"
"""Both named as ``PeftModel.from_pretrained`` expects."""
KOHYA_ENDING = ".kohya.safetensors"
"""Suffix of the kohya file, which has the adapter's name."""
SAMPLES_FOLDER = "samples"
