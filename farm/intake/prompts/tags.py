"""``[V]`` and ``[V:name]`` in the prompts of requests: which adapter's subject stands there.

Owns the pattern and the replacement. Prompts of manifests have ``[V]`` alone; see ``subject``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from farm.safe_names import SAFE_NAME

__all__ = ["TAG", "fill_tags"]

TAG = re.compile(rf"\[V(?::({SAFE_NAME}))?\]")


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
