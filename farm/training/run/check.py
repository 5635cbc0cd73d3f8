"""The manifest of a check, with module names held against the base where that is at hand.

Owns when a check loads a base: only for recipes with module names of their own, and only a base
that needs no download. Plans and runs check the names against every base; see ``prepare``.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from farm.base.loading import is_at_hand
from farm.base.names import edition_of
from farm.base.tokens import prompt_reader
from farm.intake.manifest import Manifest, all_fit, read_manifest
from farm.recipe import BASE_RECIPES, FAMILY_RECIPES, Recipe, base_layers
from farm.training.plan.base_facts import base_facts

__all__ = ["read_for_check"]


def read_for_check(
    manifest: str, base: str, recipe: Mapping[str, object] | None = None
) -> Manifest:
    """Read a manifest with all its faults, those of its modules' names included.

    Args:
        recipe: fields that override everything in the manifest, as of a run.

    Raises:
        ManifestError: if the manifest cannot be read at all.
        BaseModelError: if the base does not exist.
    """
    layers, reader = base_layers(edition_of(base)), prompt_reader(base)
    read = partial(read_manifest, manifest, strict=False, recipe=recipe, **layers, reader=reader)
    found = read()
    if not is_at_hand(base) or not _names_modules(found):
        return found
    facts = base_facts(base)
    modules, family = facts.modules, facts.recipe or None
    if family is None and all_fit(found, modules):
        return found
    return read(family_recipe=family, modules=modules)


def _names_modules(manifest: Manifest) -> bool:
    """Whether a recipe has module names other than the usual ones of bases."""
    layers = (*BASE_RECIPES.values(), *FAMILY_RECIPES.values())
    usual = [Recipe().target_modules, *(layer.get("target_modules") for layer in layers)]
    return any(
        subject.recipe.text_encoder_modules or subject.recipe.target_modules not in usual
        for subject in manifest.subjects
    )
