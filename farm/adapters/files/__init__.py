"""Adapter files: diffusers, PEFT and kohya forms, and the model card."""
