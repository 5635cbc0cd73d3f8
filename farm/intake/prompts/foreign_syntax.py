"""Notation of other programs' prompts that has no meaning here: weights, tags of adapters, breaks.

Owns its recognition; ``judge.py`` warns of it in manifests, the endpoint notes it in its answers.
"""

from __future__ import annotations

import re

__all__ = ["adapter_tags", "emphasis", "without_syntax"]

_TAG = re.compile(r"<(?:lora|lyco|hypernet):[^<>]{1,200}>", re.IGNORECASE)
_EMPHASIS = re.compile(
    r"\([^()]{1,200}:-?\d{1,3}(?:\.\d{1,6})?\)|\bBREAK\b|\[(?:filewords|trigger)\]"
)


def adapter_tags(prompt: str) -> list[str]:
    """Tags that load adapters in A1111 and its kin, ``<lora:tom:0.8>``; each once."""
    return list(dict.fromkeys(_TAG.findall(prompt)))


def emphasis(prompt: str) -> list[str]:
    """Words with weights, ``(cat:1.2)``, the word ``BREAK``, and what other trainers replace,
    ``[filewords]``; each once."""
    return list(dict.fromkeys(_EMPHASIS.findall(prompt)))


def without_syntax(syntax: str) -> str:
    """The remedy for one of these: what to write instead."""
    if syntax.startswith("("):
        return f"write the words alone: `{syntax[1:].rpartition(':')[0].strip()[:60]}`"
    return "write [V]" if syntax == "[trigger]" else "leave it out"
