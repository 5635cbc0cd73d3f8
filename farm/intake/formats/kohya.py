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
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from farm.errors import Fault, FaultList
from farm.intake.faults import slug, unused
from farm.intake.formats.kohya_options import (
    ESCAPE_REMEDY,
    Options,
    bare_class,
    caption_style,
    decorated,
    folder_fault,
    is_escaped_path,
    missing_subsets,
    misspelled,
    no_repeats,
    recipe_of,
    remedy_of_syntax,
    tokens_of,
    training_settings_fault,
    unused_options,
)
from farm.intake.formats.other_tools import settings_of
from farm.intake.rows import CaptionStyle, ManifestRow, ManifestRows, Path, shown_field

__all__ = ["read_kohya", "read_kohya_config"]

MAX_TOML_CHARACTERS = 4_000_000
_DEEP_KEY = re.compile(
    r"""(?<![\w"'-])(?:(?:[\w-]++|"(?:[^"\\\n]|\\.)*+"|'[^'\n]*+')[ \t]*+\.[ \t]*+){24}"""
)
"""A dotted key with more parts than a dataset config has levels."""
_TABLE = re.compile(r"\s*+\[\[?([\w.\"' \t]++)\]\]?")
_KEY = re.compile(r"\s*[\"']?([\w-]+)[\"']?\s*=")
_LONG_QUOTE = re.compile(r"\"{3}|'{3}")
"""Begins and ends a text of several lines."""
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
_OF_ALL: dict[str, tuple[object, str]] = {
    "num_repeats": (1, "all photos of one subject are shown equally often"),
    "flip_aug": (False, "the first one holds for all photos of one subject"),
}
"""Options that kohya's scripts obey for each subset: the default, and what is done instead."""


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
    return read_kohya_config(config, _lines(text), head)


def read_kohya_config(
    config: Options, lines: Mapping[Path, int], head: ManifestRow
) -> ManifestRows:
    """Read a dataset config that was parsed from TOML or JSON.

    Args:
        lines: of its tables and keys, as far as they are known.
        head: of the file, for faults.
    """
    datasets = config.get("datasets")
    if isinstance(datasets, list) and all(isinstance(one, dict) for one in datasets):
        faults = FaultList()
        reader = _Reader(config, lines, head, faults)
        return ManifestRows(head, reader.subjects(), faults)
    sections = [config, *(one for one in config.values() if isinstance(one, dict))]
    settings = next(filter(None, map(training_settings_fault, sections)), None)
    if settings is not None:
        fault = head.fault(*settings)
    elif (refusal := settings_of(config)) is not None:
        fault = head.fault((), *refusal)
    elif isinstance(config.get("subjects"), list):
        message = "it lists subjects, but a TOML file is read as kohya's dataset config"
        fault = head.fault(("subjects",), message, "write the manifest as YAML or JSON")
    elif isinstance(datasets, dict):
        message, remedy = "`[datasets]` is a single table", "write `[[datasets]]`, in two brackets"
        fault = ManifestRow({}, head.file, "", lines.get(("datasets", 0))).fault(
            ("datasets",), message, remedy
        )
    else:
        fault = head.fault(("datasets",), "there are no `[[datasets]]`", "add one")
    return ManifestRows(head, iter(()), FaultList([fault]))


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
    return Fault(file, f"not valid TOML: {error}", remedy_of_syntax(line), line=number)


def _wrong_type(subset: Options) -> tuple[str, str, str] | None:
    """Option, message and remedy of a subset's option of another type."""
    tokens, is_reg = subset.get("class_tokens"), subset.get("is_reg")
    if tokens is not None and not isinstance(tokens, str):
        return "class_tokens", "`class_tokens` is not text", 'write `class_tokens = "sks cat"`'
    if is_reg is not None and not isinstance(is_reg, bool):
        return "is_reg", f"`{is_reg}` is not true or false", "write true or false, without quotes"
    return None


def _outside(group: _Group, images: _Group | None) -> Iterator[tuple[Path, str]]:
    """The whole names of a subject's values that are written in other subsets than its first."""
    for index, place in enumerate(group.places):
        if place != group.place:
            yield ("photos", index), shown_field((*place, "image_dir"))
    if images is not None:
        yield ("class_prompt",), shown_field((*images.place, "class_tokens"))
        yield ("class_images",), shown_field((*images.place, "image_dir"))
        for index, place in enumerate(images.places):
            yield ("class_images", index), shown_field((*place, "image_dir"))


def _lines(text: str) -> dict[Path, int]:
    """The line of every table and key, which the TOML reader does not report."""
    lines: dict[Path, int] = {}
    dataset, subset = -1, -1
    place: Path = ()
    is_inside = False
    for number, line in enumerate(text.split("\n"), 1):
        was_inside, is_inside = is_inside, is_inside ^ (len(_LONG_QUOTE.findall(line)) % 2 == 1)
        if was_inside:
            continue
        if table := _TABLE.match(line):
            name = re.sub(r"[\"' \t]", "", table.group(1))
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
    places: list[Path] = field(default_factory=list)
    """Of the subset of each folder."""
    subsets: list[Options] = field(default_factory=list)
    styles: list[CaptionStyle] = field(default_factory=list)
    is_used: bool = False


