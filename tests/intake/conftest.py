"""Generated photos and manifests: no real photo is needed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from textwrap import dedent

import pytest
from support.factories import Draw, Write
from support.photos import picture

from farm.errors import Fault
from farm.intake.manifest import Manifest, read_manifest


@pytest.fixture
def draw(tmp_path: Path) -> Draw:
    """Save a random picture at a path below the test's folder."""

    def save(name: str, seed: int = 0, size: tuple[int, int] = (96, 80), **options: object) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(seed, size).save(path, **options)
        return path

    return save


@pytest.fixture
def draw_subject(draw: Draw, tmp_path: Path) -> Draw:
    """Save a folder of different photos."""

    def save(name: str, count: int = 4) -> Path:
        for number in range(count):
            draw(f"{name}/{number}.png", seed=sum(map(ord, name)) * 100 + number)
        return tmp_path / name

    return save


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write an indented text to a file of the test's folder."""

    def save(name: str, text: str) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(dedent(text).lstrip("\n"), encoding="utf-8")
        return path

    return save


@pytest.fixture
def faults_of(write: Write) -> Callable[..., list[Fault]]:
    """The faults of a manifest, given as text."""

    def read(text: str, name: str = "manifest.yaml") -> list[Fault]:
        return list(read_manifest(str(write(name, text)), strict=False).faults)

    return read


@pytest.fixture
def manifest_of(write: Write) -> Callable[..., Manifest]:
    """A manifest, given as text."""

    def read(text: str, name: str = "manifest.yaml") -> Manifest:
        return read_manifest(str(write(name, text)))

    return read
