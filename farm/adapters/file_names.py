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
"""Written last: with it the adapter is whole."""
DIFFUSERS_FILE = "pytorch_lora_weights.safetensors"
"""What ``pipeline.load_lora_weights`` looks for."""
PEFT_FOLDER = "peft"
PEFT_WEIGHTS = "adapter_model.safetensors"
PEFT_CONFIG = "adapter_config.json"
"""Both as ``PeftModel.from_pretrained`` wants them."""
KOHYA_ENDING = ".kohya.safetensors"
"""Of a file that has the adapter's name."""
SAMPLES_FOLDER = "samples"
