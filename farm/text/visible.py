"""Makes untrusted text safe to show: control and bidirectional characters appear as escapes.

Owns the list of these characters. Names, paths and messages come from untrusted manifests and
folders. Printed raw, an escape sequence can rewrite the terminal, a bidirectional override can
reverse text, and a line feed can forge a line of output.
"""

from __future__ import annotations

import re

__all__ = ["visible", "visible_lines"]

_HIDDEN = (
    "\x00-\x08\x0b-\x1f\x7f-\x9f"  # C0, DEL and C1 controls
    "\u061c\u200e\u200f\u202a-\u202e\u2060-\u206f"  # bidirectional marks, overrides, isolates
    "\u200b\u2028\u2029\ufeff\ufff9-\ufffb"  # invisible space, separators, annotations
    "\xad\u034f\u115f\u1160\u17b4\u17b5\u180e\u3164\uffa0"  # letters that have no shape
    "\ud800-\udfff"  # undecodable bytes of file names
    "\U000e0000-\U000e0fff"  # tags
)
_LINES = re.compile(f"[{_HIDDEN}]")
_ALL = re.compile(f"[\\t\\n{_HIDDEN}]")


def visible(text: str) -> str:
    """One line, such as a name, a path or a message, with every hidden character escaped."""
    return _ALL.sub(_escape, text)


def visible_lines(text: str) -> str:
    """Text of several lines, with every hidden character escaped but line feeds and tabs."""
    return _LINES.sub(_escape, text)


def _escape(found: re.Match[str]) -> str:
    return found[0].encode("unicode_escape", "surrogatepass").decode("ascii")
