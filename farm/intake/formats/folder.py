"""Folders as manifests: one folder per subject, ideally with a `subjects.csv`.

Owns how a folder is read as a manifest. The table itself is read by ``tables.py``.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import replace

from farm.errors import Fault, FaultList, ManifestError
from farm.intake.faults import slug
from farm.intake.formats.imagefolder import DATA_FOLDER, OTHER_SPLITS, TRAIN_SPLITS
from farm.intake.formats.kohya_options import NO_REPEATS, is_switched_off, tokens_of
from farm.intake.photos.budget import LookBudget
from farm.intake.photos.listings import ARCHIVE_SUFFIXES, has_photos, list_folder, subfolders
from farm.intake.rows import KOHYA_TREE_STYLE, CaptionStyle, ManifestRow, ManifestRows, Path

__all__ = [
    "MANIFEST_NAMES",
    "TABLE_NAMES",
    "data_folder",
    "read_folder",
    "train_split",
    "unused_class_images",
]

TABLE_NAMES = (
    *("subjects.csv", "subjects.tsv", "subjects.jsonl", "subjects.parquet"),
    *("metadata.jsonl", "metadata.csv", "metadata.parquet"),
)
"""Tables that represent a folder; the first present wins."""
MANIFEST_NAMES = (
    *(f"manifest.{suffix}" for suffix in ("yaml", "yml", "json", "jsonl", "csv", "parquet")),
    *TABLE_NAMES,
)
"""All files that represent a folder; the first present wins."""

_KOHYA_NAME = re.compile(r"(\d+)_(\S+)\s+(.+)")
"""``10_sks cat``: repeats, identifier, class noun, as kohya's scripts name folders."""


_IMAGES = frozenset(("img", "image", "images"))
_REGULARISING = ("reg", "regs", "reg_images", "regularization", "regularisation")
_KOHYA_ASIDE = frozenset(
    (*_REGULARISING, "log", "logs", "model", "models", "output", "outputs", "sample", "samples")
)
"""Folders that the kohya_ss program and its guides make beside `img`."""
_INSTANCE = ("instance_images", "instance", "instance_data", "instance_data_dir", "instances")
_CLASS = ("class_images", "class", "class_data", "class_data_dir", "classes")
"""The two folders of DreamBooth scripts."""
FEW_FOLDERS = 3
"""Most folders in which folders named as for kohya's scripts are looked for."""
_SUBJECTS_REMEDY = (
    "put a subjects.csv beside the folders, with the columns `subject,class` and a row for each"
)


def train_split(folder: str, names: list[str]) -> tuple[str, list[str]] | None:
    """The folder of the train split and the names of the others, if all folders are splits."""
    train = [name for name in names if name.casefold() in TRAIN_SPLITS]
    others = [name for name in names if name.casefold() in OTHER_SPLITS]
    if len(train) == 1 and len(train) + len(others) == len(names):
        return f"{folder.rstrip('/')}/{train[0]}", others
    return None


def data_folder(folder: str, names: list[str]) -> str | None:
    """The only folder in a folder, if it holds the data set: it is named so, or holds splits."""
    if len(names) != 1:
        return None
    inside = f"{folder.rstrip('/')}/{names[0]}"
    inner = subfolders(inside)
    is_named_so = names[0].casefold() == DATA_FOLDER
    if not inner or not (is_named_so or train_split(inside, inner)):
        return None
    if any(_KOHYA_NAME.fullmatch(name) for name in inner) or has_photos(inside):
        return None
    return inside


def read_folder(folder: str, names: list[str], *, is_split: bool = False) -> ManifestRows:
    """Read a folder without any table: each folder in it is a subject.

    It is named ``<repeats>_<identifier> <class noun>`` as for kohya's scripts, or by its id alone,
    and then the class noun has to come from a head's defaults. In the train split of an imagefolder
    it is the class label.

    Args:
        folder: an absolute path or a URL.
        names: of the folders in it.
        is_split: whether it is the train split of a data set.

    Raises:
        ManifestError: if there are no folders, or they are a kohya_ss project's.
    """
    if not names:
        raise ManifestError(*_no_folders(folder))
    if (inner := _tree_photos(folder, names)) is not None:
        raise ManifestError(
            f"{folder} is a kohya_ss project, not a folder of subjects",
            f"name its folder of photos: {inner}",
        )
    if (halves := _dreambooth(folder, names)) is not None:
        raise ManifestError(*halves)
    head = ManifestRow({}, folder, folder)
    faults = FaultList()
    if is_split:
        message = "each folder of the train split is a subject, and its name the class"
        remedy = _SUBJECTS_REMEDY + ", if they are anything else"
        faults.append(head.fault((), message, remedy, severity="warning"))
    left_out = [name for name in names if is_switched_off(name)]
    places = (f"{folder.rstrip('/')}/{name}" for name in left_out)
    faults += [Fault(place, *NO_REPEATS, severity="warning") for place in places]
    names = [name for name in names if name not in left_out]
    faults += _repeated(names, folder)
    rows = ManifestRows(head, _folder_rows(names, folder, is_split), faults)
    rows.folder = folder
    return rows


def _repeated(names: list[str], folder: str) -> Iterator[Fault]:
    """Warnings about folders with the same identifier and class, which kohya trains as one."""
    groups: dict[str, list[str]] = {}
    for name in names:
        if match := _KOHYA_NAME.fullmatch(name):
            groups.setdefault(f"{match[2]} {match[3]}", []).append(name)
    for tokens, several in groups.items():
        if len(several) > 1:
            shown = ", ".join(f"`{name}`" for name in several[:3])
            message = f"{len(several)} folders are `{tokens}`, each a subject of its own: {shown}"
            remedy = "put their photos into one folder to train one adapter with all of them"
            yield Fault(folder, message, remedy, severity="warning")


