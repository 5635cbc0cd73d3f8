"""The schema of Kubernetes' pod templates in ``tests/data``: making it, and checking against it.

``python -m support.deploy.pod_schema FOLDER`` makes it from the package ``kubernetes-validate``
(FOLDER is its ``kubernetes-json-schema/v1.34.0-local-strict``), which publishes Kubernetes' OpenAPI
definitions as JSON schemas that refuse unknown fields. Descriptions are left out.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema

POD_SCHEMA = Path(__file__).parents[2] / "data" / "kubernetes-pod-template.json"
TEMPLATE = "io.k8s.api.core.v1.PodTemplateSpec"
ORIGIN = (
    "Kubernetes 1.34, api/openapi-spec, as published by kubernetes-validate 1.37.0; Apache-2.0. "
    "The definitions that PodTemplateSpec uses, without their descriptions."
)


def check_pod(template: object, place: str) -> None:
    """Check a pod template.

    Raises:
        ValueError: if a field is unknown or has a wrong type, with its place.
    """
    error = jsonschema.exceptions.best_match(_validator().iter_errors(template))
    if error is not None:
        raise ValueError(f"{place}{error.json_path.removeprefix('$')}: {error.message}")


@cache
def pod_schema() -> dict[str, Any]:
    """The schema of a pod template, whose ``$defs`` are those of its parts."""
    found: dict[str, Any] = json.loads(POD_SCHEMA.read_text(encoding="utf-8"))
    return found


@cache
def _validator() -> Any:
    return jsonschema.Draft202012Validator(pod_schema())


def reduced(definitions: dict[str, Any]) -> dict[str, Any]:
    """The schema of a pod template with the definitions that it uses."""
    used: dict[str, Any] = {}
    waiting = [TEMPLATE]
    while waiting:
        name = waiting.pop()
        if name not in used:
            used[name] = _undescribed(definitions[name])
            waiting += _references(used[name])
    return {"$comment": ORIGIN, "$ref": f"#/$defs/{TEMPLATE}", "$defs": dict(sorted(used.items()))}


def _undescribed(part: Any) -> Any:
    if isinstance(part, list):
        return [_undescribed(item) for item in part]
    if not isinstance(part, dict):
        return part
    return {
        name: _undescribed(value)
        for name, value in part.items()
        if not (name == "description" and isinstance(value, str))
    }


def _references(part: Any) -> Iterator[str]:
    values = part.values() if isinstance(part, dict) else part if isinstance(part, list) else ()
    if isinstance(part, dict) and isinstance(part.get("$ref"), str):
        yield part["$ref"].rsplit("/", 1)[-1]
    for value in values:
        yield from _references(value)


if __name__ == "__main__":
    source = json.loads((Path(sys.argv[1]) / "_definitions.json").read_text(encoding="utf-8"))
    text = json.dumps(reduced(source["$defs"]), indent=None, separators=(",", ":"))
    POD_SCHEMA.write_text(text.replace('},"io.k8s', '},\n"io.k8s') + "\n", encoding="utf-8")
