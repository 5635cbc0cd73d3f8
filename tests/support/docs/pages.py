"""The code blocks of the documentation, in the order of their pages.

Owns what a block is and how its kind is selected: by the words after its opening fence, which
rendered Markdown does not show. A block without a language, or indented instead of fenced, has no
kind, and a test refuses it.

    ```sh                        run by a shell, line by line
    ```sh needs=cluster          checked against the real parsers; see NEEDS
    ```console                   lines that begin with `$ ` are run, the others are their output
    ```python                    run, with the names of the page's earlier Python blocks
    ```csv title=photos/x.csv    written to that file, which later blocks use
    ```nginx                     its syntax is checked, and its limits against the endpoint's own
    ```text                      a listing or a formula; not tested
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from markdown_it import MarkdownIt

ROOT = Path(__file__).parents[3]
NEEDS = {
    "cluster": "a Ray cluster",
    "cloud": "an account at a cloud",
    "download": "a base model from the hub",
}
"""What a test machine lacks, so that a shell block that needs it is parsed and not run."""
FILES = ("yaml", "json", "jsonl", "toml", "csv")
"""Languages of blocks that are files; a title says which."""


@dataclass(frozen=True)
class Block:
    """One code block."""

    page: str
    """Path of the page from the repository's root."""
    line: int
    """1-based, of its first line of code."""
    language: str
    needs: str
    title: str
    text: str

    @property
    def place(self) -> str:
        """For messages and for the test's name."""
        return f"{self.page}:{self.line}"

    @property
    def kind(self) -> str:
        """How it is tested.

        Raises:
            ValueError: if it has none.
        """
        if self.language == "sh" and self.needs:
            if self.needs not in NEEDS:
                raise ValueError(f"{self.place}: needs={self.needs} is none of {', '.join(NEEDS)}")
            return "parsed"
        if self.language in FILES:
            if not self.title:
                raise ValueError(f"{self.place}: a {self.language} block needs title=FILE")
            return "file"
        if self.language in ("sh", "console", "python", "nginx", "text"):
            return self.language
        raise ValueError(f"{self.place}: {self.language or 'no language'} is not a kind of block")


def page_paths() -> list[Path]:
    """README first, because other pages use its results; then the tutorial, before a page that
    protects README's store with keys."""
    tutorial = ROOT / "docs/tutorial.md"
    others = sorted(set((ROOT / "docs").rglob("*.md")) - {tutorial})
    return [ROOT / "README.md", tutorial, *others]


def all_blocks() -> list[Block]:
    """Every code block of every page."""
    return [block for path in page_paths() for block in blocks_of(path)]


def blocks_of(path: Path) -> Iterator[Block]:
    """The code blocks of one page."""
    page = path.relative_to(ROOT).as_posix()
    yield from blocks_in(path.read_text(encoding="utf-8"), page)


def blocks_in(text: str, page: str) -> Iterator[Block]:
    """The code blocks of a page's text."""
    for token in MarkdownIt("commonmark").parse(text):
        if token.type not in ("fence", "code_block"):
            continue
        assert token.map is not None, "code blocks have lines"
        words = shlex.split(token.info)
        facts = dict(word.split("=", 1) for word in words[1:])
        yield Block(
            page,
            token.map[0] + (2 if token.type == "fence" else 1),
            words[0] if words else "",
            facts.pop("needs", ""),
            facts.pop("title", ""),
            token.content,
        )
        if facts:
            raise ValueError(f"{page}:{token.map[0] + 1}: unknown words {', '.join(facts)}")


def inline_code() -> Iterator[tuple[str, str]]:
    """(place, text) of every piece of code inside a sentence."""
    for path in page_paths():
        page = path.relative_to(ROOT).as_posix()
        tokens = MarkdownIt("commonmark").enable("table").parse(path.read_text(encoding="utf-8"))
        for token in tokens:
            for child in token.children or ():
                if child.type == "code_inline":
                    yield f"{page}:{(token.map or [0])[0] + 1}", child.content


def command_lines(text: str) -> list[str]:
    """The commands of a shell block: continued lines joined, comments and empty lines left out."""
    joined = re.sub(r"\\\n\s*", " ", text)
    lines = (line.strip() for line in joined.splitlines())
    return [line for line in lines if line and not line.startswith("#")]
