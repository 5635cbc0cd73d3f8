"""``[V]`` and ``[V:name]`` in the prompts of requests: which adapter's subject stands there.

Owns the pattern and the replacement. Prompts of manifests have ``[V]`` alone; see ``subject``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from farm.text.safe_names import SAFE_NAME

__all__ = ["TAG", "fill_tags", "near_miss"]

TAG = re.compile(rf"\[V(?::({SAFE_NAME}))?\]")

_BRACKETS = re.compile(r"\[[^\[\]]{1,200}\]")
_LIKE_TAG = re.compile(r"\[\s*V\s*(?::[^\[\]]*)?\]", re.IGNORECASE)
_NAMED = re.compile(rf"\[\s*(?:V[\s:]\s*)?({SAFE_NAME})\s*(?:[:@][^\[\]]*)?\]", re.IGNORECASE)


def near_miss(prompt: str, identifiers: Mapping[str, str]) -> tuple[str, str] | None:
    """The first text in brackets that is hardly anything but a mistyped tag, and the right tag.

    That is what begins as a tag does, such as ``[v]``, ``[V: rex]``, ``[V:rex@key]`` and
    ``[V:rex:0.5]``, and the name of an adapter, such as ``[rex:0.5]``. Other brackets are ordinary
    words.

    Args:
        identifiers: of the request's adapters by name.
    """
    for text in _BRACKETS.findall(prompt):
        if TAG.fullmatch(text):
            continue
        named = _NAMED.fullmatch(text)
        name = named.group(1) if named is not None else ""
        if name in identifiers and name != identifiers[name]:
            return text, f"[V:{name}]"
        if _LIKE_TAG.fullmatch(text):
            return text, "[V]"
    return None


def fill_tags(prompt: str, identifiers: Mapping[str, str]) -> tuple[str, str | None]:
    """A prompt with identifiers in place of its tags.

    Args:
        identifiers: of the request's adapters by name; ``[V]`` stands for the first.

    Returns:
        The prompt, and the first tag that stands for none of the adapters.
    """
    first = next(iter(identifiers), "")
    names = [match.group(1) or first for match in TAG.finditer(prompt)]
    for match, name in zip(TAG.finditer(prompt), names, strict=True):
        if name not in identifiers:
            return prompt, match.group(0)
    return TAG.sub(lambda match: identifiers[match.group(1) or first], prompt), None
