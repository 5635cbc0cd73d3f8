"""Importer of kohya-ss `dataset_config` TOML files.

Owns how datasets become subjects; see docs/manifest.md for the table of options. In every dataset
the subsets with equal `class_tokens` are one subject. Its `is_reg` subsets regularise the whole
dataset: each subject uses those of its own class, or else those of the dataset. A dataset without
them is trained without a prior, as in kohya's scripts.

Single options are interpreted in ``kohya_options.py``.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from farm.errors import Fault, FaultList
from farm.intake.faults import slug
from farm.intake.formats.kohya_options import (
    ESCAPE_REMEDY,
    Options,
    caption_style,
    decorated,
    folder_fault,
    is_escaped_path,
    misspelled,
    recipe_of,
    training_settings_fault,
    unused_options,
)
from farm.intake.rows import CaptionStyle, ManifestRow, ManifestRows, Path

__all__ = ["read_kohya"]

MAX_TOML_CHARACTERS = 4_000_000
_DEEP_KEY = re.compile(r"(?:[\w\"'-]{1,64}[ \t]{0,4}\.[ \t]{0,4}){24}")
"""A dotted key with more parts than a dataset config has levels."""
_TABLE = re.compile(r"\s*\[\[?\s*([\w.]+)\s*\]\]?")
_KEY = re.compile(r"\s*([\w-]+)\s*=")
_TERMS: dict[Path, str] = {
    ("photos",): "image_dir",
    ("class_noun",): "class_tokens",
    ("identifier",): "class_tokens",
    ("instance_prompt",): "class_tokens",
    ("class_prompt",): "class_tokens",
    ("class_images",): "image_dir",
    ("recipe", "instance_rows"): "batch_size",
    ("recipe", "resolution_px"): "resolution",
    ("recipe", "flip"): "flip_aug",
}
"""The options that the farm's fields are derived from."""


def read_kohya(text: str, file: str, base: str) -> ManifestRows:
    """Read a dataset config; its faults carry the lines of the TOML file."""
    head = ManifestRow({}, file, base, 1)
    if (fault := _cost_fault(text, file)) is not None:
        return ManifestRows(head, iter(()), FaultList([fault]))
    try:
        config = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        return ManifestRows(head, iter(()), FaultList([_syntax_fault(error, text, file)]))
    except RecursionError:
        fault = Fault(file, "not valid TOML: nested too deeply", "write `[[datasets]]` tables")
        return ManifestRows(head, iter(()), FaultList([fault]))
    except ValueError:  # of Python's own conversion
        fault = Fault(file, "not valid TOML: a number has thousands of digits", "correct it")
        return ManifestRows(head, iter(()), FaultList([fault]))
    datasets = config.get("datasets")
    if not isinstance(datasets, list) or not all(isinstance(one, dict) for one in datasets):
        folder = config.get("train_data_dir")
        if isinstance(folder, str) and folder:
            fault = head.fault(*training_settings_fault(folder))
        else:
            fault = head.fault(("datasets",), "there are no `[[datasets]]`", "add one")
        return ManifestRows(head, iter(()), FaultList([fault]))
    faults = FaultList()
    reader = _Reader(config, _lines(text), head, faults)
    return ManifestRows(head, reader.subjects(), faults)


def _cost_fault(text: str, file: str) -> Fault | None:
    """The fault of a file too costly for the TOML reader: its time is quadratic in length and
    depth."""
    if len(text) > MAX_TOML_CHARACTERS:
        message = f"it is longer than {MAX_TOML_CHARACTERS // 10**6} million characters"
        return Fault(file, message, "split it into several files")
    if match := _DEEP_KEY.search(text):
        line = text.count("\n", 0, match.start()) + 1
        return Fault(file, "not valid TOML: nested too deeply", "write `[[datasets]]` tables", line)
    return None


def _syntax_fault(error: tomllib.TOMLDecodeError, text: str, file: str) -> Fault:
    match = re.search(r"line (\d+)", str(error))
    number = int(match.group(1)) if match else None
    lines = text.split("\n")
    line = lines[number - 1] if number and number <= len(lines) else ""
    if is_escaped_path(line):
        message = f"not valid TOML: {error}; a backslash in double quotes begins an escape"
        return Fault(file, message, ESCAPE_REMEDY, line=number)
    return Fault(file, f"not valid TOML: {error}", "correct the syntax", line=number)


def _lines(text: str) -> dict[Path, int]:
    """The line of every table and key, which the TOML reader does not report."""
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
    styles: list[CaptionStyle] = field(default_factory=list)
    is_used: bool = False


