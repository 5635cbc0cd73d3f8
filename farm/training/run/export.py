"""Export of adapters from the store to a folder, complete or in one format.

Owns the selection of adapters and the names of the exported files.
"""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from farm.adapters.file_names import DIFFUSERS_FILE, KOHYA_ENDING, PEFT_FOLDER, RECORD_FILE
from farm.adapters.files.own_copy import make_own_copy, own_files
from farm.adapters.lookup import find_adapter, split_label
from farm.adapters.record import AdapterRecord
from farm.adapters.registry import NEW_VERSION, NamedAdapter, Registry
from farm.errors import AdapterFileError, FarmError, OutputUnusable, StoreError, UserError
from farm.keys import file_digest
from farm.local_files import check_folder, write_file, writing
from farm.storage import Store
from farm.text.safe_names import only_in_case
from farm.training.run.files import read_assignments

__all__ = ["Exported", "export_adapter", "export_adapters"]

FORM_FILES = {
    "diffusers": DIFFUSERS_FILE,
    "peft": PEFT_FOLDER,
    "kohya": KOHYA_ENDING,
}
"""A file name, a folder name, or a file suffix."""


@dataclass
class Exported:
    """The result of an export."""

    written: list[tuple[str, Path]] = field(default_factory=list)
    """(namespace/name, path) of each exported adapter."""
    failed: list[tuple[str, FarmError]] = field(default_factory=list)
    """(namespace/name, error) of each adapter that could not be exported."""
    left_out: list[tuple[str, str]] = field(default_factory=list)
    """(namespace/name, reason) of each adapter that was not asked for by name and is revoked, or
    that a run has not trained."""
    stopped: OutputUnusable | None = None
    """Why the folder took no more: its disk is full, for example."""


def export_adapters(
    store: Store,
    out: Path,
    *,
    names: Sequence[str] | None = None,
    run_id: str | None = None,
    form: str | None = None,
) -> Exported:
    """Copy committed adapters: those named, those of a run, or all that have a name.

    An adapter that cannot be read does not stop the others. A disk that fills does: what was
    written until then is complete.

    Args:
        names: ``name`` or ``namespace/name``; ``name@key`` is one version.
        form: ``diffusers``, ``peft`` or ``kohya``: export this format only, named by adapter.

    Raises:
        UserError: if a name or format is unknown, or a named adapter is revoked, or if
            ``out`` cannot be written.
    """
    _check_form(form)
    check_folder(out)
    registry, result, placed = Registry(store), Exported(), _Placed()
    chosen = _named(registry, names) if names else _all(registry, run_id)
    for label, found in chosen.items():
        try:
            named = found or registry.resolve(*split_label(label))
            if named is None:
                result.left_out.append((label, "not trained"))
                continue
            if registry.is_revoked(named.job_key, named.namespace):
                if names:
                    raise UserError(f"{label} is revoked", f"leave it out; {NEW_VERSION}")
                result.left_out.append((label, "revoked"))
                continue
            placed.refuse_same_place(named)
            path = export_adapter(registry, named, out, form=form)
            placed.add(named, path)
            result.written.append((label, path))
        except OutputUnusable as error:
            done = f"{len(result.written):,} of {len(chosen):,} adapters are complete in {out}"
            result.stopped = OutputUnusable(f"{error.message}; {done}", error.remedy)
            break
        except (AdapterFileError, StoreError) as error:
            result.failed.append((label, error))
    return result


class _Placed:
    """The exported adapters, so that a disk that ignores case loses none of them."""

    def __init__(self) -> None:
        self._by_fold: dict[str, tuple[NamedAdapter, Path]] = {}

    def add(self, named: NamedAdapter, path: Path) -> None:
        """Note where an adapter was written."""
        self._by_fold[f"{named.namespace}/{named.name}".casefold()] = named, path

    def refuse_same_place(self, named: NamedAdapter) -> None:
        """Refuse an adapter whose files would replace those of another one.

        Raises:
            AdapterFileError: naming the other one.
        """
        label = f"{named.namespace}/{named.name}"
        first, path = self._by_fold.get(label.casefold(), (None, Path()))
        if first is None:
            return
        suffix = path.name.removeprefix(first.name)
        place = path.parent.parent / named.namespace / f"{named.name}{suffix}"
        if place.exists() and place.samefile(path):
            other = f"{first.namespace}/{first.name}"
            twice = f"{label} is exported in two versions"
            both = f"{only_in_case(label, other)}, and the disk ignores case"
            raise AdapterFileError(
                twice if label == other else both, "export one of them alone, to another folder"
            )


