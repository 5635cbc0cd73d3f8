"""The pages of the HTTP API and of the endpoint's settings, generated from the code."""

from __future__ import annotations

import inspect
from typing import Any

from pydantic import BaseModel


def http_page() -> str:
    """Every route, with its parameters, body and responses."""
    document = _document()
    parts = [
        "# HTTP API",
        "Generated from the endpoint's OpenAPI document, which a running endpoint serves at "
        "`/openapi.json`. [Serving](../serving.md) explains how the fields are used.",
    ]
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            parts += _operation(method.upper(), path, operation)
    parts.append("## Schemas")
    for name, schema in sorted(document["components"]["schemas"].items()):
        parts += _schema(name, schema)
    return "\n\n".join(part for part in parts if part) + "\n"


def _document() -> dict[str, Any]:
    from farm.serving.http.app import create_app
    from farm.serving.http.services import Services

    nothing: Any = None  # routes are only declared: nothing is asked of an engine or a store
    services = Services(nothing, nothing, nothing, nothing, nothing, nothing)
    document: dict[str, Any] = create_app(services).openapi()
    return document


def _operation(method: str, path: str, operation: dict[str, Any]) -> list[str]:
    parts = [
        f"## `{method} {path}`",
        _text(operation.get("description") or operation.get("summary", "")),
    ]
    rows = [
        f"| `{one['name']}` | {one['in']} | {_kind(one['schema'])} "
        f"| {_text(one.get('description', ''))} |"
        for one in operation.get("parameters", ())
    ]
    if rows:
        parts.append(
            "\n".join(["| parameter | in | takes | description |", "|---|---|---|---|", *rows])
        )
    for media, content in operation.get("requestBody", {}).get("content", {}).items():
        parts.append(f"Request body: `{media}`, {_kind(content['schema'])}.")
    responses = [
        f"| {status} | {_text(one['description'])} | {', '.join(_content(one)) or '–'} |"
        for status, one in operation["responses"].items()
    ]
    return [*parts, "\n".join(["| status | meaning | body |", "|---|---|---|", *responses])]


def _content(response: dict[str, Any]) -> list[str]:
    return [
        _kind(content["schema"]) if content.get("schema") else f"`{media}`"
        for media, content in response.get("content", {}).items()
    ]


def _schema(name: str, schema: dict[str, Any]) -> list[str]:
    required = schema.get("required", ())
    rows = [
        f"| `{field}` | {_kind(one)} | {_default(one, field in required)} "
        f"| {_text(one.get('description', ''))} |"
        for field, one in schema.get("properties", {}).items()
    ]
    table = (
        ["| field | takes | default | description |", "|---|---|---|---|", *rows] if rows else []
    )
    return [f"### {name}", _text(schema.get("description", "")), "\n".join(table)]


def _kind(schema: dict[str, Any]) -> str:
    if "$ref" in schema:
        name = schema["$ref"].rsplit("/", 1)[-1]
        return f"[{name}](#{name.lower()})"
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(_kind(one) for one in schema["anyOf"]))
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    if "const" in schema:
        return f"`{schema['const']}`"
    if schema.get("type") == "array":
        return f"list of {_kind(schema.get('items', {}))}"
    bounds = [
        f"{sign} {schema[key]}"
        for key, sign in (
            ("minimum", "≥"),
            ("exclusiveMinimum", "&gt;"),
            ("maximum", "≤"),
            ("exclusiveMaximum", "&lt;"),
        )
        if key in schema
    ]
    return " ".join([schema.get("type", "any"), *([f"({', '.join(bounds)})"] if bounds else [])])


def _default(schema: dict[str, Any], required: bool) -> str:
    if required:
        return "required"
    return f"`{schema['default']}`" if schema.get("default") not in (None, "", [], {}) else ""


def _text(text: str) -> str:
    return (
        " ".join(inspect.cleandoc(text).split())
        .replace("``", "`")
        .replace("|", "\\|")
        .replace("<", "&lt;")
    )


def settings_page() -> str:
    """Every field of an endpoint's configuration."""
    from farm.serving.settings import EndpointConfig

    parts = [
        "# Endpoint settings",
        "Fields of the file that `farm serve --config` reads, and of `args` in `jobs/serve.yaml`; "
        "generated from the models that validate them.",
    ]
    seen: list[type[BaseModel]] = [EndpointConfig]
    paths = {EndpointConfig: ""}
    for model in seen:
        parts.append(f"## `{paths[model]}`" if paths[model] else "## Top level")
        parts.append(_settings_table(model))
        for name, info in model.model_fields.items():
            kind = info.annotation
            if isinstance(kind, type) and issubclass(kind, BaseModel) and kind not in paths:
                paths[kind] = f"{paths[model]}.{name}".lstrip(".")
                seen.append(kind)
    return "\n\n".join(parts) + "\n"


def _settings_table(model: type[BaseModel]) -> str:
    described = _descriptions(model)
    properties = model.model_json_schema()["properties"]
    rows = ["| field | takes | default | description |", "|---|---|---|---|"]
    for name, info in model.model_fields.items():
        kind = _kind(properties[name])
        default = (
            "required"
            if info.is_required()
            else f"`{info.get_default(call_default_factory=True)!r}`"
        )
        if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
            kind, default = "a mapping, below", ""
        kind = kind.split("](#")[0].lstrip("[")
        rows.append(f"| `{name}` | {kind} | {_text(default)} | {_text(described.get(name, ''))} |")
    return "\n".join(rows)


def _descriptions(model: type[BaseModel]) -> dict[str, str]:
    """The docstrings under a model's fields, and of the models that it derives from."""
    import ast

    found: dict[str, str] = {}
    for kind in reversed(
        [one for one in model.__mro__ if one is not BaseModel and issubclass(one, BaseModel)]
    ):
        body = ast.parse(inspect.cleandoc("\n" + inspect.getsource(kind))).body[0]
        assert isinstance(body, ast.ClassDef)
        for field, text in zip(body.body, body.body[1:], strict=False):
            if (
                isinstance(field, ast.AnnAssign)
                and isinstance(text, ast.Expr)
                and isinstance(field.target, ast.Name)
            ):
                found[field.target.id] = str(ast.literal_eval(text.value))
    return found
