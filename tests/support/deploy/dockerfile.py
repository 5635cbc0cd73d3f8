"""A Dockerfile's instructions: continued lines joined, comments omitted."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

NAMES = {
    "ARG", "CMD", "COPY", "ENTRYPOINT", "ENV", "EXPOSE", "FROM", "LABEL", "RUN", "SHELL", "USER",
    "WORKDIR",
}  # fmt: skip


@dataclass(frozen=True)
class Instruction:
    """One instruction."""

    name: str
    flags: str
    text: str

    @property
    def words(self) -> list[str]:
        return self.text.split()


def instructions(text: str) -> list[Instruction]:
    """A file's instructions.

    Raises:
        ValueError: if a line is not an instruction.
    """
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n", " ", "\n".join(lines))
    found = []
    for line in filter(str.strip, joined.splitlines()):
        match = re.fullmatch(r"(?P<name>[A-Z]+)\s+(?P<flags>(?:--\S+\s+)*)(?P<text>.+)", line)
        if match is None or match["name"] not in NAMES:
            raise ValueError(f"no instruction: {line}")
        found.append(Instruction(match["name"], match["flags"], " ".join(match["text"].split())))
    return found


def stages(found: Sequence[Instruction]) -> dict[str, str]:
    """Each named stage and the image or stage that it builds on."""
    named = {}
    for one in found:
        if one.name == "FROM":
            image, word, name = one.words
            if word != "AS":
                raise ValueError(f"an unnamed stage: {one.text}")
            named[name] = image
    return named
