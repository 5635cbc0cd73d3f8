"""The documentation site: it builds without a warning, and holds what its navigation promises."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built as `make docs` builds it: a broken link or anchor is an error."""
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1", "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def text_of(site: Path, page: str) -> str:
    return (site / page / "index.html").read_text(encoding="utf-8")


def test_every_page_is_whole_and_shows_no_fence(site: Path) -> None:
    pages = sorted(site.rglob("index.html"))
    assert len(pages) > 25
    for page in pages:
        text = page.read_text(encoding="utf-8")
        assert "</html>" in text
        assert "```" not in text, page


def test_a_block_that_is_a_file_is_titled_with_its_name(site: Path) -> None:
    assert re.search(r'class="filename">photos/subjects\.csv<', text_of(site, "tutorial"))


def test_the_reference_lists_every_command_with_its_options(site: Path) -> None:
    import typer.main

    from farm.cli import app

    page = text_of(site, "reference/commands")
    for name, command in typer.main.get_command(app).commands.items():
        if command.hidden:
            continue
        assert f"farm {name}" in page
        for parameter in getattr(command, "params", ()):
            if parameter.opts[0].startswith("--") and parameter.name != "help":
                assert f"<code>{parameter.opts[0]}</code>" in page


def test_the_reference_lists_every_route_and_every_setting(site: Path) -> None:
    from farm.serving.access.limits import Limits
    from farm.serving.settings import EndpointConfig

    page = text_of(site, "reference/http")
    for route in ("/v1/images/generations", "/v1/models", "/health", "/ready"):
        assert route in page
    page = text_of(site, "reference/settings")
    for field in (*EndpointConfig.model_fields, *Limits.model_fields):
        assert f"<code>{field}</code>" in page


def test_the_reference_lists_every_field_of_the_recipe(site: Path) -> None:
    from farm.recipe import Recipe

    page = text_of(site, "reference/manifest")
    assert all(f"<code>{field}</code>" in page for field in Recipe.model_fields)


def test_the_reference_describes_the_python_api(site: Path) -> None:
    page = text_of(site, "reference/python")
    for name in ("farm.adapters.registry.Registry", "farm.recipe.Recipe", "farm.errors.FarmError"):
        assert f'id="{name}"' in page


def test_pages_load_nothing_from_another_site(site: Path) -> None:
    for page in site.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        assert not re.search(r'<(?:script|img|iframe)[^>]+src="https?://', text), page
        assert not re.search(r'<link[^>]+rel="stylesheet"[^>]+href="https?://', text), page
