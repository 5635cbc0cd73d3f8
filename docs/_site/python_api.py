"""The page of the Python API: the modules that programs import, rendered by mkdocstrings."""

from __future__ import annotations

MODULES = (
    "farm.recipe",
    "farm.errors",
    "farm.storage",
    "farm.adapters.registry",
    "farm.adapters.record",
    "farm.base.interface",
    "farm.base.loading",
    "farm.training.plan.planner",
    "farm.serving.request",
    "farm.serving.http.image_metadata",
    "farm.quality.scores",
)
"""In the order of the page."""


def python_page() -> str:
    """One section per module, generated from its docstrings and annotations."""
    intro = (
        "Generated from docstrings and type annotations. Names that a module's `__all__` does not "
        "list are private."
    )
    return "\n\n".join(["# Python API", intro, *(f"::: {module}" for module in MODULES)]) + "\n"
