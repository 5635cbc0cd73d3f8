"""The part of KubeRay's API (ray.io/v1, from KubeRay 1.5.1) that ``deploy/kuberay`` uses.

Owns the names, types and allowed values of those fields, written from KubeRay's API reference and
compared with its published definitions: unknown fields are refused, as ``kubectl`` refuses them.
Pod templates are also checked against Kubernetes' schema, and, where the folder in
``KUBERAY_CRDS`` holds KubeRay's definitions (``kuberay_crds`` fetches them), whole files against
those.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import jsonschema
import yaml
from pydantic import BaseModel, ConfigDict, Field

from support.pod_schema import check_pod

Name = Annotated[str, Field(pattern=r"^[a-z]([a-z0-9.-]{0,61}[a-z0-9])?$")]
Quantity = Annotated[str, Field(pattern=r"^[0-9.]+(m|[KMGT]i?)?$")]
Count = Annotated[int, Field(ge=0)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Metadata(_Strict):
    name: Name


class EnvVar(_Strict):
    name: str
    value: str


class SecretRef(_Strict):
    name: Name


class EnvFrom(_Strict):
    secretRef: SecretRef


class Port(_Strict):
    containerPort: Annotated[int, Field(ge=1, le=65535)]
    name: Annotated[str, Field(max_length=15)]


class Resources(_Strict):
    requests: dict[str, Quantity]
    limits: dict[str, Quantity]


class SecurityContext(_Strict):
    allowPrivilegeEscalation: bool
    runAsNonRoot: bool
    runAsUser: int


class Mount(_Strict):
    name: Name
    mountPath: str


class Exec(_Strict):
    command: list[str]


class Handler(_Strict):
    exec: Exec


class Lifecycle(_Strict):
    preStop: Handler


class Container(_Strict):
    name: Name
    image: str
    env: list[EnvVar] = []
    envFrom: list[EnvFrom]
    ports: list[Port] = []
    resources: Resources
    securityContext: SecurityContext
    lifecycle: Lifecycle | None = None
    volumeMounts: list[Mount] = []


class EmptyDir(_Strict):
    medium: Literal["", "Memory"] = ""
    sizeLimit: Quantity


class Volume(_Strict):
    name: Name
    emptyDir: EmptyDir


class Toleration(_Strict):
    key: str
    operator: Literal["Exists", "Equal"]
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"]


class Pod(_Strict):
    containers: Annotated[list[Container], Field(min_length=1)]
    tolerations: list[Toleration] = []
    volumes: list[Volume] = []
    terminationGracePeriodSeconds: Count | None = None


class Template(_Strict):
    spec: Pod


class HeadGroup(_Strict):
    rayStartParams: dict[str, str]
    template: Template


class WorkerGroup(HeadGroup):
    groupName: Name
    replicas: Count
    minReplicas: Count
    maxReplicas: Count


class AutoscalerOptions(_Strict):
    idleTimeoutSeconds: Count
    upscalingMode: Literal["Default", "Aggressive", "Conservative"]


class AuthOptions(_Strict):
    mode: Literal["disabled", "token"]


class ClusterSpec(_Strict):
    rayVersion: str
    enableInTreeAutoscaling: bool
    autoscalerOptions: AutoscalerOptions
    authOptions: AuthOptions
    headGroupSpec: HeadGroup
    workerGroupSpecs: list[WorkerGroup]


class JobSpec(_Strict):
    entrypoint: str
    submissionMode: Literal["K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"]
    backoffLimit: Count
    shutdownAfterJobFinishes: bool
    ttlSecondsAfterFinished: Count
    rayClusterSpec: ClusterSpec


class RayJob(_Strict):
    apiVersion: Literal["ray.io/v1"]
    kind: Literal["RayJob"]
    metadata: Metadata
    spec: JobSpec


class UpgradeStrategy(_Strict):
    type: Literal["NewCluster", "NewClusterWithIncrementalUpgrade", "None"]


class ServiceSpec(_Strict):
    upgradeStrategy: UpgradeStrategy
    serveConfigV2: str
    rayClusterConfig: ClusterSpec


class RayService(_Strict):
    apiVersion: Literal["ray.io/v1"]
    kind: Literal["RayService"]
    metadata: Metadata
    spec: ServiceSpec


KINDS: dict[str, type[RayJob] | type[RayService]] = {"RayJob": RayJob, "RayService": RayService}


def read(path: Path) -> RayJob | RayService:
    """A file of ``deploy/kuberay``.

    Raises:
        ValueError: if a field is unknown or has a wrong value.
    """
    document = yaml.safe_load(path.read_text(encoding="utf-8"))
    checked = KINDS[document["kind"]].model_validate(document)
    for place, template in _pod_templates(document["spec"], "spec"):
        check_pod(template, place)
    if folder := os.environ.get("KUBERAY_CRDS"):
        check_published(document, Path(folder))
    return checked


def _pod_templates(value: Any, place: str) -> Iterator[tuple[str, Any]]:
    """Every pod template in a document, with its place."""
    items = value.items() if isinstance(value, dict) else ()
    if isinstance(value, list):
        items = ((f"[{index}]", item) for index, item in enumerate(value))
    for name, item in items:
        inner = f"{place}{name}" if isinstance(value, list) else f"{place}.{name}"
        if name == "template":
            yield inner, item
        else:
            yield from _pod_templates(item, inner)


def check_published(document: dict[str, Any], folder: Path) -> None:
    """Check a file against the published definition of its kind.

    Raises:
        ValueError, jsonschema.ValidationError: if a field is unknown, or has a wrong value.
    """
    definition = yaml.safe_load(
        (folder / f"ray.io_{document['kind'].lower()}s.yaml").read_text(encoding="utf-8")
    )
    version = next(one for one in definition["spec"]["versions"] if one["name"] == "v1")
    schema = version["schema"]["openAPIV3Schema"]
    jsonschema.validate(document, schema)
    unknown = _unknown(document, schema, "")
    if unknown:
        raise ValueError(f"unknown fields: {', '.join(unknown)}")


def _unknown(value: Any, schema: dict[str, Any], place: str) -> list[str]:
    """Fields that the published schema does not have; a cluster would drop them."""
    if isinstance(value, list):
        return [one for item in value for one in _unknown(item, schema.get("items", {}), place)]
    fields = schema.get("properties")
    if not isinstance(value, dict) or not fields or place == ".metadata":
        return []
    found = [f"{place}.{name}" for name in value if name not in fields]
    for name in value.keys() & fields.keys():
        found += _unknown(value[name], fields[name], f"{place}.{name}")
    return found
