"""How the caption files of a subject's photos are read; each manifest form has its own habits."""

from __future__ import annotations

from dataclasses import dataclass, replace

__all__ = ["KOHYA_TREE_STYLE", "CaptionStyle"]


@dataclass(frozen=True, slots=True)
class CaptionStyle:
    """Which files caption photos, and what becomes of their text."""

    suffixes: tuple[str, ...] = (".txt", ".caption")
    """Of the text beside a photo; the first present wins."""
    has_tables: bool = True
    """Whether tables beside the photos caption them."""
    takes_first_line: bool = False
    """Of a text of several lines the first is the caption, as for kohya's scripts; otherwise they
    are joined."""
    prefix: str = ""
    """Put before every caption."""
    suffix: str = ""
    """Put behind every caption."""
    fallback: str | None = None
    """Of photos without a caption, where that is not the subject's instance prompt."""
    unread_suffix: str = ""
    """A warning is due if texts with this suffix lie beside the photos and no other ones do."""
    remedy: str = "put [V] into it, or set `captions: none`"
    """For a caption that does not name the subject, in words of the manifest's form."""

    def finished(self, text: str) -> str:
        """A caption with the prefix and suffix of its dataset."""
        return " ".join(part for part in (self.prefix, text, self.suffix) if part)

    def with_fallback(self, text: str) -> CaptionStyle:
        """The same, with a text for photos without a caption."""
        return replace(self, fallback=text)


KOHYA_TREE_STYLE = CaptionStyle(takes_first_line=True)
"""Of folders named `10_sks cat`: their texts were written for kohya's scripts."""
