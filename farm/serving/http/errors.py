"""Errors on the wire: OpenAI's shape, a request id, and whether a retry helps.

Owns the status of each error and the wording of invalid fields, and keeps file paths, values that
a caller sent and other libraries' texts out of every response. An unexpected error becomes a 500
with only its request id; the details are logged.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from farm.errors import AdapterFileError, FarmError, ServingError, StoreError, TooBusy, UserError
from farm.intake.faults import similar_name
from farm.serving.http.schemas import ExtraAdapter, GenerateRequest

__all__ = [
    "describe",
    "error_answer",
    "error_body",
    "error_response",
    "http_response",
    "install_error_handlers",
    "scrub",
]

logger = logging.getLogger(__name__)

MAX_MESSAGE_CHARACTERS = 600
MAX_SCRUBBED_CHARACTERS = 4 * MAX_MESSAGE_CHARACTERS
TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "invalid_request_error",
    405: "invalid_request_error",
    408: "invalid_request_error",
    409: "invalid_request_error",
    413: "invalid_request_error",
    414: "invalid_request_error",
    415: "invalid_request_error",
    422: "invalid_request_error",
    429: "rate_limit_error",
    431: "invalid_request_error",
    503: "service_unavailable_error",
    504: "timeout_error",
}
HTTP_CODES = {
    403: "forbidden",
    404: "not_found",
    405: "method_not_allowed",
    408: "timeout",
    413: "request_too_large",
    415: "unsupported_media_type",
}
_PLACES = re.compile(
    r"""(?:[a-z][a-z0-9+.]{0,19}://|(?<![\w.])(?:[A-Za-z]:)?[\\/](?!v1/))[^\s'",;()\[\]{}<>]+""",
    re.IGNORECASE,
)
"""URLs and absolute paths, which reveal where files are; the endpoint's own routes may appear."""

ROUTES = "images come from POST /v1/images/generations, names of models from GET /v1/models"
"""The remedy for a wrong path."""


def scrub(text: str) -> str:
    """A message without locations and control characters, truncated to a maximum length."""
    kept = _PLACES.sub("…", text[:MAX_SCRUBBED_CHARACTERS])
    clean = "".join(c if c.isprintable() or c == "\n" else "?" for c in kept)
    if len(clean) > MAX_MESSAGE_CHARACTERS:
        clean = clean[: MAX_MESSAGE_CHARACTERS - 1] + "…"
    return clean


def error_body(
    status: int, message: str, code: str | None, param: str | None, remedy: str = ""
) -> dict[str, Any]:
    """An error's JSON in OpenAI's shape; the message ends with the remedy."""
    return {
        "error": {
            "message": scrub(f"{message}: {remedy}" if remedy else message),
            "type": TYPES.get(status, "server_error"),
            "param": param,
            "code": code,
        }
    }


def error_answer(error: BaseException) -> tuple[int, dict[str, Any], dict[str, str]]:
    """Status, JSON and headers for any error."""
    cause = getattr(error, "cause", None)
    if isinstance(cause, FarmError):  # as Ray wraps what a replica raised
        error = cause
    if isinstance(error, ServingError):
        body = error_body(error.status, error.message, error.code, error.param, error.remedy)
        return error.status, body, _retry_headers(error)
    if isinstance(error, AdapterFileError):
        body = error_body(422, error.message, "adapter_invalid", "model", error.remedy)
        return 422, body, {"x-should-retry": "false"}
    if isinstance(error, UserError):
        return 400, error_body(400, error.message, "invalid_request", None, error.remedy), {}
    if isinstance(error, StoreError):
        body = error_body(
            503, "the store does not answer", "store_unavailable", None, "ask again in a moment"
        )
        return 503, body, {"x-should-retry": "true", "retry-after": "2"}
    if isinstance(error, TimeoutError):
        body = error_body(504, "the image was not finished in time", "deadline_exceeded", None)
        return 504, body, {"x-should-retry": "false"}
    logger.error("unexpected error", exc_info=error)
    body = error_body(
        500, "internal error; quote the request id in reports", "internal_error", None
    )
    return 500, body, {"x-should-retry": "false"}


