"""The wheel and the source distribution, built and used as a user installs them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest
from support.manifests import write_manifest

ROOT = Path(__file__).parent.parent
SOURCES = (
    "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE", "CHANGELOG.md", "CONTRIBUTING.md",
    "SECURITY.md", "CITATION.cff", "Dockerfile", "Makefile", "cluster.yaml", "constraints.txt",
    "mkdocs.yml", "farm", "jobs", "deploy",
)  # fmt: skip
"""What the build reads; pages and tests are left out, for they add nothing but time."""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with both, built without a network from a copy of the sources."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    for name in SOURCES:
        if (ROOT / name).is_dir():
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / name, source / name, ignore=ignored)
        else:
            shutil.copy(ROOT / name, source / name)
    # the wheel is built from the source distribution, so that this one is complete
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(source))
    return out


@pytest.fixture(scope="module")
def wheel(built: Path) -> Path:
    (found,) = built.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment that holds the wheel, and the dependencies of this interpreter."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, symlinks=True)
    packages = next(folder.glob("lib/python*/site-packages"))
    # plain paths: .pth files in them, such as that of an editable farm, are not read
    paths = [path for path in sys.path if path.endswith("site-packages")]
    (packages / "dependencies.pth").write_text("\n".join(paths) + "\n")
    python = str(folder / "bin/python")
    arguments = ("install", "--quiet", "--no-deps", "--no-index", str(wheel))
    run(sys.executable, "-m", "pip", "--python", python, *arguments)
    return folder


def run(*command: str, cwd: Path | None = None) -> str:
    """What a command prints on stdout."""
    dropped = ("PYTHONPATH", "VIRTUAL_ENV")
    done = subprocess.run(
        command,
        cwd=cwd,
        env={name: value for name, value in os.environ.items() if name not in dropped},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}{done.stderr}"
    return done.stdout


def test_the_wheel_holds_every_file_of_the_package(wheel: Path) -> None:
    expected = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "farm").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    assert expected <= names
    assert {name.split("/")[0].split("-")[0] for name in names} == {"farm", "dreambooth_farm"}


def test_the_source_distribution_holds_what_the_project_needs(built: Path) -> None:
    (found,) = built.glob("*.tar.gz")
    with tarfile.open(found) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {
        "LICENSE",
        "CHANGELOG.md",
        "constraints.txt",
        "jobs/serve.yaml",
        "cluster.yaml",
    } <= names
    assert "farm/base/embedded/weights/unet/diffusion_pytorch_model.safetensors" in names


def test_the_installed_package_is_the_wheels(installed: Path, tmp_path: Path) -> None:
    python = str(installed / "bin/python")
    where = run(python, "-c", "import farm; print(farm.__file__)", cwd=tmp_path)
    assert Path(where.strip()).is_relative_to(installed)


def test_an_installed_farm_checks_trains_and_reports(installed: Path, tmp_path: Path) -> None:
    farm = str(installed / "bin/farm")
    manifest = str(write_manifest(tmp_path, 2))
    run(farm, "check", manifest, cwd=tmp_path)
    printed = run(
        farm, "run", manifest, "--store", "work", "--in-process", "--yes", "--json",
        "--set", "steps=2", "--sample-steps", "2", "--no-cards",
        cwd=tmp_path,
    )  # fmt: skip
    summary = json.loads(printed.splitlines()[-1])
    assert (summary["committed"], summary["failed"]) == (2, 0)
    assert (
        "</html>" in Path(run(farm, "report", "--store", "work", cwd=tmp_path).strip()).read_text()
    )