class _Reader:
    """Turns datasets into subject rows."""

    def __init__(
        self, config: Options, lines: Mapping[Path, int], head: ManifestRow, faults: FaultList
    ) -> None:
        self._config, self._lines, self._head, self._faults = config, lines, head, faults
        self._ids: set[str] = set()
        self._tokens: dict[str, Path] = {}
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
        subsets = options.get("subsets")
        if not isinstance(subsets, list) or not subsets:
            self._add_fault(place, *missing_subsets(options))
            return
        for number, own in enumerate(subsets):
            where = (*place, "subsets", number)
            if not isinstance(own, dict):
                self._add_fault(where, "a subset must be a table", "write `[[datasets.subsets]]`")
                continue
            self._note(own, where)
            subset = {**options, **own}
            if (fault := folder_fault(subset)) is not None:
                self._add_fault((*where, "image_dir"), *fault)
                continue
            if (wrong := _wrong_type(subset)) is not None:
                self._add_fault((*where, wrong[0]), *wrong[1:])
                continue
            if (left_out := no_repeats(subset)) is not None:
                self._add_fault((*where, "num_repeats"), *left_out, is_warning=True)
                continue
            tokens = " ".join((subset.get("class_tokens") or "").split())
            groups = class_images if subset.get("is_reg") else trained
            group = groups.setdefault(tokens, _Group(where, tokens, subset))
            group.folders.append(subset["image_dir"])
            group.places.append(where)
            group.subsets.append(subset)
            group.styles.append(self._style(subset, where, group))
        for group in trained.values():
            yield from self._subject(group, class_images)
        self._report_unused(class_images, bool(trained))

    def _style(self, subset: Options, where: Path, group: _Group) -> CaptionStyle:
        style, option_faults = caption_style(subset)
        for option, message, remedy in option_faults:
            self._add_fault((*where, option), message, remedy, is_warning=True)
        whole, first = decorated(group.tokens, subset), decorated(group.tokens, group.options)
        # photos without a caption take their own subset's prefix, not the first one's
        return style if whole == first else style.with_fallback(whole)

    def _subject(self, group: _Group, class_images: dict[str, _Group]) -> Iterator[ManifestRow]:
        tokens = tokens_of(group.tokens)
        if tokens is None:
            self._check_tokens(group)
            return
        noun = tokens.class_noun
        self._note_repeated(group)
        recipe, option_faults = recipe_of(group.options)
        for option, message, remedy in option_faults:
            self._add_fault((*group.place, option), message, remedy)
        of_class = (one for one in class_images.values() if bare_class(one.tokens) == noun)
        images = next(of_class, None) or next(iter(class_images.values()), None)
        if images is None:
            recipe["prior_rows"] = 0
        value: Options = {
            "id": self._new_id(group.folders[0]),
            "class_noun": noun,
            "identifier": tokens.identifier,
            "photos": group.folders,
            # kohya trains on the class tokens themselves
            "instance_prompt": decorated(tokens.prompt, group.options),
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
            terms=_TERMS | dict(_outside(group, images)),
        )

    def _note_repeated(self, group: _Group) -> None:
        first = self._tokens.setdefault(group.tokens, group.place)
        if first != group.place:
            message = f"`{group.tokens}` is a subject of another dataset too; each has its adapter"
            remedy = "put the subsets into one dataset to train one adapter with all of them"
            self._add_fault((*group.place, "class_tokens"), message, remedy, is_warning=True)
        for name, (default, done) in _OF_ALL.items():
            values = [subset.get(name, default) for subset in group.subsets]
            other = next((at for at, value in enumerate(values) if value != values[0]), None)
            if other is not None:
                message = f"`{name}` differs from that of {shown_field(group.place)}: {done}"
                remedy = "nothing to do, unless you rely on it"
                place = (*group.places[other], name)
                self._add_fault(place, message, remedy, is_warning=True)

    def _value_lines(self, group: _Group, images: _Group | None) -> dict[Path, int]:
        lines = {ours: self._line((*group.place, theirs)) for ours, theirs in _TERMS.items()}
        places = {"photos": group.places, "class_images": images.places if images else []}
        for name, subsets in places.items():
            for index, place in enumerate(subsets):
                lines[name, index] = self._line((*place, "image_dir"))
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

    def _report_unused(self, class_images: dict[str, _Group], has_subjects: bool) -> None:
        for group in class_images.values():
            if group.is_used:
                continue
            folders = ", ".join(group.folders)
            message = f"its class images are not used: {folders}"
            remedy = (
                "each subject takes the `is_reg` subsets of one class; give these the class of a "
                "subject as `class_tokens`, or put them into a dataset of their own"
            )
            if not has_subjects:
                remedy = "move this subset into the dataset of the photos that it regularises"
            self._add_fault(group.place, message, remedy, is_warning=True)

    def _new_id(self, folder: str) -> str:
        name = PurePosixPath(folder.replace("\\", "/").rstrip("/")).name
        return unused(slug(re.sub(r"^\d+_", "", name)), self._ids)

    def _line(self, path: Path) -> int | None:
        """The line of an option: in its subset, its dataset, or `[general]`."""
        around = (path[:length] for length in range(len(path) - 1, 0, -1))
        for place in (path, (*path[:2], path[-1]), ("general", path[-1]), *around):
            if place in self._lines:
                return self._lines[place]
        return None

    def _add_fault(
        self, path: Path, message: str, remedy: str, *, is_warning: bool = False
    ) -> None:
        at = ManifestRow({}, self._head.file, "", self._line(path))
        fault = at.fault(path, message, remedy, severity="warning" if is_warning else "error")
        self._faults.append(fault)
