"""Files and folders that systems leave beside photos: previews, trash, resource forks, markers.

Owns which names are litter, which need no warning, and which are another form of a photo. Folders,
globs, archives and object stores all use it, so that a photo set is the same in each of them.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Collection, Iterable

__all__ = ["HEIF_SUFFIXES", "MASK_FOLDERS", "is_litter", "is_quiet", "masks_among", "other_forms"]

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
    r"|thumbs\.db:.*|.*:zone\.identifier|~\$.*|.*_\$folder\$|~syncthing~.*|.*\.[a-z]+_original"
)
"""Synology's thumbnails, Windows' streams, Office's lock files, Hadoop's folder markers, unfinished
copies of Syncthing, exiftool's backups."""
_QUIET_SUFFIXES = frozenset(
    (".txt", ".caption", ".json", ".jsonl", ".csv", ".md", ".db", ".ini", ".npz", ".toml", ".yaml")
    + (".tsv", ".parquet", ".ndjson", ".yml", ".safetensors", ".html", ".htm", ".url", ".md5")
    # edits and facts of photo programs and cameras
    + (".xmp", ".aae", ".pp3", ".dop", ".cos", ".on1", ".nfo", ".thm", ".lrcat", ".sha256")
)
"""Suffixes of files often found beside photos; they are skipped without a warning."""
HEIF_SUFFIXES = (".heic", ".heif")
_VIDEOS = (".mov", ".mp4")
_RAWS = (".dng", ".cr2", ".cr3", ".nef", ".arw", ".raf", ".orf", ".rw2", ".pef", ".srw", ".raw")


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
        # a photo that iCloud has not downloaded is missing, and must not be so in silence
        return not name.endswith(".icloud")
    folded = name.casefold()
    return folded in _NAMES or _PATTERNS.fullmatch(folded) is not None


def is_quiet(name: str) -> bool:
    """Whether a file other than a photo is skipped without a warning."""
    return posixpath.splitext(name)[1].lower() in _QUIET_SUFFIXES


_MASK = re.compile(r"(?P<of>.*)[-_. ](?:mask|masklabel|condlabel)")
MASK_FOLDERS = frozenset(("mask", "masks"))


def _is_mask_name(name: str) -> bool:
    """Whether a path is that of a mask by its name or its folder, if a photo belongs to it."""
    folder, _, last = name.lower().rpartition("/")
    is_inside = not MASK_FOLDERS.isdisjoint(folder.split("/"))
    return is_inside or _MASK.fullmatch(posixpath.splitext(last)[0]) is not None


def masks_among(photos: Iterable[str]) -> set[str]:
    """The pictures that mark regions of a photo among them: `0_mask.png`, OneTrainer's
    `0-masklabel.png` or `masks/0.png` of `0.jpg`.

    A picture so named is a photo where no photo is named as it would be without the mark. Those of
    OneTrainer are masks beside any photo.
    """
    every = list(photos)
    named = [name for name in every if _is_mask_name(name)]
    if not named or len(named) == len(every):
        return set()
    stems = {_stem(name) for name in set(every).difference(named)}
    bare = {posixpath.basename(stem) for stem in stems}
    return {name for name in named if _belongs(_stem(name), stems, bare)}


def _belongs(stem: str, stems: Collection[str], bare: Collection[str]) -> bool:
    """Whether a mask's path without suffix is that of a photo's mask."""
    folder, _, last = stem.rpartition("/")
    match = _MASK.fullmatch(last)
    own = match["of"] if match else last
    if not MASK_FOLDERS.isdisjoint(folder.split("/")):
        return own in bare
    return last.endswith(("-masklabel", "-condlabel")) or posixpath.join(folder, own) in stems


def _stem(name: str) -> str:
    return posixpath.splitext(name.lower())[0]


def other_forms(names: Iterable[str], photos: Iterable[str]) -> set[str]:
    """The names that hold a photo of the same name in another form: the video of a live photo; the
    HEIC or RAW file of which a camera or phone wrote a JPEG too.

    Args:
        photos: those of the names that are photos by their suffix.
    """
    parts = [(posixpath.splitext(name.lower()), name) for name in photos]
    every = {stem for (stem, _), _ in parts}
    readable = {stem for (stem, suffix), _ in parts if suffix not in HEIF_SUFFIXES}
    found = set()
    for name in names:
        stem, suffix = posixpath.splitext(name.lower())
        is_twin = suffix in HEIF_SUFFIXES + _RAWS and stem in readable
        if is_twin or (suffix in _VIDEOS and stem in every):
            found.add(name)
    return found
