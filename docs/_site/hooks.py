"""What MkDocs adds to the pages under ``docs/``: generated reference pages, and other pages.

Links between pages are written so that they work in the repository. A link that leaves ``docs/``
is resolved here, to the site's own page or to a copy of the file. A link whose target does not
exist stays as it is, and the strict build reports it.
"""

from __future__ import annotations

import posixpath
import re
import sys
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

sys.path.insert(0, str(Path(__file__).parent))

from commands import commands_page
from http_api import http_page, settings_page
from manifest_fields import manifest_page
from python_api import python_page

ROOT = Path(__file__).parents[2]
REFERENCE = {
    "reference/manifest.md": manifest_page,
    "reference/commands.md": commands_page,
    "reference/http.md": http_page,
    "reference/settings.md": settings_page,
    "reference/python.md": python_page,
}
"""Generated pages by their path in the site."""
ROOT_PAGES = ("CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md")
LINK = re.compile(r"(?<=\]\()(?P<target>[^)\s#:]+)(?P<anchor>#[^)\s]*)?(?=\))")

FENCE = re.compile(r"^(?P<fence>\s*```\w+) (?P<word>title|needs)=(?P<value>\S+)$", re.MULTILINE)
"""The opening of a block with a word for ``tests/docs/``."""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the reference pages, the repository's pages, and the benchmarks."""
    for path, generate in REFERENCE.items():
        files.append(File.generated(config, path, content=generate()))
    for name in ROOT_PAGES:
        files.append(File.generated(config, name, content=_text(name)))
    for path in _linked_elsewhere(files):
        kind = (
            {"content": _text(path)} if path.endswith(".md") else {"abs_src_path": str(ROOT / path)}
        )
        files.append(File.generated(config, path, inclusion=InclusionLevel.NOT_IN_NAV, **kind))
    return files


def _linked_elsewhere(files: Files) -> list[str]:
    """Files outside ``docs/`` that pages link to, and files that those link to."""
    pages = [
        _in_repository(file.src_uri)
        for file in files.documentation_pages()
        if file.src_uri not in REFERENCE
    ]
    found: dict[str, None] = {}
    for page in pages:
        for match in LINK.finditer(_text(page)):
            target = posixpath.normpath(posixpath.join(posixpath.dirname(page), match["target"]))
            outside = not target.startswith("docs/") and target not in (*ROOT_PAGES, "README.md")
            if outside and target not in found and (ROOT / target).is_file():
                found[target] = None
                if target.endswith(".md"):
                    pages.append(target)
    return list(found)


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Point links that leave ``docs/`` to their place in the site, and title the blocks."""
    source = page.file.src_uri
    folder = posixpath.dirname(_in_repository(source))

    def replaced(match: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(folder, match["target"]))
        found = _in_site(target, files)
        if found is None:
            return match[0]
        return posixpath.relpath(found, posixpath.dirname(source) or ".") + (match["anchor"] or "")

    return FENCE.sub(_titled, LINK.sub(replaced, markdown))


def _titled(match: re.Match[str]) -> str:
    title = f' title="{match["value"]}"' if match["word"] == "title" else ""
    return match["fence"] + title


def _in_repository(path: str) -> str:
    """A site path's file, from the repository's root."""
    return f"docs/{path}" if (ROOT / "docs" / path).is_file() else path


def _in_site(target: str, files: Files) -> str | None:
    """A repository path's place in the site; None if there is no such file."""
    path = "index.md" if target == "README.md" else target.removeprefix("docs/")
    return path if files.get_file_from_path(path) is not None else None


def _text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")
