"""The documentation's pages, run once a session in one clone that their tests share."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.docs.pages import ROOT, Block, blocks_of
from support.docs.workplace import BlockFailed, Clone, PageRun

README = "README.md"
ACTIVATE = ". .venv/bin/activate"
"""What README has its readers do; the other pages' readers have done it."""


class Documentation:
    """Runs pages block by block, each block once and after the earlier ones of its page."""

    def __init__(self, folder: Path, ray_folder: Path) -> None:
        self.clone = Clone(folder / "clone", ray_folder)
        self._pages: dict[str, PageRun] = {}
        self._done: dict[str, BlockFailed | None] = {}

    def reach(self, block: Block) -> PageRun:
        """Run a block, after README's and those before it on its page.

        Raises:
            BlockFailed: if it fails, or one that it builds on did.
        """
        if block.page != README:
            self.read_readme()
        for earlier in _run_blocks(block.page):
            if earlier.line > block.line:
                break
            self._run(earlier)
        return self._page(block.page)

    def read_readme(self) -> PageRun:
        """Run all of README; its endpoint stays for its own later blocks only."""
        for block in _run_blocks(README):
            self._run(block)
        page = self._page(README)
        page.close()
        return page

    def close(self) -> None:
        for page in self._pages.values():
            page.close()
        self.clone.close()

    def _run(self, block: Block) -> None:
        if block.place not in self._done:
            try:
                self._page(block.page).run(block)
                self._done[block.place] = None
            except BlockFailed as error:
                self._done[block.place] = error
        error = self._done[block.place]
        if error is not None:
            raise error

    def _page(self, page: str) -> PageRun:
        if page not in self._pages:
            for other in self._pages.values():
                other.close()
            # README's programs start as its readers' do, each with its own imports
            is_readme = page == README
            prelude = () if is_readme else (ACTIVATE,)
            self._pages[page] = PageRun(self.clone, prelude=prelude, warm=not is_readme)
        return self._pages[page]


def _run_blocks(page: str) -> list[Block]:
    """A page's blocks that are run or written, in their order."""
    return [
        block for block in blocks_of(ROOT / page) if block.kind not in ("parsed", "nginx", "text")
    ]


@pytest.fixture(scope="session")
def documentation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Documentation]:
    ray_folder = Path(tempfile.mkdtemp(prefix="ray-"))  # short: sockets have short names
    pages = Documentation(tmp_path_factory.mktemp("documentation"), ray_folder)
    yield pages
    pages.close()
    shutil.rmtree(ray_folder, ignore_errors=True)
