"""Settings files of other trainers that are given as a manifest.

Owns how they are recognised and what to write instead. kohya's own dataset configs are read, in
``kohya.py``.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterator, Mapping
from typing import Any

from farm.intake.faults import slug
from farm.intake.formats.kohya_options import training_settings_fault

__all__ = ["concept_of", "settings_of"]


_OTHERS: tuple[tuple[str, frozenset[str], tuple[str, ...]], ...] = (
    ("diffusion-pipe", frozenset(("directory",)), ("directory", "path")),
    ("diffusion-pipe", frozenset(("dataset", "model", "output_dir")), ("photos",)),
    ("AutoTrain", frozenset(("base_model", "project_name")), ("data", "path")),
    ("SimpleTuner", frozenset(("--data_backend_config",)), ("photos",)),
    ("SimpleTuner", frozenset(("data_backend_config",)), ("photos",)),
    ("EveryDream", frozenset(("data_root", "resume_ckpt")), ("data_root",)),
    ("x-flux", frozenset(("data_config",)), ("data_config", "img_dir")),
)
"""Trainers, the keys by which their settings are recognised, and where these name the photos."""


def settings_of(head: Mapping[str, Any]) -> tuple[str, str] | None:
    """Message and remedy if a document is another trainer's settings.

    Args:
        head: the document, without its list of subjects if it has one.
    """
    if "subjects" not in head and (fault := training_settings_fault(dict(head))) is not None:
        return fault[1:]  # kohya_ss saves JSON
    if isinstance(config := head.get("config"), dict) and "process" in config:
        return _refusal("ai-toolkit", next(_toolkit_folders(config), ""))
    if "concept_file_name" in head or {"training_method", "concepts"} <= head.keys():
        concepts = head.get("concepts")
        first = concepts[0] if isinstance(concepts, list) and concepts else None
        return _refusal("OneTrainer", _text(first, "path"))
    for tool, names, place in _OTHERS:
        if names <= head.keys():
            inner = head.get(place[0])
            found = inner if len(place) == 1 else _text(_one(inner), place[1])
            return _refusal(tool, found if isinstance(found, str) else "")
    for name in ("instance_data_dir", "dataset_name", "pretrained_model_name_or_path"):
        if name in head:
            return _refusal("a diffusers script", _text(head, "instance_data_dir"))
    return None


def concept_of(row: Mapping[str, Any]) -> tuple[str, str] | None:
    """Message and remedy if a list's first item is another trainer's description of a data set."""
    if "instance_data_dir" in row:
        tool = "SimpleTuner" if "type" in row else "a DreamBooth script"
        return _refusal(tool, _text(row, "instance_data_dir"))
    is_concept = isinstance(row.get("path"), str) and {"image", "text"} & row.keys()
    if is_concept and all(isinstance(row.get(name, {}), dict) for name in ("image", "text")):
        return _refusal("OneTrainer", _text(row, "path"))
    return None


def _toolkit_folders(config: Mapping[str, Any]) -> Iterator[str]:
    for process in _items(config, "process"):
        for dataset in _items(process, "datasets"):
            if folder := _text(dataset, "folder_path"):
                yield folder


def _items(value: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    found = value.get(name)
    return [one for one in found if isinstance(one, dict)] if isinstance(found, list) else []


def _one(value: object) -> object:
    """A value, or the first of a list of them."""
    return value[0] if isinstance(value, list) and value else value


def _text(value: object, name: str) -> str:
    found = value.get(name) if isinstance(value, dict) else None
    return found if isinstance(found, str) else ""


def _refusal(tool: str, folder: str) -> tuple[str, str]:
    folder = folder.replace("\\", "/").rstrip("/") or "photos/tom"
    name = slug(posixpath.basename(folder))
    return (
        f"these are settings of {tool}, not a manifest",
        "list its photos in a YAML file, with your class: "
        f"`subjects: [{{id: {name}, class_noun: cat, photos: '{folder}'}}]`",
    )
