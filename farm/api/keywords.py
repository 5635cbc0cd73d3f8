"""Option models of the command line as keyword arguments of functions.

Owns the translation and its errors. The options are declared once, in ``farm.cli.options``; type
checkers, ``help()`` and notebooks see them as ordinary keyword arguments.
"""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields
from typing import Any, Concatenate, ParamSpec, TypeVar, get_type_hints

from farm.errors import UserError
from farm.intake.faults import closest

__all__ = ["Location", "check_location", "with_keywords"]

Location = str | os.PathLike[str]
"""A path or a URL."""

_WANTED = {
    "bool_type": "true or false",
    "dict_type": "a mapping",
    "float_type": "a number",
    "int_type": "a whole number",
    "string_type": "text",
}
"""What pydantic misses in a value, by its kinds of errors."""
Keywords = ParamSpec("Keywords")
Options = TypeVar("Options")
Result = TypeVar("Result")


def with_keywords(
    model: Callable[Keywords, Options],
) -> Callable[
    [Callable[[Location, Options], Result]],
    Callable[Concatenate[Location, Keywords], Result],
]:
    """Let a function of a manifest and an option model take the model's fields as keywords.

    The signature and the docstring of the function gain the fields with their help texts.
    """

    def decorate(
        function: Callable[[Location, Options], Result],
    ) -> Callable[Concatenate[Location, Keywords], Result]:
        @functools.wraps(function)
        def call(
            manifest: Location, /, *args: Keywords.args, **keywords: Keywords.kwargs
        ) -> Result:
            check_location("the manifest", manifest)
            _check_keywords(function.__name__, model, keywords)
            return function(manifest, model(*args, **keywords))

        _describe(call, function, model)
        return call

    return decorate


def check_location(name: str, value: object) -> None:
    """Refuse a value that is no path or URL.

    Raises:
        UserError: if it is of another type.
    """
    if not isinstance(value, str | os.PathLike) or isinstance(os.fspath(value), bytes):
        raise UserError(f"{name} is {value!r}", "give a path or a URL")


def _check_keywords(function: str, model: Any, keywords: Mapping[str, Any]) -> None:
    """Refuse unknown names and values of other types.

    Raises:
        UserError: for the first of them.
    """
    from pydantic import TypeAdapter, ValidationError

    hints = get_type_hints(model)
    for name, value in keywords.items():
        if name not in hints:
            near = closest(name, hints)
            remedy = f"did you mean {near}?" if near else f"see help(farm.{function})"
            raise UserError(f"farm.{function} has no option {name!r}", remedy)
        try:
            TypeAdapter(hints[name]).validate_python(value, strict=True)
        except ValidationError as error:
            (first, *_) = error.errors()
            wanted = _WANTED.get(first["type"])
            what = f"should be {wanted}" if wanted else first["msg"].removeprefix("Input ")
            raise UserError(
                f"{name} is {value!r}: it {what}", f"see help(farm.{function})"
            ) from None


def _describe(call: Any, function: Callable[..., Any], model: Any) -> None:
    """Show the fields of a model in the signature and the docstring of a function."""
    (manifest, _) = inspect.signature(function, eval_str=True).parameters.values()
    plain, annotated = get_type_hints(model), get_type_hints(model, include_extras=True)
    parameters = [manifest.replace(kind=inspect.Parameter.POSITIONAL_ONLY)]
    lines = []
    for one in fields(model):
        default = one.default if one.default is not MISSING else {}
        kind = inspect.Parameter.KEYWORD_ONLY
        parameters.append(
            inspect.Parameter(one.name, kind, default=default, annotation=plain[one.name])
        )
        notes = annotated[one.name].__metadata__
        texts = [getattr(note, "python_help", "") or getattr(note, "help", "") for note in notes]
        help_text = next(text for text in texts if text)
        lines.append(f"    {one.name}: {help_text}")
    returns = get_type_hints(function)["return"]
    call.__signature__ = inspect.Signature(parameters, return_annotation=returns)
    call.__doc__ = "\n".join([inspect.getdoc(function) or "", "", "Options:", *lines])