def export_adapter(
    registry: Registry, named: NamedAdapter, out: Path, *, form: str | None = None
) -> Path:
    """Copy one version of one adapter; see ``export_adapters``.

    It is prepared beside its place: a disk that fills leaves what was there, and an interrupted
    export no ``adapter.json``.

    Returns:
        The folder or file that was written.

    Raises:
        UserError: if the form is unknown, or the adapter was saved without it.
        OutputUnusable: if ``out`` cannot be written.
    """
    _check_form(form)
    target = out / named.namespace / named.name
    with writing(out):
        target.parent.mkdir(parents=True, exist_ok=True)
        if form is not None:
            return _export_form(registry, named, target, form)
        if not _is_there(registry, named, target):
            with tempfile.TemporaryDirectory(prefix=".farm-export-", dir=target.parent) as folder:
                _fetch_own(registry, named, Path(folder))
                _place(Path(folder), target)
    return target


def _is_there(registry: Registry, named: NamedAdapter, target: Path) -> bool:
    """Whether an earlier export of this version is complete; then nothing is copied again."""
    record = registry.record(named.job_key)
    if own_files(record, named) is not None or not (target / RECORD_FILE).is_file():
        return False
    if (target / RECORD_FILE).read_text(encoding="utf-8") != record.to_json():
        return False
    files = {target / name: sha256 for name, sha256 in record.files.items()}
    return all(path.is_file() and file_digest(path) == sha256 for path, sha256 in files.items())


def _place(folder: Path, target: Path) -> None:
    """Move prepared files to a folder of the same disk; ``adapter.json``, which marks it as
    complete, last."""
    if target.exists() and not target.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, "it is a file", str(target))
    (target / RECORD_FILE).unlink(missing_ok=True)
    files = [path for path in folder.rglob("*") if path.is_file()]
    for path in sorted(files, key=lambda path: path.name == RECORD_FILE):
        place = target / path.relative_to(folder)
        place.parent.mkdir(parents=True, exist_ok=True)
        os.replace(path, place)


def _fetch_own(registry: Registry, named: NamedAdapter, folder: Path) -> AdapterRecord:
    """Fetch an adapter as its name's namespace may see it."""
    names = own_files(registry.record(named.job_key), named)
    record = registry.fetch(named.job_key, folder, names=names)
    return record if names is None else make_own_copy(folder, record, named)


def _check_form(form: str | None) -> None:
    if form is not None and form not in FORM_FILES:
        raise UserError(f"there is no form {form!r}", f"use one of {', '.join(FORM_FILES)}")


def _named(registry: Registry, names: Sequence[str]) -> dict[str, NamedAdapter | None]:
    """The adapters of names, by namespace/name, and the version if it was given."""
    found = [(find_adapter(registry, text), "".join(text.partition("@")[1:])) for text in names]
    return {f"{named.namespace}/{named.name}{version}": named for named, version in found}


def _all(registry: Registry, run_id: str | None) -> dict[str, NamedAdapter | None]:
    """The names of a run or of the store, which are looked up one by one."""
    if run_id is not None:
        pairs = (pair for item in read_assignments(registry.store, run_id) for pair in item.names)
    else:
        spaces = registry.store.list("names")
        pairs = ((space, name) for space in spaces for name in registry.listing(space))
    return {f"{namespace}/{name}": None for namespace, name in pairs}


def _export_form(registry: Registry, named: NamedAdapter, target: Path, form: str) -> Path:
    wanted = FORM_FILES[form]
    with tempfile.TemporaryDirectory(prefix="farm-export-") as folder:
        record = _fetch_own(registry, named, Path(folder))
        file = next(
            (name for name in record.files if name == wanted or name.endswith(wanted)), None
        )
        if form == "peft" and (Path(folder) / wanted).is_dir():
            with tempfile.TemporaryDirectory(prefix=".farm-export-", dir=target.parent) as aside:
                shutil.copytree(Path(folder) / wanted, aside, dirs_exist_ok=True)
                _place(Path(aside), target)
            return target
        if file is None:
            raise AdapterFileError(
                f"{named.namespace}/{named.name} was saved without the {form} format",
                "export another format; not every model family has all of them",
            )
        placed = target.with_name(f"{named.name}.safetensors")
        write_file(placed, (Path(folder) / file).read_bytes())
        return placed
