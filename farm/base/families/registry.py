"""Which family loads a diffusers folder, by the class in its ``model_index.json``.

Owns the list of families. Each is imported only when a base of it is loaded.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from farm.errors import BaseModelError

if TYPE_CHECKING:
    from farm.base.families.pipeline_base import PipelineBase

__all__ = ["FAMILIES", "family_of"]

FAMILIES = {
    "StableDiffusionPipeline": ("stable_diffusion", "StableDiffusionBase"),
    "StableDiffusionXLPipeline": ("sdxl", "StableDiffusionXLBase"),
    "ZImagePipeline": ("z_image", "ZImageBase"),
    "Flux2KleinPipeline": ("flux2", "Flux2KleinBase"),
    "Flux2Pipeline": ("flux2", "Flux2DevBase"),
    "FluxPipeline": ("flux1", "Flux1Base"),
    "StableDiffusion3Pipeline": ("sd3", "StableDiffusion3Base"),
    "QwenImagePipeline": ("qwen.qwen_image", "QwenImageBase"),
    "Krea2Pipeline": ("qwen.krea2", "Krea2Base"),
}
"""Module in ``farm.base.families`` and class, by the name of the diffusers pipeline."""


def family_of(name: str, pipeline_class: object) -> type[PipelineBase]:
    """The base class that loads folders of a diffusers pipeline.

    Args:
        name: of the base, for messages.
        pipeline_class: ``_class_name`` of its ``model_index.json``.

    Raises:
        BaseModelError: if no family has that pipeline.
    """
    if pipeline_class not in FAMILIES:
        raise BaseModelError(
            f"{name} is a {pipeline_class}", f"use a base of {', '.join(FAMILIES)}"
        )
    module, cls = FAMILIES[str(pipeline_class)]
    family: type[PipelineBase] = getattr(import_module(f"farm.base.families.{module}"), cls)
    return family
