"""An adapter's folder as one namespace may see it, if several share the job.

Owns what is left out and rewritten: names, dates, prompts and sample images of the namespace that
trained it, in the record, the card and the kohya file's header. The weights stay as they are.
"""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from farm.adapters.file_names import KOHYA_ENDING, RECORD_FILE
from farm.adapters.files.model_card import model_card
from farm.adapters.names import SAMPLES, NamedAdapter
from farm.adapters.record import AdapterRecord
from farm.keys import file_digest

__all__ = ["make_own_copy", "own_files"]

CARD = "README.md"


def own_files(record: AdapterRecord, named: NamedAdapter) -> frozenset[str] | None:
    """The files of a committed adapter that a name may have; None if all of it is the name's own.

    Of the sample images these are the name's own; of other files, all.
    """
    files = frozenset(
        file for file in record.files if not file.startswith(SAMPLES) or named.shows(file, record)
    )
    is_whole = files == record.files.keys() and not _is_renamed(record, named)
    return None if is_whole else files


def make_own_copy(folder: Path, record: AdapterRecord, named: NamedAdapter) -> AdapterRecord:
    """Rewrite a folder with a name's own files, so that nothing in it is another namespace's.

    Args:
        folder: contains the files that ``own_files`` names.
        record: of the adapter, as committed.

    Returns:
        The record as written.
    """
    files = own_files(record, named)
    kept = sorted(files if files is not None else record.files)
    pictures = {file: prompt for file, prompt in record.sample_prompts.items() if file in kept}
    changes: dict[str, object] = {"sample_prompts": pictures}
    if _is_renamed(record, named):
        changes |= _own_facts(record, named)
        kept = _rename_kohya_files(folder, kept, record.model_copy(update=changes))
    own = record.model_copy(update=changes)
    kohya_name = next((file for file in kept if file.endswith(KOHYA_ENDING)), None)
    if CARD in kept:
        shown = [(file, pictures.get(file, "")) for file in kept if file.startswith(SAMPLES)]
        card = folder / CARD
        card.write_text(model_card(own, shown, kohya_name), encoding="utf-8")
    digests = {file: file_digest(folder / file) for file in kept}
    own = own.model_copy(update={"files": digests})
    (folder / RECORD_FILE).write_text(own.to_json(), encoding="utf-8")
    return own


def _is_renamed(record: AdapterRecord, named: NamedAdapter) -> bool:
    return named.namespace != record.namespace


def _own_facts(record: AdapterRecord, named: NamedAdapter) -> dict[str, object]:
    """Fields of the record for a namespace that did not train it.

    Its own class noun and instance prompt are not stored: the job's key covers only the prompts
    that the photos were trained on.
    """
    facts: dict[str, object] = {
        "subject_id": named.name,
        "namespace": named.namespace,
        "name": named.name,
        "class_noun": "",
        "instance_prompt": f"a photo of {record.identifier}",
        "created": named.created,
    }
    if record.imported is not None:
        facts["imported"] = record.imported.model_copy(update={"file": named.name})
    return facts


def _rename_kohya_files(folder: Path, files: list[str], own: AdapterRecord) -> list[str]:
    """Give kohya files the name of the adapter; returns the new names of all files."""
    # with torch, which an export without such files does not need
    from farm.adapters.files.write import renamed_kohya_file, safe_file_name, thumbnail_uri

    first = next((file for file in files if file.startswith(SAMPLES)), None)
    thumbnail = None
    if first is not None:
        with Image.open(folder / first) as picture:
            thumbnail = thumbnail_uri(picture)
    renamed = []
    for file in files:
        place = file
        if file.endswith(KOHYA_ENDING) and "/" not in file:
            place = f"{safe_file_name(own.name)}{KOHYA_ENDING}"
            data = renamed_kohya_file((folder / file).read_bytes(), own, thumbnail)
            (folder / file).unlink()
            (folder / place).write_bytes(data)
        renamed.append(place)
    return renamed
