"""Files and folders that systems leave beside photos: previews, trash, resource forks, markers.

Owns which names are litter. Folders, globs, archives and object stores all use it, so that a photo
set is the same in each of them.
"""

from __future__ import annotations

import re

__all__ = ["is_litter"]

_NAMES = frozenset(
    # macOS
    ("__macosx", "icon\r", "network trash folder", "temporary items")
    # Windows
    + ("thumbs.db", "ehthumbs.db", "ehthumbs_vista.db", "desktop.ini", "$recycle.bin", "recycler")
    + ("system volume information", "zbthumbnail.info", "picasa.ini")
    # network disks: Synology, QNAP, Linux
    + ("@eadir", "@tmp", "#recycle", "#snapshot", "@recycle", "@recently-snapshot", "lost+found")
    + ("__pycache__",)
)
"""Compared without case; names that begin with a dot are litter without being listed."""
_PATTERNS = re.compile(
    r"synophoto_(thumb|film)_.*|synofile_thumb_.*|synoindex_media_info"
    r"|thumbs\.db:.*|~\$.*|.*_\$folder\$"
)
"""Synology's thumbnails, Windows' streams, Office's lock files, Hadoop's folder markers."""


def is_litter(path: str) -> bool:
    """Whether a name, or a folder in its path, is a system's and not a user's file.

    Args:
        path: relative to the folder or archive that the user named, whose own name is not checked,
            because users may keep photos in hidden folders on purpose.
    """
    parts = path.replace("\\", "/").split("/")
    if parts[-1] == "":
        # object stores list a folder's marker as an object whose key ends in a slash
        return True
    return any(_is_litter_name(part) for part in parts if part != ".")


def _is_litter_name(name: str) -> bool:
    if name.startswith(".") and name != "..":
        return True
    folded = name.casefold()
    return folded in _NAMES or _PATTERNS.fullmatch(folded) is not None
