"""Resolves a row to a subject: applies defaults, finds photos, checks prompts.

Owns everything about one subject that can be checked without decoding a photo. Duplicate ids and
names are found in ``manifest.py``; pixels are checked in ``check.py``.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from farm.errors import MAX_SUBJECT_FAULTS, Fault, FaultList
from farm.intake.captions.files import Caption
from farm.intake.faults import faults_of, slug, validated
from farm.intake.layers import Layers, command_line_faults, merged
from farm.intake.modules import MODULE_FIELDS, BaseModules, WrittenAt, module_faults
from farm.intake.photos.fields import ListedPhoto, class_captions, list_photos, list_uris
from farm.intake.photos.find import Beside
from farm.intake.prompts.judge import judge_prompts
from farm.intake.prompts.token_limit import Reader
from farm.intake.rows import ManifestRow
from farm.intake.schema import Head, SubjectEntry
from farm.intake.scoring import ScoringSettings
from farm.intake.subject import (
    CLASS_NOUN_FIELD,
    DEFAULT_IDENTIFIER,
    Subject,
    names_identifier,
)
from farm.text.safe_names import names_of_base

__all__ = ["ResolvedSubject", "Resolver", "unexpected"]

logger = logging.getLogger(__name__)

_PLAIN = ("class_noun", "namespace", "identifier", "instance_prompt", "class_prompt")
FEW_PHOTOS = 3
"""Fewer photos show too little of a subject to distinguish it from its background."""


@dataclass(frozen=True, slots=True)
class ResolvedSubject:
    """One subject of the manifest, with or without errors, and where it was written."""

    subject: Subject | None
    """None where an error leaves nothing to train; its photos are checked in any case."""
    id: str
    class_noun: str
    uris: tuple[str, ...]
    """URIs of its photos."""
    class_images: tuple[str, ...]
    file: str
    """Where it was written."""
    line: int | None
    field: str
    """Field of its photos, such as ``subjects[3].photos``."""
    base: str
    """Folder or URL that its relative paths start from."""
    num_captions: int = 0
    """Photos that have a caption of their own."""


class Resolver:
    """Turns the rows of one manifest into subjects. Safe in several threads at once."""

    def __init__(
        self,
        head: ManifestRow,
        recipe: Mapping[str, Any] | None = None,
        base_recipe: Mapping[str, Any] | None = None,
        family_recipe: Mapping[str, Any] | None = None,
        base_prior: Mapping[str, Any] | None = None,
        reader: Reader | None = None,
        modules: BaseModules | None = None,
    ) -> None:
        """Validate the head; its faults are in ``faults``.

        Args:
            recipe: fields that override everything in the manifest.
            base_recipe: fields that override only presets.
            family_recipe: fields that presets override.
            base_prior: how the base generates class images; the manifest overrides it.
            reader: how the base reads prompts; None does not check their length.
            modules: of the base; None does not check the recipes' module names.
        """
        self._reader, self._modules = reader, modules
        value = {**head.value, "subjects": None}
        found, own = validated(Head, value, head)
        self.faults = FaultList(own)
        self._head = found or Head()
        self._row = head
        defaults = self._head.defaults
        self._beside = Beside()
        self._layers = Layers(
            head,
            defaults.preset,
            defaults.recipe,
            defaults.prior,
            base=base_recipe,
            family=family_recipe,
            base_prior=base_prior,
        )
        self.faults += self._layers.faults
        self.quantization = defaults.quantize
        self.scoring = ScoringSettings(defaults.scorer, defaults.dino, defaults.scoring_share)
        self._above = self._checked(recipe or {})
        self._class_images = {
            noun: list_uris(references, head, ("class_images", noun), self.faults, self._beside)
            for noun, references in (self._head.class_images or {}).items()
        }

    def _checked(self, recipe: Mapping[str, Any]) -> dict[str, Any]:
        """The caller's valid recipe fields; the others are reported once."""
        single = command_line_faults(recipe)
        self.faults += single
        refused = [f"{fault.field}." for fault in single]
        return {
            field: value
            for field, value in recipe.items()
            if not any(one.startswith(f"recipe.{field}.") for one in refused)
        }

    def resolve(self, row: ManifestRow) -> tuple[ResolvedSubject, FaultList]:
        """One subject with all its faults; an error of any library is one of them."""
        try:
            return self._resolve(row)
        except Exception as error:
            logger.exception("subject %r of %s", row.value.get("id"), row.file)
            fault = row.fault((), *unexpected(error, "this subject"))
            return _resolved(row, None, [], ()), FaultList([fault])

    def _resolve(self, row: ManifestRow) -> tuple[ResolvedSubject, FaultList]:
        """A refused field does not hide another's fault."""
        found, refused = validated(SubjectEntry, row.value, row)
        is_refused = bool(refused)
        faults = FaultList(refused, MAX_SUBJECT_FAULTS)
        faults += _name_faults(row, self._reader)
        entry = found or SubjectEntry.model_validate(
            {**_kept(row.value), "id": slug(str(row.value.get("id", "")))}
        )
        own = merged(entry.recipe or {}, self._above)
        recipe = self._layers.recipe(row, entry.preset, own, faults)
        if recipe is not None and self._modules is not None:
            faults += module_faults(recipe, self._modules, self._places(entry, row))
        prior = self._layers.prior(row, entry.prior, faults)
        listed = list_photos(entry.photos, row, entry.captions or "files", faults, self._beside)
        values = self._values(entry, row, faults)
        subject = None
        if recipe is not None and prior is not None and listed and "class_noun" in values:
            photos = tuple(one.photo for one in listed)
            values |= {"recipe": recipe, "prior": prior, "photos": photos}
            try:
                subject = Subject.model_validate(values)
            except ValidationError as error:  # a prompt may become too long with its class noun
                faults += faults_of(error, row, Subject)
            else:
                faults += _count_faults(subject, row)
                faults += judge_prompts(subject, listed, row, self._row, self._reader)
        images = values.get("class_images", ())
        return _resolved(row, None if is_refused else subject, listed, images), faults

    def _places(self, entry: SubjectEntry, row: ManifestRow) -> dict[str, WrittenAt]:
        """Where the lists of modules in a subject's recipe were written."""
        above = ManifestRow({}, "the command line", "")
        layers: tuple[tuple[Mapping[str, Any], ManifestRow, tuple[str, ...]], ...] = (
            (self._above, above, ()),
            (entry.recipe or {}, row, ()),
            (self._head.defaults.recipe or {}, self._row, ("defaults",)),
        )
        places = {}
        for field in MODULE_FIELDS:
            written = ((at, prefix) for fields, at, prefix in layers if field in fields)
            at, prefix = next(written, (row, ()))
            places[field] = (at, (*prefix, "recipe", field))
        return places

    def _values(self, entry: SubjectEntry, row: ManifestRow, faults: list[Fault]) -> dict[str, Any]:
        """The plain fields: the subject's own, or else the defaults'; absent ones are left out."""
        defaults = self._head.defaults
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
            remedy = row.hints.get(("class_noun",), "say what it is, such as `cat`")
            faults.append(row.fault(("class_noun",), message, remedy))
        if entry.class_images is not None:
            values["class_images"] = list_uris(
                entry.class_images, row, ("class_images",), faults, self._beside
            )
            if captions := class_captions(entry.class_images, row, self._beside):
                values["class_prompt"] = _class_prompt(captions, values, row, faults)
        elif noun in self._class_images:
            values["class_images"] = self._class_images[noun]
        return values


