"""Interpretation of the options in kohya-ss `dataset_config` files.

Owns which options are used, which need no action, and which cause a warning. ``kohya.py`` turns
datasets into subjects.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from farm.intake.faults import LIKE_AN_OPTION, closest
from farm.intake.rows import CaptionStyle

__all__ = [
    "ESCAPE_REMEDY",
    "NO_REPEATS",
    "Options",
    "Tokens",
    "bare_class",
    "caption_style",
    "decorated",
    "folder_fault",
    "is_escaped_path",
    "missing_subsets",
    "is_switched_off",
    "misspelled",
    "no_repeats",
    "recipe_of",
    "remedy_of_syntax",
    "tokens_of",
    "training_settings_fault",
    "unused_options",
]

Options = dict[str, Any]
OptionFaults = list[tuple[str, str, str]]
"""Option, message and remedy of each."""

TAKEN_OVER = frozenset(
    ("image_dir", "class_tokens", "is_reg", "resolution", "batch_size", "flip_aug")
    + ("caption_extension", "caption_prefix", "caption_suffix", "metadata_file", "subsets")
)
"""Options that are used."""
NEEDLESS = frozenset(
    ("num_repeats", "enable_bucket", "bucket_no_upscale", "bucket_reso_steps", "min_bucket_reso")
    + ("max_bucket_reso", "cache_latents", "cache_latents_to_disk", "num_workers", "cache_info")
    + ("skip_cache_check", "resize_interpolation")
)
"""Options for what the farm does automatically: balance, caching, cropping."""
NEUTRAL: dict[str, tuple[object, ...]] = {
    # without shuffling there is nothing to keep in place
    "keep_tokens": (0, 1),
    "caption_separator": (",",),
}
"""Options whose usual values change nothing; any option that is off (false, 0, "") is neutral."""
KNOWN_UNUSED = frozenset(
    ("keep_tokens", "keep_tokens_separator", "secondary_separator", "shuffle_caption")
    + ("caption_separator", "caption_dropout_rate", "caption_dropout_every_n_epochs")
    + ("caption_tag_dropout_rate", "color_aug", "face_crop_aug_range", "random_crop")
    + (
        "token_warmup_min",
        "token_warmup_step",
        "enable_wildcard",
        "alpha_mask",
        "network_multiplier",
    )
    + ("conditioning_data_dir", "custom_attributes", "debug_dataset", "validation_split")
    + ("validation_seed", "batch_size_per_device")
)
"""Options of kohya's scripts that have no effect here, and that no other option misspells."""
DEFAULT_CAPTION_EXTENSION = ".caption"
"""The default of kohya's scripts."""
ESCAPE_REMEDY = (
    "write the path in single quotes, 'C:\\photos\\cat', or with slashes, \"C:/photos/cat\""
)
NO_REPEATS = (
    "it has no repeats, so its photos are not used, as in kohya's scripts",
    "write 1 or more to use them",
)
"""Message and remedy for a folder that is switched off."""
_SWITCHED_OFF = re.compile(r"0+_\S+\s+.+")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


_ARTICLE = r"(?:(?:an?|the)\s+)?"
_OPENING = rf"{_ARTICLE}(?:(?:photo|photograph|picture|image|portrait)\s+of\s+)?{_ARTICLE}"
_TOKENS = re.compile(
    rf"(?P<opening>{_OPENING})(?P<identifier>\S+?)(?P<comma>,?) (?P<noun>.+)",
    re.IGNORECASE,
)
"""``sks cat``; ``sks, cat`` as tags are written; ``a photo of sks cat``."""
_ORDINARY = frozenset(("a", "an", "the", "of", "photo", "photograph", "picture", "image"))


@dataclass(frozen=True, slots=True)
class Tokens:
    """A subset's class tokens, or the words in the name of a folder."""

    identifier: str
    class_noun: str
    prompt: str
    """The whole, with `[V]` and `{class_noun}`."""


def tokens_of(text: str) -> Tokens | None:
    """The parts of class tokens; None if they name no identifier and class."""
    match = _TOKENS.fullmatch(" ".join(text.split()))
    if match is None or match["identifier"].casefold() in _ORDINARY:
        return None
    noun = match["noun"].rstrip(" ,;.")
    end = match["noun"][len(noun) :]
    prompt = f"{match['opening']}[V]{match['comma']} {{class_noun}}{end}"
    return Tokens(match["identifier"], noun, prompt) if noun else None


def bare_class(text: str) -> str:
    """Class tokens without an opening such as `a photo of a`."""
    return re.sub(rf"^{_OPENING}", "", text, count=1, flags=re.IGNORECASE)


def is_escaped_path(line: str) -> bool:
    """Whether a line of TOML has a backslash inside double quotes, as a path of Windows."""
    return re.search(r'"[^"]*\\', line) is not None


def remedy_of_syntax(line: str) -> str:
    """What to write in place of a line that is not valid TOML."""
    name, _, value = (part.strip() for part in line.partition("="))
    if re.search("[“”„‘’«»]", line):
        return "write straight quotes: \" or '"
    if re.fullmatch("true|false", value, re.IGNORECASE):
        return f"write `{name} = {value.lower()}`"
    if re.fullmatch(r"\d+(\s*,\s*\d+)+", value):
        return f"write several numbers in brackets: `{name} = [{value}]`"
    if re.fullmatch(r"[^\W\d][\w ./:-]*", value):
        return f'write text in quotes: `{name} = "{value}"`'
    return "correct the syntax"


def unused_options(options: Options) -> Iterator[str]:
    """The options that are set but have no effect."""
    for name, value in options.items():
        if name in TAKEN_OVER or name in NEEDLESS or value in (False, 0, 0.0, "", None):
            continue
        if value in NEUTRAL.get(name, ()) and not options.get("shuffle_caption"):
            continue
        yield name


