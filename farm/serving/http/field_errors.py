"""The wording of invalid bodies and fields: which field, what is expected, and a suggestion.

Owns the text for every kind of pydantic's and FastAPI's validation errors; the texts of those
libraries never reach a caller, nor do the values that the caller sent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from farm.intake.faults import similar_name
from farm.serving.http.schemas import ExtraAdapter, GenerateRequest

__all__ = ["describe"]

MAX_FAULTS = 8
"""Faults in one message."""
_EXPECTED = {
    "missing": "is missing",
    "string_type": "must be text",
    "string_unicode": "must be Unicode text",
    "int_type": "must be a whole number",
    "int_from_float": "must be a whole number",
    "int_parsing": "must be a whole number",
    "float_type": "must be a number",
    "float_parsing": "must be a number",
    "finite_number": "must be a finite number",
    "bool_type": "must be true or false",
    "bool_parsing": "must be true or false",
    "list_type": "must be a list",
    "dict_type": "must be an object",
    "model_type": "must be an object",
    "model_attributes_type": "must be an object",
    "greater_than_equal": "must be at least {ge}",
    "greater_than": "must be greater than {gt}",
    "less_than_equal": "must be at most {le}",
    "less_than": "must be less than {lt}",
    "string_too_short": "must have at least {min_length} characters",
    "string_too_long": "must have at most {max_length} characters",
    "too_short": "must have at least {min_length} items",
    "too_long": "must have at most {max_length} items",
    "literal_error": "must be {expected}",
    "enum": "must be {expected}",
}
"""By the kind of pydantic's error; the names in braces are of the error's context."""


def describe(errors: Sequence[Mapping[str, Any]]) -> tuple[str, str | None]:
    """All faults on one line, and the field of the first; None if it is the body itself."""
    first = errors[0] if errors else {}
    if first.get("type") == "json_invalid":
        return _not_json(first), None
    faults = [f"{_place(error) or 'the body'}: {_words(error)}" for error in errors[:MAX_FAULTS]]
    return "; ".join(faults), _place(first)


def _not_json(error: Mapping[str, Any]) -> str:
    reason = str(error.get("ctx", {}).get("error", ""))
    position = error.get("loc", ("body", 0))[-1]
    tail = f": {reason[:1].lower()}{reason[1:]}" if reason else ""
    return f"the body is not valid JSON at character {position}{tail}"


def _place(error: Mapping[str, Any]) -> str | None:
    """The field's dotted path; an ellipsis for one that is unfit to be shown."""
    place = ".".join(str(part) for part in error.get("loc", ())[1:])
    if not place:
        return None
    return place if len(place) <= 60 and place.isascii() and place.isprintable() else "…"


def _words(error: Mapping[str, Any]) -> str:
    kind, context = str(error.get("type", "")), error.get("ctx", {})
    if kind == "extra_forbidden":
        return _unknown_field(error["loc"])
    if kind == "value_error":  # raised by the schema's own validators
        return str(context.get("error", "is invalid"))
    if "min_length" in context and context["min_length"] == 1:
        return "must not be empty"
    try:
        return _EXPECTED.get(kind, "is invalid").format_map(_round(context))
    except KeyError:
        return "is invalid"


def _round(context: Mapping[str, Any]) -> dict[str, Any]:
    """The context with limits such as 8.0 written without decimals."""
    return {
        name: int(value) if isinstance(value, float) and value.is_integer() else value
        for name, value in context.items()
    }


def _unknown_field(loc: Sequence[Any]) -> str:
    model = ExtraAdapter if "adapters" in loc[1:-1] else GenerateRequest
    close = similar_name(str(loc[-1]), model.model_fields)
    return f"unknown field; did you mean `{close}`?" if close else "unknown field"
