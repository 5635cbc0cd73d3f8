"""Importer of `concepts_list.json`, the list of subjects of DreamBooth scripts.

Owns how a concept becomes a subject: the identifier is the word in which its two prompts differ.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from farm.errors import FaultList, PhotoFault
from farm.intake.faults import slug, unused
from farm.intake.photos.listings import has_photos
from farm.intake.photos.uris import check_reference
from farm.intake.rows import ManifestRow, ManifestRows, Path, join_url

__all__ = ["CONCEPTS_NAME", "is_concept", "read_concepts"]

CONCEPTS_NAME = "concepts_list.json"
_TERMS: dict[Path, str] = {
    ("photos",): "instance_data_dir",
    ("class_noun",): "instance_prompt",
    ("identifier",): "instance_prompt",
    ("instance_prompt",): "instance_prompt",
    ("class_prompt",): "class_prompt",
    ("class_images",): "class_data_dir",
}
"""The options that the farm's fields are derived from."""
_ARTICLES = frozenset(("a", "an", "the"))
_AFTER_NOUN = frozenset(("in", "on", "at", "with", "by", "near", "under", "wearing", "from"))
"""Words that end a class noun: `photo of sks dog in a bucket`."""


def is_concept(value: Mapping[str, Any]) -> bool:
    """Whether an item describes a subject by folders and the two prompts of DreamBooth."""
    names = ("instance_data_dir", "instance_prompt", "class_prompt")
    return all(isinstance(value.get(name), str) for name in names) and "type" not in value


def read_concepts(
    rows: Iterable[ManifestRow], head: ManifestRow, faults: FaultList
) -> ManifestRows:
    """Read concepts as subjects.

    Args:
        faults: of the list so far; grows while the subjects are consumed.
    """
    return ManifestRows(head, _subjects(rows, faults), faults)


def _subjects(rows: Iterable[ManifestRow], faults: FaultList) -> Iterator[ManifestRow]:
    ids: set[str] = set()
    for row in rows:
        if not is_concept(row.value):
            message = "it lacks `instance_data_dir`, `instance_prompt` or `class_prompt`"
            faults.append(row.fault((), message, "write all three, as the other concepts do"))
            continue
        words = _subject_words(row.value["instance_prompt"], row.value["class_prompt"])
        if words is None:
            message = "it does not differ from `class_prompt` in a single word, the identifier"
            remedy = "write both alike but for it: `photo of sks cat` and `photo of a cat`"
            faults.append(row.fault(("instance_prompt",), message, remedy))
            continue
        identifier, noun, prompt = words
        folder = row.value["instance_data_dir"]
        value: dict[str, Any] = {
            "id": unused(slug(posixpath.basename(folder.replace("\\", "/").rstrip("/"))), ids),
            "photos": folder,
            "class_noun": noun,
            "identifier": identifier,
            "instance_prompt": prompt,
            "class_prompt": row.value["class_prompt"],
        }
        if (images := _class_images(row, faults)) is not None:
            value["class_images"] = images
        _note_others(row, faults)
        lines = {ours: line for ours, name in _TERMS.items() if (line := row.lines.get((name,)))}
        yield ManifestRow(value, row.file, row.base, row.line, lines, row.prefix, terms=_TERMS)


def _class_images(row: ManifestRow, faults: FaultList) -> str | None:
    """The folder of class images; None if there is none yet, as before a script's first run."""
    folder = row.value.get("class_data_dir")
    if not isinstance(folder, str) or not folder.strip():
        return None
    place = join_url(row.base, folder)
    try:
        check_reference(folder, is_remote="://" in row.base)
    except PhotoFault:
        return folder  # refused with its reason where it is listed
    if has_photos(place):
        return folder
    message = f"{place} holds no class images, so they are generated"
    remedy = "nothing to do, unless you have them; then correct the path"
    faults.append(row.fault(("class_data_dir",), message, remedy, severity="warning"))
    return None


def _note_others(row: ManifestRow, faults: FaultList) -> None:
    others = [name for name, cell in row.value.items() if cell and name not in _TERMS.values()]
    if others:
        message = f"not used: {', '.join(f'`{name}`' for name in others)}"
        remedy = "nothing to do, unless you rely on them"
        faults.append(row.fault((others[0],), message, remedy, severity="warning"))


def _subject_words(instance: str, class_prompt: str) -> tuple[str, str, str] | None:
    """Identifier, class noun, and the prompt with `[V]`; None if it is not one word that differs.

    Args:
        instance: `a photo of sks dog`.
        class_prompt: `a photo of a dog`.
    """
    words = instance.split()
    plain = [_plain(word) for word in words]
    known = [_plain(word) for word in class_prompt.split()]
    own = [place for place, word in enumerate(plain) if word not in {*known, *_ARTICLES}]
    if len(own) != 1:
        return None
    place = own[0]
    noun = list(_noun(words[place + 1 :]))
    if not noun:  # `photo of sks` beside `photo of a dog`
        noun = [word for word in known if word not in {*plain, *_ARTICLES}]
    identifier = words[place].strip(",.;:")
    if not noun or not identifier:
        return None
    words[place] = words[place].replace(identifier, "[V]")
    return identifier, " ".join(noun), " ".join(words)


def _noun(words: list[str]) -> Iterator[str]:
    """The words up to the end of a class noun."""
    for word in words:
        if _plain(word) in _AFTER_NOUN:
            return
        yield word.rstrip(",.;:")
        if word[-1] in ",.;:":
            return


def _plain(word: str) -> str:
    return word.strip(",.;:").casefold()