def misspelled(name: str) -> str | None:
    """The option that is used and that an unknown name nearly spells."""
    if name in KNOWN_UNUSED:
        return None
    return closest(name, TAKEN_OVER, LIKE_AN_OPTION)


def no_repeats(subset: Options) -> tuple[str, str] | None:
    """Message and remedy of a subset that kohya's scripts leave out."""
    repeats = subset.get("num_repeats", 1)
    if not isinstance(repeats, int) or repeats > 0:
        return None
    return NO_REPEATS


def is_switched_off(name: str) -> bool:
    """Whether a folder is named so that kohya's scripts leave it out: ``0_sks cat``."""
    return _SWITCHED_OFF.fullmatch(name) is not None


def missing_subsets(dataset: Options) -> tuple[str, str]:
    """Message and remedy of a dataset without subsets."""
    for name in ("image_dir", "image_directory", "video_directory", "image_jsonl_file"):
        if isinstance(folder := dataset.get(name), str):
            if name == "video_directory":
                return "its `video_directory` holds videos, not photos", "save still frames of them"
            tool = "" if name == "image_dir" else ", as musubi-tuner's"
            return (
                f"the dataset has `{name}` of its own{tool}, but no subsets",
                f"write `[[datasets.subsets]]`, and below it `image_dir = '{folder}'` and "
                "`class_tokens = 'sks cat'` with your identifier and class",
            )
    return "the dataset has no subsets", "add `[[datasets.subsets]]` with `image_dir` below it"


def training_settings_fault(settings: Options) -> tuple[tuple[str], str, str] | None:
    """Field, message and remedy of a file with kohya's settings for a training; None for others."""
    for name, remedy in (
        ("dataset_config", "name its dataset config instead, {}"),
        ("train_data_dir", "name its folder of photos instead, {}"),
    ):
        place = settings.get(name)
        if isinstance(place, str) and place:
            message = "these are kohya's settings of a training, not a dataset config"
            return (name,), message, f"{remedy.format(place)}; recipe fields are given with --set"
    return None


def folder_fault(subset: Options) -> tuple[str, str] | None:
    """Message and remedy of a fault in a subset's folder, or None."""
    folder = subset.get("image_dir")
    if subset.get("metadata_file"):
        return (
            "captions of a `metadata_file` are not read",
            "write them to caption files beside the photos, and name `image_dir` alone",
        )
    if isinstance(folder, list):
        return "`image_dir` is a list", "write one `[[datasets.subsets]]` for each folder"
    if not isinstance(folder, str) or not folder.strip():
        return "`image_dir` is missing", "name the folder of the photos"
    if _CONTROL.search(folder):
        shown = folder.encode("unicode_escape").decode()
        return (
            f"the folder reads `{shown}`: a backslash in double quotes begins an escape",
            ESCAPE_REMEDY,
        )
    return None


def decorated(text: str, options: Options) -> str:
    """A caption with the subset's prefix and suffix."""
    parts = (_text(options, "caption_prefix"), text, _text(options, "caption_suffix"))
    return " ".join(part for part in parts if part)


def _text(options: Options, name: str) -> str:
    return " ".join(str(options.get(name) or "").split())


def caption_style(subset: Options) -> tuple[CaptionStyle, OptionFaults]:
    """How a subset's captions are read."""
    faults: OptionFaults = []
    given = subset.get("caption_extension", DEFAULT_CAPTION_EXTENSION)
    is_given = isinstance(given, str) and bool(given.strip()) and "caption_extension" in subset
    extension = given.strip() if is_given else DEFAULT_CAPTION_EXTENSION
    if not is_given and "caption_extension" in subset:
        message = f"`{given}` is no extension; `{extension}` is used"
        faults.append(("caption_extension", message, 'write one, such as ".txt"'))
    elif not extension.startswith("."):
        extension = f".{extension}"
        message = f"`{given}` is read as `{extension}`; kohya's scripts want the dot"
        faults.append(("caption_extension", message, f'write "{extension}"'))
    tokens = tokens_of(_text(subset, "class_tokens"))
    identifier = tokens.identifier if tokens is not None else "sks"
    style = CaptionStyle(
        suffixes=(extension.lower(),),
        has_tables=False,
        takes_first_line=True,
        prefix=_text(subset, "caption_prefix"),
        suffix=_text(subset, "caption_suffix"),
        unread_suffix="" if is_given else ".txt",
        remedy=(
            f'put {identifier} into it, or before every caption: `caption_prefix = "{identifier}"`'
        ),
    )
    return style, faults


def recipe_of(options: Options) -> tuple[Options, OptionFaults]:
    """The fields of the recipe that a subset's options give."""
    recipe: Options = {}
    faults: OptionFaults = []
    if "batch_size" in options:
        recipe["instance_rows"] = options["batch_size"]
    if "flip_aug" in options:
        recipe["flip"] = options["flip_aug"]
    side = options.get("resolution")
    if isinstance(side, str) and re.fullmatch(r"\d{1,9}(\s*[,x]\s*\d{1,9})?", side.strip()):
        side = [int(part) for part in re.split("[,x]", side)]
    if isinstance(side, list) and side and all(one == side[0] for one in side):
        side = side[0]
    if isinstance(side, float) and side.is_integer():
        side = int(side)
    if isinstance(side, int):
        recipe["resolution_px"] = side
    elif isinstance(side, list):
        message = f"the resolution {side} is not square"
        faults.append(("resolution", message, "give one number; crops are square"))
    elif side is not None:
        message = f"the resolution `{side}` is no number of pixels"
        faults.append(("resolution", message, "write one, such as 512; crops are square"))
    return recipe, faults
