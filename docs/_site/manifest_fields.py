"""The page of the manifest's and the recipe's fields, generated from their models."""

from __future__ import annotations


def manifest_page() -> str:
    """The tables of `docs/manifest.md`, as a page of their own."""
    from farm.intake.docs_tables import render_tables

    intro = (
        "Generated from the models that validate a manifest. [The manifest](../manifest.md) "
        "explains formats, photos, captions and prompts."
    )
    return f"# Manifest and recipe fields\n\n{intro}\n\n{render_tables()}\n"
