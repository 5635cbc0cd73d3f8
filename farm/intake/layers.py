"""Recipes from layers: family, preset, the base's requirements, defaults, the subject's fields.

Owns the order of the layers and which layer a fault belongs to. Each layer overrides the previous
one field by field; the family's recipe has the lowest priority.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from farm.errors import Fault
from farm.intake.faults import faults_of, validated
from farm.intake.rows import ManifestRow
from farm.intake.subject import PriorSettings
from farm.recipe import PRESETS, PresetName, Recipe

__all__ = ["Layers", "command_line_faults", "merged"]

Model = TypeVar("Model", bound=BaseModel)
Fields = Mapping[str, Any]
MAX_WHOLE = 2**53
"""Above it, floats are no longer exact integers."""


class Layers:
    """The layers below a subject's own: created once per manifest, applied once per subject.

    Equal recipes are one object, so ten thousand subjects need no memory for separate ones.
    """

    def __init__(
        self,
        head: ManifestRow,
        preset: PresetName | None,
        recipe: Fields | None,
        prior: Fields | None,
        base: Fields | None = None,
        family: Fields | None = None,
        base_prior: Fields | None = None,
    ) -> None:
        """Validate the defaults; errors are added to ``faults``.

        Args:
            head: where the defaults were written, under ``defaults``.
            base: fields that the base needs with values other than the presets'.
            family: fields of the official script for the base's family; presets override them.
            base_prior: how the base generates class images; the manifest overrides it.
        """
        self._preset, self._base, self._family = preset, dict(base or {}), dict(family or {})
        self._recipe = dict(recipe or {})
        self._prior = dict(prior or {})
        self._made: dict[str, BaseModel] = {}
        self.faults: list[Fault] = []
        below = self._under(preset)
        # a refused field is reported once, here; subjects are validated without it
        self._refuse(Recipe, below, self._recipe, head, "recipe")
        self._refuse(PriorSettings, {}, self._prior, head, "prior")
        self._prior = merged(base_prior or {}, self._prior)

    def _under(self, preset: PresetName | None) -> dict[str, Any]:
        """The lowest layers: the family's recipe, a preset, and the base's own recipe."""
        above = merged(PRESETS[preset] if preset else {}, self._base)
        return merged(self._family, above)

    def _refuse(
        self,
        model: type[Model],
        below: Fields,
        layer: dict[str, Any],
        head: ManifestRow,
        field: str,
    ) -> None:
        """Report the faults of a layer of the defaults, and remove the refused fields."""
        try:
            self._validated(model, merged(below, layer))
        except ValidationError as error:
            self.faults += faults_of(error, head, model, ("defaults", field))
            for detail in error.errors(include_url=False):
                layer.pop(str(detail["loc"][0]) if detail["loc"] else "", None)

    def recipe(
        self, row: ManifestRow, preset: PresetName | None, own: Fields | None, faults: list[Fault]
    ) -> Recipe | None:
        """A subject's recipe; None, with the reason added to the faults, if it is refused."""
        below = merged(self._under(preset or self._preset), self._recipe)
        try:
            return self._validated(Recipe, merged(below, own or {}))
        except ValidationError as error:
            faults += faults_of(error, row, Recipe, ("recipe",))
            return None

    def prior(
        self, row: ManifestRow, own: Fields | None, faults: list[Fault]
    ) -> PriorSettings | None:
        """How a subject's class images are generated; None as for ``recipe``."""
        try:
            return self._validated(PriorSettings, merged(self._prior, own or {}))
        except ValidationError as error:
            faults += faults_of(error, row, PriorSettings, ("prior",))
            return None

    def _validated(self, model: type[Model], values: Fields) -> Model:
        # through JSON, where strict accepts a list as a tuple; strict, so that `true` is not 1
        text = json.dumps(_whole_numbers(values), sort_keys=True)
        made = self._made.get(key := model.__name__ + text)
        if made is None:
            made = self._made[key] = model.model_validate_json(text, strict=True)
        assert isinstance(made, model)
        return made


def _whole_numbers(value: Any) -> Any:
    """Whole numbers as integers however they were written: ``1e3``, or ``800.0`` in a table."""
    if isinstance(value, Mapping):
        return {name: _whole_numbers(content) for name, content in value.items()}
    if isinstance(value, list | tuple):
        return [_whole_numbers(content) for content in value]
    is_whole = isinstance(value, float) and value.is_integer() and abs(value) < MAX_WHOLE
    return int(value) if is_whole else value


def command_line_faults(recipe: Fields, source: str = "the command line") -> list[Fault]:
    """Faults of recipe fields that the caller gives for all subjects, such as ``--set``.

    Combinations of fields are validated together with the manifest's own.

    Args:
        source: where the fields were given, for the faults.
    """
    _, faults = validated(Recipe, recipe, ManifestRow({}, source, ""), ("recipe",))
    return [fault for fault in faults if fault.field != "recipe"]


def merged(below: Fields, above: Fields) -> dict[str, Any]:
    """Two layers merged, nested mappings included; null resets a field."""
    layer = dict(below)
    for field, value in above.items():
        under = layer.get(field)
        if isinstance(under, Mapping) and isinstance(value, Mapping):
            value = merged(under, value)
        layer[field] = value
    return layer