def unexpected(error: Exception, what: str) -> tuple[str, str]:
    """Message and remedy of an error that nothing else has described."""
    return (
        f"{what} cannot be read: {type(error).__name__}",
        "simplify it; if nothing is wrong with it, report this as a bug",
    )


def _resolved(
    row: ManifestRow,
    subject: Subject | None,
    listed: list[ListedPhoto],
    class_images: tuple[str, ...],
) -> ResolvedSubject:
    return ResolvedSubject(
        subject=subject,
        id=str(row.value.get("id", "")),
        class_noun=subject.class_noun if subject is not None else "",
        uris=tuple(one.photo.uri for one in listed),
        class_images=class_images,
        file=row.file,
        line=row.line_of(("photos",)),
        field=row.field(("photos",)),
        base=row.base,
        num_captions=sum(one.photo.caption is not None for one in listed),
    )


def _class_prompt(
    captions: list[Caption], values: Mapping[str, Any], row: ManifestRow, faults: list[Fault]
) -> str:
    """The single prompt of class images that have their own captions."""
    first = captions[0]
    prompt = str(values.get("class_prompt") or values.get("class_noun") or first.text)
    prompt = prompt.replace(CLASS_NOUN_FIELD, str(values.get("class_noun", "")))
    if len(captions) == 1:
        if not names_identifier(first.text, str(values.get("identifier", DEFAULT_IDENTIFIER))):
            return first.text
        message = f"the caption of its class images names the subject: `{first.text[:80]}`"
        remedy = "write what the class images show, without the subject's identifier"
        subject = str(row.value.get("id", ""))
        faults.append(Fault(first.file, message, remedy, first.line, "caption", subject))
        return prompt
    message = f"its class images have {len(captions)} captions; all are trained as `{prompt}`"
    remedy = "nothing to do, unless you rely on them: a prior set has one prompt"
    faults.append(row.fault(("class_images",), message, remedy, severity="warning"))
    return prompt


def _kept(value: Mapping[str, Any]) -> dict[str, Any]:
    """The usable fields of a row without a valid id."""
    kept = {}
    for field in SubjectEntry.model_fields.keys() & value.keys() - {"id"}:
        try:
            SubjectEntry.model_validate({"id": "any", field: value[field]})
        except ValidationError:
            continue
        kept[field] = value[field]
    return kept


def _name_faults(row: ManifestRow, reader: Reader | None) -> Iterator[Fault]:
    name = row.value.get("id")
    if name in names_of_base("" if reader is None else reader.base):
        message = f"an endpoint takes `{name}` for the base model itself, not for this subject"
        yield row.fault(("id",), message, f"choose another name, such as `{name}-1`")


def _count_faults(subject: Subject, row: ManifestRow) -> list[Fault]:
    count, recipe = len(subject.photos), subject.recipe
    if count < FEW_PHOTOS:
        message = f"only {count} photo{'s' if count > 1 else ''}"
        remedy = "3 to 20 from several sides and places teach the subject, not its background"
    elif count > recipe.steps * recipe.instance_rows:
        message = f"{count} photos, but {recipe.steps} steps show {recipe.instance_rows} each"
        rows_field = row.terms.get(("recipe", "instance_rows"), "recipe.instance_rows")
        steps_field = "recipe.steps" if rows_field == "recipe.instance_rows" else "--set steps=…"
        remedy = f"raise `{steps_field}` or `{rows_field}`; some would never be seen"
    else:
        return []
    return [row.fault(("photos",), message, remedy, severity="warning")]
