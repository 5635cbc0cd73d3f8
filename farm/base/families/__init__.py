"""The model families: one module each, and what their pipelines have in common."""
