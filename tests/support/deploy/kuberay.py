"""KubeRay's manifests, checked as a cluster and KubeRay's operator would check them.

Owns the operator's rules that a schema cannot express. Fields and values are in
``data/kuberay-ray-io-v1.yaml``, pod templates in ``data/kubernetes-pod-template.json``; both refuse
unknown fields. Where the folder in ``KUBERAY_CRDS`` holds KubeRay's own definitions
(``kuberay_crds`` fetches them), files are checked against those too.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import yaml
from packaging.version import Version
from referencing import Registry
from referencing.jsonschema import DRAFT202012

from support.deploy.pod_schema import pod_schema

DATA = Path(__file__).parents[2] / "data" / "kuberay-ray-io-v1.yaml"
POD_URN = "urn:kubernetes"
Document = dict[str, Any]
REDIS = "RAY_REDIS_ADDRESS"
FIRST_RAY_WITH_TOKENS = Version("2.52.0")


def read(path: Path) -> Document:
    """A file of ``deploy/kuberay``, checked.

    Raises:
        ValueError: if a field is unknown or has a wrong value, or the operator would refuse it.
    """
    document: Document = yaml.safe_load(path.read_text(encoding="utf-8"))
    check(document)
    if folder := os.environ.get("KUBERAY_CRDS"):
        check_published(document, Path(folder))
    return document


def check(document: Document) -> None:
    """Check fields and values, then the operator's rules.

    Raises:
        ValueError: naming the field, or the rule.
    """
    validator = jsonschema.Draft202012Validator(
        {"$ref": f"#/$defs/{document['kind']}", "$defs": schema()["$defs"]}, registry=_registry()
    )
    error = jsonschema.exceptions.best_match(validator.iter_errors(document))
    if error is not None:
        raise ValueError(f"{error.json_path.removeprefix('$.')}: {error.message}")
    if found := list(refusals(document)):
        raise ValueError("; ".join(found))


@cache
def schema() -> Document:
    """The description of the API in ``tests/data``."""
    found: Document = yaml.safe_load(DATA.read_text(encoding="utf-8"))
    return found


@cache
def _registry() -> Any:
    pods = DRAFT202012.create_resource(pod_schema())
    return Registry().with_resource(POD_URN, pods)


def cluster_of(document: Document) -> Document:
    """The cluster that a RayJob or a RayService creates."""
    spec = document["spec"]
    found: Document = spec["rayClusterSpec" if document["kind"] == "RayJob" else "rayClusterConfig"]
    return found


def groups_of(document: Document) -> list[Document]:
    """Head and worker groups."""
    cluster = cluster_of(document)
    return [cluster["headGroupSpec"], *cluster.get("workerGroupSpecs", ())]


def refusals(document: Document) -> Iterator[str]:
    """Why KubeRay's operator would refuse a resource that the cluster accepts.

    The rules of ``ray-operator/controllers/ray/utils/validation.go`` for the fields that
    ``deploy/kuberay`` uses.
    """
    spec, cluster = document["spec"], cluster_of(document)
    shuts_down = spec.get("shutdownAfterJobFinishes", False)
    if spec.get("ttlSecondsAfterFinished", 0) > 0 and not shuts_down:
        yield "ttlSecondsAfterFinished needs shutdownAfterJobFinishes"
    if spec.get("submissionMode") == "InteractiveMode" and spec.get("backoffLimit", 0) > 0:
        yield "backoffLimit is not possible in InteractiveMode"
    if cluster.get("authOptions", {}).get("mode") == "token":
        version = cluster.get("rayVersion")
        if version is None or Version(version) < FIRST_RAY_WITH_TOKENS:
            yield f"tokens need rayVersion {FIRST_RAY_WITH_TOKENS} or later, not {version}"
    is_v2 = cluster.get("autoscalerOptions", {}).get("version") == "v2"
    for group in groups_of(document):
        pod, name = group["template"]["spec"], group.get("groupName", "head")
        if is_v2 and pod.get("restartPolicy", "Never") != "Never":
            yield f"{name}: restartPolicy must be Never with the autoscaler v2"
        if "labels" in group.get("rayStartParams", {}):
            yield f"{name}: labels belong into the group, not into rayStartParams"
    head = cluster["headGroupSpec"]["template"]["spec"]["containers"][0]
    has_redis = any(one["name"] == REDIS for one in head.get("env", ()))
    if has_redis and "gcsFaultToleranceOptions" not in cluster:
        yield f"{REDIS} needs gcsFaultToleranceOptions"


def newer_fields(document: Document) -> list[str]:
    """The fields of a resource that the oldest supported KubeRay does not have."""
    return list(_newer(document, schema()["$defs"][document["kind"]], ""))


def _newer(value: Any, part: Document, place: str) -> Iterator[str]:
    if "$ref" in part:
        if part["$ref"].startswith(POD_URN):
            return
        part = {**schema()["$defs"][part["$ref"].rsplit("/", 1)[-1]], **part}
    if "x-since" in part:
        yield f"{place} (KubeRay {part['x-since']})"
    if isinstance(value, list):
        for item in value:
            yield from _newer(item, part["items"], place)
    if isinstance(value, dict):
        for name in value.keys() & part.get("properties", {}).keys():
            yield from _newer(value[name], part["properties"][name], f"{place}.{name}")


# -- published definitions ------------------------------------------------------------------------


def published(kind: str) -> Document:
    """A definition in the form in which KubeRay publishes them, without pod templates' fields."""
    version = {"name": "v1", "schema": {"openAPIV3Schema": _opened({"$ref": f"#/$defs/{kind}"})}}
    return {"kind": "CustomResourceDefinition", "spec": {"versions": [version]}}


def _opened(part: Any) -> Any:
    """A schema without references and without closed objects, as resource definitions are."""
    if isinstance(part, list):
        return [_opened(item) for item in part]
    if not isinstance(part, dict):
        return part
    if "$ref" in part:
        inner = part["$ref"]
        return {} if inner.startswith(POD_URN) else _opened(schema()["$defs"][inner[8:]])
    return {
        name: _opened(value)
        for name, value in part.items()
        if (name, value) != ("additionalProperties", False)
    }


def check_published(document: Document, folder: Path) -> None:
    """Check a file against the published definition of its kind.

    Raises:
        ValueError, jsonschema.ValidationError: if a field is unknown, or has a wrong value.
    """
    definition = yaml.safe_load(
        (folder / f"ray.io_{document['kind'].lower()}s.yaml").read_text(encoding="utf-8")
    )
    version = next(one for one in definition["spec"]["versions"] if one["name"] == "v1")
    form = version["schema"]["openAPIV3Schema"]
    jsonschema.validate(document, form)
    unknown = _unknown(document, form, "")
    if unknown:
        raise ValueError(f"unknown fields: {', '.join(unknown)}")


def _unknown(value: Any, part: Document, place: str) -> list[str]:
    """Fields that the published schema does not have; a cluster would drop them."""
    if isinstance(value, list):
        return [one for item in value for one in _unknown(item, part.get("items", {}), place)]
    fields = part.get("properties")
    if not isinstance(value, dict) or not fields or place == ".metadata":
        return []
    found = [f"{place}.{name}" for name in value if name not in fields]
    for name in value.keys() & fields.keys():
        found += _unknown(value[name], fields[name], f"{place}.{name}")
    return found
