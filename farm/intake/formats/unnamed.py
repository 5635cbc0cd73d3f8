"""Photos, and folders of photos, beside a table that does not name them."""

from __future__ import annotations

import posixpath
from collections.abc import Iterable
from itertools import islice

from farm.errors import Fault
from farm.intake.formats.kohya_options import is_switched_off
from farm.intake.photos.budget import LookBudget
from farm.intake.photos.listings import has_photos, list_folder, subfolders
from farm.text.listed import listed

__all__ = ["unnamed_folders", "unnamed_photos"]

MAX_LISTED = 1_000
"""Folders without a row that are searched for photos."""
SHOWN = 3


def unnamed_folders(
    folder: str, source: str, ids: Iterable[str], uris: Iterable[str]
) -> Fault | None:
    """One warning about all folders of photos that no subject uses.

    Args:
        folder: the folder of the table; an absolute path or a URL.
        source: the table, for the warning.
        ids: of the subjects; each may be the name of a folder.
        uris: of all photos and class images of the subjects.
    """
    start = folder.rstrip("/") + "/"
    used = {uri[len(start) :].partition("/")[0] for uri in uris if uri.startswith(start)}
    used |= {one.casefold() for one in ids}
    try:
        names = [
            name for name in subfolders(folder) if name not in used and name.casefold() not in used
        ]
    except Exception:  # each filesystem raises errors of its own
        return None
    names = [name for name in names if not is_switched_off(name)]
    unnamed = [name for name in islice(names, MAX_LISTED) if has_photos(start + name)]
    if not unnamed:
        return None
    shown = listed([f"`{name}`" for name in unnamed], SHOWN)
    what = "folder of photos has" if len(unnamed) == 1 else "folders of photos have"
    message = f"{len(unnamed):,} {what} no row and will not be trained: {shown}"
    one = len(unnamed) == 1
    remedy = "add a row for it, or remove it" if one else "add a row for each, or remove them"
    return Fault(source, message, remedy, severity="warning")


def unnamed_photos(
    folder: str, source: str, uris: Iterable[str], *, is_deep: bool = False
) -> Fault | None:
    """One warning about the photos directly in a folder of folders that no subject uses.

    Args:
        folder: an absolute path or a URL.
        source: the table or folder, for the warning.
        uris: of all photos and class images of the subjects.
        is_deep: whether to look into the folders of these photos too: a table that names each photo
            is meant to name all of them.
    """
    used, start = set(uris), folder.rstrip("/") + "/"
    inside = {posixpath.dirname(uri[len(start) :]) for uri in used if uri.startswith(start)}
    places = ["", *sorted(inside - {""})[:MAX_LISTED]] if is_deep else [""]
    loose: list[str] = []
    for place in places:
        try:
            files = list_folder(f"{start}{place}", LookBudget()).files
        except Exception:  # each filesystem raises errors of its own
            continue
        loose += [posixpath.join(place, name) for name, uri in files if uri not in used]
    if not loose:
        return None
    shown = listed([f"`{name}`" for name in loose], SHOWN)
    count = "1 photo belongs" if len(loose) == 1 else f"{len(loose):,} photos belong"
    message = f"{count} to no subject and will not be trained: {shown}"
    remedy = "name them for a subject, or move them into its folder or away"
    return Fault(source, message, remedy, severity="warning")
