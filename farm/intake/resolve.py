"""From a written row to a subject: defaults applied, photos found, prompts judged.

Owns everything about one subject that can be told without decoding a photo. What concerns several
subjects (ids given twice) is in ``manifest.py``; pixels are judged in ``check.py``.
"""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError

from farm.errors import Fault
from farm.intake.entry import Head, SubjectEntry
from farm.intake.faults import faults_of
from farm.intake.photo_list import list_photos, list_uris
from farm.intake.prompts import judge_prompts
from farm.intake.recipes import Layers
from farm.intake.rows import Row
from farm.intake.subject import Subject

__all__ = ["Resolver"]

_PLAIN = ("class_noun", "namespace", "identifier", "instance_prompt", "class_prompt")
FEW_PHOTOS = 3
"""Fewer show too little of a subject to tell it from its background."""


class Resolver:
    """Turns the rows of one manifest into subjects. Safe in several threads at once."""

    def __init__(self, head: Row) -> None:
        """Validate the head; ``faults`` says what is wrong with it."""
        self.faults: list[Fault] = []
        self.head = Head()
        try:
            self.head = Head.model_validate(head.value)
        except ValidationError as error:
            self.faults += faults_of(error, head, Head)
        self._row = head
        defaults = self.head.defaults
        self._layers = Layers(head, defaults.preset, defaults.recipe, defaults.prior)
        self.faults += self._layers.faults
        self._class_images = {
            noun: list_uris(references, head, ("class_images", noun), self.faults)
            for noun, references in (self.head.class_images or {}).items()
        }

    def resolve(self, row: Row) -> tuple[Subject | None, list[Fault]]:
        """One subject with all its faults; None where an error leaves nothing to train."""
        faults: list[Fault] = []
        try:
            entry = SubjectEntry.model_validate(row.value)
        except ValidationError as error:
            faults += faults_of(error, row, SubjectEntry)
            faults += self._told_beside(row, {fault.field for fault in faults})
            return None, faults
        recipe = self._layers.recipe(row, entry.preset, entry.recipe, faults)
        prior = self._layers.prior(row, entry.prior, faults)
        listed = list_photos(entry.photos, row, entry.captions or "files", faults)
        values = self._values(entry, row, faults)
        if recipe is None or prior is None or not listed or "class_noun" not in values:
            return None, faults
        photos = tuple(one.photo for one in listed)
        values |= {"recipe": recipe, "prior": prior, "photos": photos}
        subject = Subject.model_validate(values)
        faults += _count_faults(subject, row)
        faults += judge_prompts(subject, listed, row, self._row)
        return subject, faults

    def _told_beside(self, row: Row, told: set[str]) -> list[Fault]:
        """What can still be told of a row whose own fields are refused: all faults in one pass."""
        faults: list[Fault] = []
        recipe, prior = row.value.get("recipe"), row.value.get("prior")
        if isinstance(recipe, dict):
            self._layers.recipe(row, None, recipe, faults)
        if isinstance(prior, dict):
            self._layers.prior(row, prior, faults)
        list_photos(row.value.get("photos"), row, "files", faults)
        return [fault for fault in faults if fault.field not in told]

    def _values(self, entry: SubjectEntry, row: Row, faults: list[Fault]) -> dict[str, Any]:
        """The plain fields: the subject's own, else the defaults'; absent ones are left out."""
        defaults = self.head.defaults
        values: dict[str, Any] = {"id": entry.id}
        for field in (*_PLAIN, "priority", "sample_prompts"):
            own = getattr(entry, field)
            value = own if own is not None else getattr(defaults, field)
            if value is not None:
                values[field] = value
        if entry.name is not None:
            values["name"] = entry.name
        noun = values.get("class_noun")
        if noun is None:
            message = "`class_noun` is missing"
            faults.append(row.fault(("class_noun",), message, "say what it is, such as `cat`"))
        if entry.class_images is not None:
            values["class_images"] = list_uris(entry.class_images, row, ("class_images",), faults)
        elif noun in self._class_images:
            values["class_images"] = self._class_images[noun]
        return values


def _count_faults(subject: Subject, row: Row) -> list[Fault]:
    count, recipe = len(subject.photos), subject.recipe
    if count < FEW_PHOTOS:
        message = f"only {count} photo{'s' if count > 1 else ''}"
        remedy = "3 to 20 from several sides and places teach the subject, not its background"
    elif count > recipe.steps * recipe.instance_rows:
        message = f"{count} photos, but {recipe.steps} steps show {recipe.instance_rows} each"
        remedy = "raise `recipe.steps` or `recipe.instance_rows`; some would never be seen"
    else:
        return []
    return [row.fault(("photos",), message, remedy, severity="warning")]
