"""Importer of kohya-ss `dataset_config` TOML files.

Owns what each of their options means here; see docs/manifest.md for the table. In every dataset the
subsets with equal `class_tokens` are one subject, and `is_reg` subsets are the class images of the
subjects of that class. A dataset without them is trained without a prior, as kohya's scripts do.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from farm.errors import Fault
from farm.intake.faults import slug
from farm.intake.rows import Path, Row, Rows

__all__ = ["read_kohya"]

TAKEN_OVER = frozenset(
    ("image_dir", "class_tokens", "is_reg", "resolution", "batch_size", "flip_aug")
    + ("caption_extension", "subsets")
)
"""Options that mean something here."""
NEEDLESS = frozenset(
    ("num_repeats", "enable_bucket", "bucket_no_upscale", "bucket_reso_steps", "min_bucket_reso")
    + ("max_bucket_reso", "cache_latents", "cache_latents_to_disk", "num_workers")
)
"""Options about what the farm does by itself: balance, caching, cropping."""
_TABLE = re.compile(r"\s*\[\[?\s*([\w.]+)\s*\]\]?")
_KEY = re.compile(r"\s*([\w-]+)\s*=")
Options = dict[str, Any]


def read_kohya(text: str, file: str, base: str) -> Rows:
    """Read a dataset config; its faults carry the lines of the TOML file."""
    head = Row({}, file, base, 1)
    try:
        config = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        match = re.search(r"line (\d+)", str(error))
        line = int(match.group(1)) if match else None
        fault = Fault(file, f"not valid TOML: {error}", "mend the syntax", line=line)
        return Rows(head, iter(()), [fault])
    datasets = config.get("datasets")
    if not isinstance(datasets, list):
        fault = head.fault(("datasets",), "there are no `[[datasets]]`", "add one")
        return Rows(head, iter(()), [fault])
    faults: list[Fault] = []
    reader = _Reader(config, _lines(text), head, faults)
    return Rows(head, reader.subjects(), faults)


def _lines(text: str) -> dict[Path, int]:
    """The line of every table and key; the TOML reader tells none."""
    lines: dict[Path, int] = {}
    dataset, subset = -1, -1
    place: Path = ()
    for number, line in enumerate(text.splitlines(), 1):
        if table := _TABLE.match(line):
            name = table.group(1)
            if name == "datasets":
                dataset, subset = dataset + 1, -1
                place = ("datasets", dataset)
            elif name == "datasets.subsets":
                subset += 1
                place = ("datasets", dataset, "subsets", subset)
            else:
                place = (name,)
            lines[place] = number
        elif key := _KEY.match(line):
            lines.setdefault((*place, key.group(1)), number)
    return lines


@dataclass(slots=True)
class _Group:
    """The subsets of a dataset with equal class tokens."""

    place: Path
    tokens: str
    options: Options
    folders: list[str] = field(default_factory=list)


class _Reader:
    """Turns datasets into subject rows."""

    def __init__(
        self, config: Options, lines: dict[Path, int], head: Row, faults: list[Fault]
    ) -> None:
        self._config, self._lines, self._head, self._faults = config, lines, head, faults
        self._ids: set[str] = set()
        self._dropped: dict[str, Path] = {}

    def subjects(self) -> Iterator[Row]:
        """One row per subject of every dataset."""
        general = self._config.get("general", {})
        self._note(general, ("general",))
        for number, dataset in enumerate(self._config["datasets"]):
            place: Path = ("datasets", number)
            self._note(dataset, place)
            yield from self._dataset({**general, **dataset}, place)
        if self._dropped:
            names = ", ".join(f"`{name}`" for name in self._dropped)
            where = next(iter(self._dropped.values()))
            remedy = "nothing to do, unless you rely on them"
            self._tell(where, f"not taken over: {names}", remedy, is_warning=True)

    def _note(self, options: Options, place: Path) -> None:
        for name in options.keys() - TAKEN_OVER - NEEDLESS:
            self._dropped.setdefault(name, (*place, name))

    def _dataset(self, options: Options, place: Path) -> Iterator[Row]:
        groups: dict[str, _Group] = {}
        class_images: dict[str, list[str]] = {}
        for number, own in enumerate(options.get("subsets", [])):
            where = (*place, "subsets", number)
            self._note(own, where)
            subset = {**options, **own}
            folder, tokens = subset.get("image_dir"), str(subset.get("class_tokens", "")).strip()
            if not isinstance(folder, str):
                self._tell(where, "`image_dir` is missing", "name the folder of the photos")
            elif subset.get("is_reg"):
                class_images.setdefault(tokens, []).append(folder)
            else:
                group = groups.setdefault(tokens, _Group(where, tokens, subset))
                group.folders.append(folder)
        for group in groups.values():
            yield from self._subject(group, class_images)

    def _subject(self, group: _Group, class_images: dict[str, list[str]]) -> Iterator[Row]:
        identifier, _, noun = group.tokens.partition(" ")
        if not noun:
            message = f"`class_tokens` is `{group.tokens}`: it must name identifier and class"
            self._tell((*group.place, "class_tokens"), message, 'write it as "sks cat"')
            return
        recipe = self._recipe(group)
        images = class_images.get(noun, [])
        if not images:
            recipe["prior_rows"] = 0
        value: Options = {
            "id": self._new_id(group.folders[0]),
            "class_noun": noun,
            "identifier": identifier,
            "photos": group.folders,
            # kohya trains on the class tokens themselves
            "instance_prompt": "[V] {class_noun}",
            "class_prompt": "{class_noun}",
            "recipe": recipe,
        }
        if images:
            value["class_images"] = images
        written = {
            "photos": "image_dir",
            "class_noun": "class_tokens",
            "identifier": "class_tokens",
        }
        lines = {(ours,): self._line((*group.place, theirs)) for ours, theirs in written.items()}
        yield Row(
            value,
            self._head.file,
            self._head.base,
            self._line(group.place),
            {path: line for path, line in lines.items() if line is not None},
            group.place,
        )

    def _recipe(self, group: _Group) -> Options:
        options, recipe = group.options, {}
        if "batch_size" in options:
            recipe["instance_rows"] = options["batch_size"]
        if "flip_aug" in options:
            recipe["flip"] = options["flip_aug"]
        side = options.get("resolution")
        if isinstance(side, list) and len(side) == 2 and side[0] == side[1]:
            side = side[0]
        if isinstance(side, int):
            recipe["resolution_px"] = side
        elif side is not None:
            where = (*group.place, "resolution")
            message = f"the resolution {side} is not square"
            self._tell(where, message, "give one number; crops are square")
        extension = options.get("caption_extension", ".caption")
        if extension not in {".txt", ".caption"}:
            message = f"captions in `{extension}` files are not read"
            where = (*group.place, "caption_extension")
            self._tell(where, message, "name them .txt or .caption", is_warning=True)
        return recipe

    def _new_id(self, folder: str) -> str:
        stem = slug(re.sub(r"^\d+_", "", PurePosixPath(folder.rstrip("/")).name))
        name, count = stem, 2
        while name in self._ids:
            name, count = f"{stem}-{count}", count + 1
        self._ids.add(name)
        return name

    def _line(self, path: Path) -> int | None:
        """The line of an option where it stands: here, in its dataset, or in `[general]`."""
        for place in (path, (*path[:2], path[-1]), ("general", path[-1]), path[:-1]):
            if place in self._lines:
                return self._lines[place]
        return None

    def _tell(self, path: Path, message: str, remedy: str, *, is_warning: bool = False) -> None:
        at = Row({}, self._head.file, "", self._line(path))
        fault = at.fault(path, message, remedy, severity="warning" if is_warning else "error")
        self._faults.append(fault)
