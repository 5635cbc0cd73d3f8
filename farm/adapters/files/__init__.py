"""Adapter files: the diffusers, PEFT and kohya formats, and the model card."""