def _retry_headers(error: ServingError) -> dict[str, str]:
    headers: dict[str, str] = {}
    if isinstance(error, TooBusy):
        wait_s = min(max(error.retry_after_s, 0.05), 3600.0)
        headers["retry-after"] = str(math.ceil(wait_s))
        headers["retry-after-ms"] = str(math.ceil(wait_s * 1000))
        headers["x-should-retry"] = "true"
    elif error.status == 503:
        headers = {"retry-after": "1", "x-should-retry": "true"}
    elif error.status == 409:  # OpenAI's clients would retry it otherwise
        headers["x-should-retry"] = "false"
    elif error.status == 401:
        headers["www-authenticate"] = "Bearer"
    return headers


def error_response(error: BaseException) -> JSONResponse:
    """The response to any error."""
    status, body, headers = error_answer(error)
    return JSONResponse(body, status, headers)


def http_response(error: HTTPException) -> JSONResponse:
    """The response to an error raised by the web framework or the guard."""
    code = HTTP_CODES.get(error.status_code, "invalid_request")
    body = error_body(error.status_code, str(error.detail), code, None)
    return JSONResponse(body, error.status_code, error.headers)


def install_error_handlers(app: FastAPI, limits: Mapping[str, float]) -> None:
    """Convert every error raised by a route to a response in OpenAI's shape.

    Args:
        limits: the endpoint's own limits by field, which may be lower than the schema's.
    """

    async def farm_error(_: Request, error: Exception) -> JSONResponse:
        return error_response(error)

    async def invalid(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        message, param = describe([_with_limit(one, limits) for one in error.errors()])
        return JSONResponse(error_body(400, message, "invalid_request", param), 400)

    async def http_error(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        if error.status_code == 404:
            error.detail = f"there is nothing at this path: {ROUTES}"
        elif error.status_code == 405:
            allowed = (error.headers or {}).get("Allow", "GET")
            error.detail = f"{request.method} is not allowed here: use {allowed}"
        elif error.status_code == 400 and "parsing the body" in str(error.detail):
            error.detail = "the body is not valid JSON in UTF-8"
        return http_response(error)

    app.add_exception_handler(FarmError, farm_error)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, http_error)


# -- the wording of invalid bodies and fields ------------------------------------------------------

MAX_FAULTS = 8
"""Faults in one message."""
_OTHER_WORDS = {
    "num_inference_steps": ("steps", "inference_steps", "num_steps"),
    "guidance_scale": ("cfg", "cfg_scale", "guidance"),
    "scheduler": ("sampler", "sampler_name"),
    "size": ("width", "height", "image_size", "resolution"),
    "n": ("num_images", "num_images_per_prompt", "num_outputs", "batch_size"),
    "adapter_weight": ("scale", "lora_scale", "lora_weight"),
    "adapters": ("lora", "loras"),
    "model": ("name", "adapter", "adapter_name", "lora_name"),
    "weight": ("scale", "strength", "lora_scale", "adapter_weight"),
}
"""Fields by the names that they have in other interfaces."""
_EXPECTED = {
    "missing": "is missing",
    "string_type": "must be text",
    "string_unicode": "must be Unicode text",
    "int_type": "must be an integer",
    "int_from_float": "must be an integer",
    "int_parsing": "must be an integer",
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


def _with_limit(error: Mapping[str, Any], limits: Mapping[str, float]) -> Mapping[str, Any]:
    """An error with the endpoint's limit in place of the schema's, which may be higher."""
    most, context = limits.get(_place(error) or ""), error.get("ctx", {})
    if most is None:
        return error
    own = {name: min(context[name], most) for name in ("le", "max_length") if name in context}
    return {**error, "ctx": {**context, **own}}


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
    name = str(loc[-1])
    meant = (one for one in model.model_fields if name in _OTHER_WORDS.get(one, ()))
    close = next(meant, None) or similar_name(name, model.model_fields)
    return f"unknown field; did you mean `{close}`?" if close else "unknown field"