def _tree_photos(folder: str, names: list[str]) -> str | None:
    """The folder of photos in a kohya_ss project; None if the folder is not one."""
    base = folder.rstrip("/")
    images = [name for name in names if name.casefold() in _IMAGES]
    if images and any(name.casefold() in _KOHYA_ASIDE for name in names):
        return f"{base}/{images[0]}"
    if len(names) > FEW_FOLDERS or any(_KOHYA_NAME.fullmatch(name) for name in names):
        return None
    for name in images or names:
        inner = subfolders(f"{base}/{name}")
        if any(_KOHYA_NAME.fullmatch(one) for one in inner):
            return f"{base}/{name}"
    return None


def _dreambooth(folder: str, names: list[str]) -> tuple[str, str] | None:
    """Message and remedy for the two folders of a DreamBooth script: the subject, and its class."""
    by_fold = {name.casefold(): name for name in names}
    photos = next((by_fold[one] for one in _INSTANCE if one in by_fold), None)
    images = next((by_fold[one] for one in _CLASS if one in by_fold), None)
    if photos is None or images is None or len(names) > FEW_FOLDERS:
        return None
    fields = f"id: {slug(os.path.basename(folder.rstrip('/')))}, class_noun: cat, photos: {photos}"
    if has_photos(f"{folder.rstrip('/')}/{images}"):
        fields += f", class_images: {images}"
    return (
        f"{folder} holds the photos of one subject and the images of its class, as for DreamBooth",
        f"write a file manifest.yaml beside them, with your class: `subjects: [{{{fields}}}]`",
    )


def _no_folders(folder: str) -> tuple[str, str]:
    """Message and remedy for a folder that holds no folders."""
    listing = list_folder(folder, LookBudget())
    around, _, name = folder.rstrip("/").rpartition("/")
    if listing.files:
        remedy = f"name the folder around it, {around}"
        if _KOHYA_NAME.fullmatch(name) is None:
            remedy += f", and put a subjects.csv there: `subject,class` and, below it, `{name},cat`"
        return f"{folder} holds photos, not one folder of photos per subject", remedy
    archives = [one for one in listing.siblings if one.lower().endswith(ARCHIVE_SUFFIXES)]
    if archives:
        message = f"{folder} holds archives, not folders of photos: {', '.join(archives[:3])}"
        zipped = next((one for one in archives if one.lower().endswith(".zip")), None)
        if zipped is None:
            return message, "unpack them: each subject needs a folder or a zip archive of photos"
        example = f"{slug(os.path.splitext(zipped)[0])},cat,{zipped}"
        return message, (
            "unpack them, or name each in a subjects.csv there: `subject,class,photos` and, below "
            f"it, `{example}`"
        )
    if (inside := listing.data_files()) is not None:
        return inside
    return (
        f"{folder} holds neither a manifest nor folders of photos",
        "put one folder of photos per subject there, and a subjects.csv with the columns "
        "`subject,class`",
    )


def unused_class_images(folder: str) -> Fault | None:
    """A warning about a kohya_ss project's `reg` folder beside the given folder of photos."""
    around, _, name = folder.rstrip("/").rpartition("/")
    if name.casefold() not in _IMAGES or "://" in folder:
        return None
    places = (f"{around}/{one}" for one in _REGULARISING)
    images = next((one for one in places if os.path.isdir(one) and os.listdir(one)), None)
    if images is None:
        return None
    return Fault(
        folder,
        f"the class images in {images} are not used",
        "name both folders in a dataset_config TOML, the second with `is_reg = true`",
        severity="warning",
    )


def _class_remedy(name: str) -> str:
    """How to give a folder's class noun, in the terms of the tool that its name comes from."""
    if match := re.fullmatch(r"(\d+)_([^\W_]+)[_-](\w.*)", name):
        number, identifier, noun = match.groups()
        example = f"{number}_{identifier} {noun.replace('_', ' ')}"
        return f"rename it `{example}` (repeats, identifier, class), or {_SUBJECTS_REMEDY}"
    if match := re.fullmatch(r"(\d+)_(?:\S+|(?:an?|the)\s.+)", name):
        example = f"{match[1]}_sks cat"
        return f"rename it as `{example}` (repeats, identifier, class), or {_SUBJECTS_REMEDY}"
    if re.fullmatch(r"[^\s\d]\S*\s+\S.*", name):
        return f"rename it `1_{name}` (repeats, identifier, class), or {_SUBJECTS_REMEDY}"
    return f"{_SUBJECTS_REMEDY}; photos of different subjects belong in different folders"


def _folder_rows(names: list[str], folder: str, is_split: bool) -> Iterator[ManifestRow]:
    base = folder.rstrip("/")
    for name in names:
        value: dict[str, object] = {"id": slug(name), "photos": f"{base}/{name}"}
        styles: dict[Path, CaptionStyle] = {}
        tokens = tokens_of(name.partition("_")[2]) if _KOHYA_NAME.fullmatch(name) else None
        if tokens is not None:
            value = {**value, "class_noun": tokens.class_noun, "identifier": tokens.identifier}
            remedy = f"put {tokens.identifier} into it, or move the caption files away"
            styles[()] = replace(KOHYA_TREE_STYLE, remedy=remedy)
        elif is_split:
            value["class_noun"] = name.replace("_", " ").strip()
        yield ManifestRow(
            value,
            f"{base}/{name}",
            base,
            styles=styles,
            hints={("class_noun",): _class_remedy(name)},
        )
