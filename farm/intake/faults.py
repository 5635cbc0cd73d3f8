"""Faults from pydantic's validation errors: line, field, and a remedy.

Owns the wording of every fault of a field. Ranges and choices in remedies come from the models.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping
from copy import deepcopy
from difflib import get_close_matches
from functools import cache
from itertools import islice
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from farm.errors import Fault
from farm.intake.rows import ManifestRow, Path
from farm.keys import bytes_digest
from farm.recipe import Recipe

__all__ = [
    "LIKE_AN_OPTION",
    "LIKE_A_FIELD",
    "closest",
    "expected",
    "faults_of",
    "meaning",
    "nearest",
    "similar_name",
    "slug",
    "unused",
    "validated",
]

Model = TypeVar("Model", bound=BaseModel)


SIMILAR = 0.6
"""Likeness from which another word is suggested for a wrong one."""
LIKE_A_FIELD = 0.7
"""From which an unknown column of a table is a misspelled field: other columns are common there."""
LIKE_AN_OPTION = 0.8
"""The same for an option of another trainer, of which hundreds have similar names."""
MAX_COMPARED = 1_000
"""Names compared with a wrong one, to suggest another."""
MAX_FIELD_FAULTS = 100
"""Wrong values of one subject that are reported one by one."""
MAX_COMPARED_CHARACTERS = 255
"""Of such a name: the time for a comparison grows with the square of its length."""
MAX_SLUGGED_CHARACTERS = 4_096
"""Of a text that an id is made of: longer than any name."""
MAX_DETAILS = 5_000
"""Wrong values of one subject beyond which only their number is reported."""
_BRANCH = re.compile(r"[\[(]|^(?:dict|list|str|literal)$")


def faults_of(
    error: ValidationError, row: ManifestRow, model: type[BaseModel], prefix: Path = ()
) -> list[Fault]:
    """One fault for each pydantic error.

    Args:
        row: where the values were written.
        model: the validated model; remedies are based on its fields.
        prefix: path from the row to the validated value.
    """
    if (count := error.error_count()) > MAX_DETAILS:  # each would take a kilobyte
        message = f"{count:,} of its values are wrong, such as unknown keys"
        return [row.fault(prefix, message, "write the fields of a manifest, and only those")]
    found: dict[Path, Fault] = {}
    details = error.errors(include_url=False)
    # pydantic adds the branch of a union to the place; a field's path ends before it
    places = [tuple(part for part in detail["loc"] if not _is_branch(part)) for detail in details]
    inner = {path[:-1] for path in places if path}
    for detail, path in list(zip(details, places, strict=True))[:MAX_FIELD_FAULTS]:
        if detail["type"] == "literal_error" and path in inner:
            continue  # the union's other branch was meant, and says what is wrong in it
        message, remedy = _words(detail, path, model)
        if detail["type"] == "extra_forbidden":
            remedy = row.hints.get(prefix + path, remedy)
        if path == ("id",) and "photos" not in row.value and isinstance(detail.get("input"), str):
            remedy += f"; where its folder keeps its name, add `photos`: {_shown(detail['input'])}"
        found.setdefault(prefix + path, row.fault(prefix + path, message, remedy))
    faults = list(found.values())
    if len(details) > MAX_FIELD_FAULTS:
        message = f"{len(details) - MAX_FIELD_FAULTS} more values are wrong"
        faults.append(row.fault(prefix, message, "correct the others first"))
    return faults


def validated(
    model: type[Model], value: Mapping[str, Any], row: ManifestRow, prefix: Path = ()
) -> tuple[Model | None, list[Fault]]:
    """Validate a mapping field by field: refused fields become faults, the others are kept.

    Returns:
        The model without the refused fields, None where required ones are missing; and the faults.
    """
    try:
        return model.model_validate(value), []
    except ValidationError as error:
        faults = faults_of(error, row, model, prefix)
        if error.error_count() > MAX_DETAILS:
            return None, faults
        rest = deepcopy(dict(value))
        for detail in error.errors(include_url=False):
            _drop(rest, detail["loc"])
    try:
        return model.model_validate(rest), faults
    except ValidationError:
        return None, faults


def _drop(value: Any, path: Path) -> None:
    """Remove the value at a path; an item of a list removes the whole list."""
    for part in path[:-1]:
        inner = value.get(part) if isinstance(value, dict) else None
        if not isinstance(inner, dict):
            path = (part,)
            break
        value = inner
    if isinstance(value, dict) and path:
        value.pop(path[-1], None)


def _is_branch(part: str | int) -> bool:
    return (
        isinstance(part, str) and re.search(r"[\[\(]|^(?:dict|list|str|literal)$", part) is not None
    )


def _words(detail: Any, path: Path, model: type[BaseModel]) -> tuple[str, str]:
    """Message and remedy of one refusal."""
    kind, value = detail["type"], detail.get("input")
    field = str(path[-1]) if path else ""
    if kind == "extra_forbidden":  # whatever it holds, it is no branch of a union
        field = str(detail["loc"][-1])
    if kind == "missing":
        return f"`{field}` is missing", f"add `{field}`: {expected(model, path)}"
    if kind == "extra_forbidden":
        known = _fields(model, path[:-1])
        if "recipe" in known and field in Recipe.model_fields:
            return f"`{field}` is a field of `recipe`", f"name it `recipe.{field}`"
        outer, dot, inner = field.partition(".")
        if dot and outer in known:
            return f"unknown key `{field}`", f"nest it: `{outer}: {{{inner}: …}}`"
        return f"unknown key `{field}`", nearest(field, known)
    if kind == "value_error":
        message, _, remedy = str(detail["ctx"]["error"]).partition("; ")
        return message, remedy or "change one of them"
    if kind == "string_pattern_mismatch" and "A-Za-z0-9" in str(detail["ctx"]["pattern"]):
        remedy = f"use letters, digits, - _ and single dots, for instance `{slug(str(value))}`"
        return f"{_shown(value)} cannot be part of a path", remedy
    wanted = expected(model, path)
    if kind == "literal_error" and isinstance(value, str):
        choices = [word.strip("`") for word in re.findall(r"`[^`]+`", wanted)]
        return f"{_shown(value)} is none of the choices", nearest(value, choices)
    if kind.startswith(("greater_than", "less_than")):
        return f"{_shown(value)} is out of range", f"give {wanted}"
    return _wrong_kind(kind, value, wanted)


def _wrong_kind(kind: str, value: object, wanted: str) -> tuple[str, str]:
    """Message and remedy of a value that is something else than wanted."""
    if kind == "string_too_long" and isinstance(value, str):
        has = f"it has {len(value.strip()):,} characters"
        return f"{_shown(value)} is not {wanted}: {has}", f"give {wanted}"
    has_lines = isinstance(value, str) and "\n" in value.strip()
    if kind == "string_pattern_mismatch" and has_lines:
        return f"{_shown(value)} is not {wanted}: it has several lines", "write it on one line"
    return f"{_shown(value)} is not {wanted.split(' from ')[0]}", f"give {wanted}"


def _shown(value: object) -> str:
    if isinstance(value, str):
        value = value.strip("\r\n").replace("\n", " ")
        return f"`{value[:60]}…`" if len(value) > 60 else f"`{value}`"
    if isinstance(value, dict | list):
        return "a mapping" if isinstance(value, dict) else "a list"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value)


_SYNONYMS = {
    **dict.fromkeys(
        ("images", "image", "image_dir", "folder", "path", "img", "pictures"), "photos"
    ),
    **dict.fromkeys(("class", "class_name", "classname", "noun", "category"), "class_noun"),
    **dict.fromkeys(("type", "kind", "species", "label", "what", "subject_class"), "class_noun"),
    **dict.fromkeys(("subject", "subject_id", "subject_name", "name", "key", "title"), "id"),
    **dict.fromkeys(("token", "trigger", "trigger_word", "keyword"), "identifier"),
    **dict.fromkeys(("prompt", "caption"), "instance_prompt"),
    **dict.fromkeys(("learning_rates", "lr"), "learning_rate"),
    **dict.fromkeys(("reg_images", "regularization_images"), "class_images"),
    **dict.fromkeys(("max_train_steps", "train_steps"), "steps"),
}
"""Words of other tools and people for fields of a manifest."""


def meaning(word: str) -> str | None:
    """The field that a word names in other tools, or in everyday language."""
    return _SYNONYMS.get(re.sub(r"[\s\-]+", "_", word.strip().casefold()))


def nearest(word: str, known: Iterable[str]) -> str:
    """A remedy that names the nearest known word, or all of them."""
    words = list(known)
    if (meant := meaning(word)) in words:
        return f"did you mean `{meant}`?"
    by_fold = {one.casefold().replace("-", "_"): one for one in words}
    if close := closest(word.casefold().replace("-", "_"), by_fold):
        return f"did you mean `{by_fold[close]}`?"
    return f"known here: {', '.join(words)}" if words else "remove it"


_LEADING_ZEROS = re.compile(r"(?<![0-9])0+(?=[0-9])")


def similar_name(name: str, names: Iterable[str]) -> str | None:
    """A file name similar to a wrong one, among the first of the names that are there; first one
    whose numbers are the same without leading zeros."""
    if len(name) > MAX_COMPARED_CHARACTERS:
        return None
    some = [one for one in islice(names, MAX_COMPARED) if len(one) <= MAX_COMPARED_CHARACTERS]
    by_fold = {one.casefold(): one for one in reversed(some)}
    by_number = {_LEADING_ZEROS.sub("", fold): one for fold, one in by_fold.items()}
    if (same := by_number.get(_LEADING_ZEROS.sub("", name.casefold()))) is not None:
        return same
    close = closest(name.casefold(), by_fold)
    return by_fold[close] if close else None


def closest(word: str, words: Iterable[str], likeness: float = SIMILAR) -> str | None:
    """The word that is most like another one, if any is alike enough."""
    return next(iter(get_close_matches(word, words, 1, likeness)), None)


def slug(text: str) -> str:
    """The nearest text that is a valid id.

    Accents are dropped. Where letters of other scripts are lost, a digest of the text keeps the ids
    of different names apart.
    """
    text = text[:MAX_SLUGGED_CHARACTERS]
    latin = unicodedata.normalize("NFKD", text.replace("ß", "ss"))
    latin = "".join(one for one in latin if not unicodedata.combining(one))
    plain = re.sub(r"[^A-Za-z0-9_.-]+", "-", latin)
    plain = re.sub(r"\.{2,}", ".", plain).strip("-._")
    if not plain or any(one.isalpha() and not one.isascii() for one in latin):
        whole = unicodedata.normalize("NFC", text).encode("utf-8", "surrogatepass")
        return f"{plain[:100].rstrip('-._') or 'subject'}-{bytes_digest(whole)[:6]}"
    return plain[:128].rstrip(".")


def unused(name: str, taken: set[str]) -> str:
    """An id like the given one that is not taken yet; it is added to those taken."""
    found, count = name, 2
    while found in taken:
        found, count = f"{name}-{count}", count + 1
    taken.add(found)
    return found


@cache
def _schema(model: type[BaseModel]) -> dict[str, Any]:
    return model.model_json_schema()


def _at(model: type[BaseModel], path: Path) -> dict[str, Any]:
    """The JSON schema at a path inside a model; empty if there is none."""
    whole = _schema(model)
    place: dict[str, Any] = whole
    for part in path:
        place = _opened(place, whole)
        if isinstance(part, int):
            place = place.get("items", {})
        else:
            place = place.get("properties", {}).get(part) or place.get("additionalProperties") or {}
        if not isinstance(place, dict):
            return {}
    return _opened(place, whole)


def _opened(place: dict[str, Any], whole: dict[str, Any]) -> dict[str, Any]:
    """A schema with its reference resolved, and for a union the alternative that is not null."""
    while "$ref" in place or "anyOf" in place:
        if "$ref" in place:
            place = whole["$defs"][place["$ref"].rsplit("/", 1)[-1]]
        else:
            place = next(one for one in place["anyOf"] if one.get("type") != "null")
    return place


def _fields(model: type[BaseModel], path: Path) -> list[str]:
    return list(_at(model, path).get("properties", {}))


_KINDS = {
    "integer": "a whole number",
    "number": "a number",
    "string": "text",
    "boolean": "true or false",
    "array": "a list",
    "object": "a mapping",
}


def expected(model: type[BaseModel], path: Path) -> str:
    """A description of a field's values: ``a whole number from 1 to 256``."""
    schema = _at(model, path)
    choices = schema.get("enum") or ([schema["const"]] if "const" in schema else [])
    if choices:
        named = ", ".join(f"`{choice}`" for choice in choices)
        return f"one of {named}" if len(choices) > 1 else named
    words = _KINDS.get(schema.get("type", ""), "another value")
    if words == "text":
        return _text_words(schema)
    return words + _range_words(schema)


def _text_words(schema: dict[str, Any]) -> str:
    if "A-Za-z0-9" in schema.get("pattern", ""):
        return "a name of letters, digits, - _ and single dots"
    if "{1,64}" in schema.get("pattern", ""):
        return "one word of at most 64 characters, without brackets"
    if longest := schema.get("maxLength"):
        return f"text of 1 to {_number(longest)} characters on one line"
    return "text"


def _range_words(schema: dict[str, Any]) -> str:
    low, high = schema.get("minimum"), schema.get("maximum")
    above, below = schema.get("exclusiveMinimum"), schema.get("exclusiveMaximum")
    if low is not None and high is not None:
        return f" from {_number(low)} to {_number(high)}"
    parts = [
        f"at least {_number(low)}" if low is not None else "",
        f"above {_number(above)}" if above is not None else "",
        f"at most {_number(high)}" if high is not None else "",
        f"below {_number(below)}" if below is not None else "",
    ]
    parts = [part for part in parts if part]
    return " " + " and ".join(parts) if parts else ""


def _number(value: float) -> str:
    if value == 2**63:
        return "2^63"
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:g}"
