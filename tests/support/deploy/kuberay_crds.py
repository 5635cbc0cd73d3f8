"""Fetch KubeRay's published resource definitions: ``python -m support.deploy.kuberay_crds FOLDER``.

With ``KUBERAY_CRDS=FOLDER`` the tests check ``deploy/kuberay`` against them. They are not kept in
the repository: each is a megabyte, most of it pod templates, which ``pod_schema`` checks.
"""

from __future__ import annotations

import sys
import urllib.request
from pathlib import Path

import yaml

VERSION = "v1.5.1"
"""The first version with ``authOptions``, which the manifests use."""
SOURCE = "https://raw.githubusercontent.com/ray-project/kuberay"
FOLDER_THERE = "helm-chart/kuberay-operator/crds"
FILES = ("ray.io_rayjobs.yaml", "ray.io_rayservices.yaml")
TIMEOUT_S = 60.0


def fetch(folder: Path, version: str = VERSION, source: str = SOURCE) -> list[Path]:
    """Download the definitions of a version.

    Raises:
        OSError: if they cannot be downloaded.
        ValueError: if what was downloaded is no definition of a resource.
    """
    folder.mkdir(parents=True, exist_ok=True)
    fetched = []
    for name in FILES:
        url = f"{source}/{version}/{FOLDER_THERE}/{name}"
        with urllib.request.urlopen(url, timeout=TIMEOUT_S) as answer:
            text = answer.read().decode()
        if yaml.safe_load(text).get("kind") != "CustomResourceDefinition":
            raise ValueError(f"{url} holds no CustomResourceDefinition")
        (folder / name).write_text(text, encoding="utf-8")
        fetched.append(folder / name)
    return fetched


if __name__ == "__main__":
    for path in fetch(Path(sys.argv[1]), *sys.argv[2:3]):
        print(path)