class _Reader:
    """Turns datasets into subject rows."""

    def __init__(
        self, config: Options, lines: dict[Path, int], head: ManifestRow, faults: FaultList
    ) -> None:
        self._config, self._lines, self._head, self._faults = config, lines, head, faults
        self._ids: set[str] = set()
        self._dropped: dict[str, Path] = {}

    def subjects(self) -> Iterator[ManifestRow]:
        """One row per subject of every dataset."""
        general = self._config.get("general", {})
        general = general if isinstance(general, dict) else {}
        self._note(general, ("general",))
        for number, dataset in enumerate(self._config["datasets"]):
            place: Path = ("datasets", number)
            self._note(dataset, place)
            yield from self._dataset({**general, **dataset}, place)
        if self._dropped:
            names = ", ".join(f"`{name}`" for name in self._dropped)
            where = next(iter(self._dropped.values()))
            remedy = "nothing to do, unless you rely on them"
            self._add_fault(where, f"not used: {names}", remedy, is_warning=True)

    def _note(self, options: Options, place: Path) -> None:
        for name in unused_options(options):
            if (meant := misspelled(name)) is not None:
                message, remedy = f"unknown option `{name}`", f"did you mean `{meant}`?"
                self._add_fault((*place, name), message, remedy)
                continue
            self._dropped.setdefault(name, (*place, name))

    def _dataset(self, options: Options, place: Path) -> Iterator[ManifestRow]:
        trained: dict[str, _Group] = {}
        class_images: dict[str, _Group] = {}
        subsets = options.get("subsets", [])
        for number, own in enumerate(subsets if isinstance(subsets, list) else []):
            where = (*place, "subsets", number)
            if not isinstance(own, dict):
                self._add_fault(where, "a subset must be a table", "write `[[datasets.subsets]]`")
                continue
            self._note(own, where)
            subset = {**options, **own}
            if (fault := folder_fault(subset)) is not None:
                self._add_fault((*where, "image_dir"), *fault)
                continue
            tokens = " ".join(str(subset.get("class_tokens") or "").split())
            groups = class_images if subset.get("is_reg") else trained
            group = groups.setdefault(tokens, _Group(where, tokens, subset))
            group.folders.append(subset["image_dir"])
            group.styles.append(self._style(subset, where, group))
        for group in trained.values():
            yield from self._subject(group, class_images)
        self._report_unused(class_images)

    def _style(self, subset: Options, where: Path, group: _Group) -> CaptionStyle:
        style, option_faults = caption_style(subset)
        for option, message, remedy in option_faults:
            self._add_fault((*where, option), message, remedy, is_warning=True)
        whole, first = decorated(group.tokens, subset), decorated(group.tokens, group.options)
        # photos without a caption take their own subset's prefix, not the first one's
        return style if whole == first else style.with_fallback(whole)

    def _subject(self, group: _Group, class_images: dict[str, _Group]) -> Iterator[ManifestRow]:
        identifier, _, noun = group.tokens.partition(" ")
        if not noun:
            self._check_tokens(group)
            return
        recipe, option_faults = recipe_of(group.options)
        for option, message, remedy in option_faults:
            self._add_fault((*group.place, option), message, remedy)
        images = class_images.get(noun) or next(iter(class_images.values()), None)
        if images is None:
            recipe["prior_rows"] = 0
        value: Options = {
            "id": self._new_id(group.folders[0]),
            "class_noun": noun,
            "identifier": identifier,
            "photos": group.folders,
            # kohya trains on the class tokens themselves
            "instance_prompt": decorated("[V] {class_noun}", group.options),
            "class_prompt": "{class_noun}",
            "recipe": recipe,
        }
        styles: dict[Path, CaptionStyle] = {
            ("photos", index): style for index, style in enumerate(group.styles)
        }
        if images is not None:
            images.is_used = True
            value["class_images"] = images.folders
            if images.tokens:
                value["class_prompt"] = decorated(images.tokens, images.options)
            styles |= {("class_images", index): one for index, one in enumerate(images.styles)}
        yield ManifestRow(
            value,
            self._head.file,
            self._head.base,
            self._line(group.place),
            self._value_lines(group, images),
            group.place,
            styles=styles,
            terms=_TERMS,
        )

    def _value_lines(self, group: _Group, images: _Group | None) -> dict[Path, int]:
        lines = {ours: self._line((*group.place, theirs)) for ours, theirs in _TERMS.items()}
        if images is not None:
            lines["class_prompt",] = self._line((*images.place, "class_tokens"))
            lines["class_images",] = self._line((*images.place, "image_dir"))
        return {path: line for path, line in lines.items() if line is not None}

    def _check_tokens(self, group: _Group) -> None:
        folder = PurePosixPath(group.folders[0].rstrip("/")).name
        named = re.fullmatch(r"\d+_(\S+\s+.+)", folder)
        example = named.group(1) if named else "sks cat"
        message = f"`class_tokens` is `{group.tokens}`: it must name identifier and class"
        if not group.tokens:
            message = "`class_tokens` is missing: it must name identifier and class"
        remedy = f'write `class_tokens = "{example}"`: the first word is the identifier'
        self._add_fault((*group.place, "class_tokens"), message, remedy)

    def _report_unused(self, class_images: dict[str, _Group]) -> None:
        for group in class_images.values():
            if group.is_used:
                continue
            folders = ", ".join(group.folders)
            message = f"its class images are not used: {folders}"
            remedy = (
                "each subject takes the `is_reg` subsets of one class; give these the class of a "
                "subject as `class_tokens`, or put them into a dataset of their own"
            )
            self._add_fault(group.place, message, remedy, is_warning=True)

    def _new_id(self, folder: str) -> str:
        name = PurePosixPath(folder.replace("\\", "/").rstrip("/")).name
        stem = slug(re.sub(r"^\d+_", "", name))
        name, count = stem, 2
        while name in self._ids:
            name, count = f"{stem}-{count}", count + 1
        self._ids.add(name)
        return name

    def _line(self, path: Path) -> int | None:
        """The line of an option: in its subset, its dataset, or `[general]`."""
        for place in (path, (*path[:2], path[-1]), ("general", path[-1]), path[:-1]):
            if place in self._lines:
                return self._lines[place]
        return None

    def _add_fault(
        self, path: Path, message: str, remedy: str, *, is_warning: bool = False
    ) -> None:
        at = ManifestRow({}, self._head.file, "", self._line(path))
        fault = at.fault(path, message, remedy, severity="warning" if is_warning else "error")
        self._faults.append(fault)
