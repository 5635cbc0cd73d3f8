#!/usr/bin/env python3
"""Rejects words that this project replaced, in prose: pages, docstrings, comments, messages.

    .ci/vocabulary.py                 checks CLEAN
    .ci/vocabulary.py farm/cli docs   checks these files and folders

Code is not prose: fenced blocks and code spans of pages, and identifiers, are not checked. A line
that needs a word ends with the comment `vocabulary: allow`.
"""

from __future__ import annotations

import ast
import io
import re
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CLEAN = (
    "README.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
    "Dockerfile",
    "Makefile",
    "cluster.yaml",
    "mkdocs.yml",
    "pyproject.toml",
    ".github",
    "benchmarks",
    "deploy",
    "docs",
    "farm",
    "jobs",
    "tests",
)
"""Files and folders whose prose follows the list; `make check` keeps them so."""
GENERATED = ("docs/study/", "docs/embedded-base/measurements.md", "docs/embedded-base/samples.txt")
"""Written by commands, whose own words are checked where they are written."""
DRAWING = ("farm/base/embedded/world/brush.py", "farm/base/embedded/tokenizer.py")
"""Modules that draw on a canvas, or that list the word."""
ABOUT_WORDS = ("tests/test_vocabulary.py",)
"""Sentences with the words themselves."""
WORDS = {
    r"dr(?:aw|aws|awn|ew)|drawing(?! of)": "generate (models), render (synthetic images), plot",
    r"redr(?:aw|awn)": "generate again",
    r"tell|tells|told|telling": "report, describe, show",
    r"says? so": "reports it",
    r"mend(?:s|ed|ing)?": "fix",
    r"anew": "again",
    r"again and again": "repeatedly",
    r"lies in|lie in|lay in|lies beside|lie beside": "is stored in, is in, is beside",
    r"stands? in for": "replaces, is the default of",
    r"lives? in": "is in, is stored in",
    r"go(?:es)? on|went on|going on": "resume, continue",
    r"all the same": "still",
    r"at the most": "at most",
    r"so many": "this many",
    r"whoever": "the caller, anyone who",
    r"whatever it (?:was|is)": "any",
    r"nobody": "no one, no other job",
    r"anybody": "anyone",
    r"takes on|leans? to": "resembles",
    r"spared": "given precomputed",
    r"opens nothing": "does not open a browser",
    r"(?:clients|ones) that exist": "existing clients",
    r"how far it is": "progress",
    r"for the books": "reason to record",
    r"by itself": "automatically, by default",
    r"is no (?:manifest|kind|photo|picture)": "is not a …",
    r"bettered": "improved",
    r"has (?:it|them) all": "contains everything",
    r"swept away": "deleted",
    r"keep(?:s|ing)? house|housekeeping": "maintenance",
    r"given up|gives? up": "abandoned, stops",
    r"good key": "valid key",
    r"takes nobody": "cannot take other jobs down",
}
"""Rejected wording, as a pattern of whole words, and what to write instead."""
ALLOW = "vocabulary: allow"
PATTERN = re.compile(
    "|".join(rf"(?P<w{index}>\b(?:{word})\b)" for index, word in enumerate(WORDS)), re.IGNORECASE
)
INSTEAD = list(WORDS.values())
MARKED = re.compile(r"<!-- made by .*?: begin -->.*?<!-- made by .*?: end -->", re.DOTALL)
FENCED = re.compile(r"^(?P<fence> *(?:```|~~~)).*?^(?P=fence) *$", re.DOTALL | re.MULTILINE)
CODE = re.compile(r"``.+?``|`[^`\n]+`|\]\([^)]*\)|<[^>\n]*>")


def main(arguments: list[str]) -> int:
    """Check the given paths, or all that are clean; print each finding."""
    paths = [Path(argument) for argument in arguments] or [ROOT / name for name in CLEAN]
    findings = [finding for path in paths for finding in check_path(path)]
    for finding in findings:
        print(finding)
    if findings:
        print(f"{len(findings)} findings; CONTRIBUTING.md, section English", file=sys.stderr)
    return bool(findings)


def check_path(path: Path) -> Iterator[str]:
    """The findings of a file, or of every file below a folder."""
    if not path.exists():
        raise SystemExit(f"{path}: there is no such file or folder")
    files = sorted(one for one in path.rglob("*") if one.is_file()) if path.is_dir() else [path]
    for file in files:
        name = file.resolve().relative_to(ROOT).as_posix() if ROOT in file.resolve().parents else ""
        read = _reader(file)
        if read is None or name.startswith((*GENERATED, *DRAWING, *ABOUT_WORDS)):
            continue
        text = file.read_text(encoding="utf-8")
        for line, prose in read(text):
            yield from _findings(name or str(file), line, prose)


def _reader(path: Path):
    if path.suffix == ".md":
        return page_prose
    if path.suffix == ".py":
        return python_prose
    if path.suffix in (".yaml", ".yml", ".toml") or path.name in ("Dockerfile", "Makefile"):
        return comment_prose
    return None


def _findings(name: str, line: int, prose: str) -> Iterator[str]:
    for offset, one in enumerate(prose.split("\n")):
        if ALLOW in one:
            continue
        for match in PATTERN.finditer(CODE.sub(_blank, one)):
            instead = INSTEAD[int(match.lastgroup[1:])]
            yield f"{name}:{line + offset}: {match[0]!r}: write {instead}"


def page_prose(text: str) -> Iterator[tuple[int, str]]:
    """A Markdown page without its code and its generated parts."""
    for pattern in (MARKED, FENCED):
        text = pattern.sub(_blank, text)
    yield 1, text


def python_prose(text: str) -> Iterator[tuple[int, str]]:
    """Comments, docstrings, and texts of more than one word."""
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value:
            yield node.lineno, node.value


def comment_prose(text: str) -> Iterator[tuple[int, str]]:
    """What follows a `#`."""
    for number, line in enumerate(text.splitlines(), start=1):
        _, mark, comment = line.partition("#")
        if mark:
            yield number, comment


def _blank(match: re.Match[str]) -> str:
    """As many lines, with nothing on them."""
    return "\n" * match[0].count("\n") or " "


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
