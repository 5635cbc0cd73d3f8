"""Export of adapters from the store to a folder, complete or in one format.

Owns the selection of adapters and the names of the exported files.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from farm.adapters.file_names import DIFFUSERS_FILE, KOHYA_ENDING, PEFT_FOLDER
from farm.adapters.files.own_copy import make_own_copy, own_files
from farm.adapters.record import AdapterRecord
from farm.adapters.registry import NamedAdapter, Registry
from farm.errors import AdapterFileError, FarmError, StoreError, UserError
from farm.storage import Store
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


def export_adapters(
    store: Store,
    out: Path,
    *,
    names: Sequence[str] | None = None,
    run_id: str | None = None,
    form: str | None = None,
) -> Exported:
    """Copy committed adapters: those named, those of a run, or all that have a name.

    An adapter that cannot be read does not stop the others.

    Args:
        names: ``name`` or ``namespace/name``.
        form: ``diffusers``, ``peft`` or ``kohya``: export this format only, named by adapter.

    Raises:
        UserError: if a name or format is unknown, or a named adapter is revoked.
    """
    _check_form(form)
    registry, result = Registry(store), Exported()
    for namespace, name in _chosen(registry, names, run_id):
        label = f"{namespace}/{name}"
        try:
            named = registry.resolve(namespace, name)
            if named is None:
                continue
            if registry.is_revoked(named.job_key, namespace):
                if names:
                    raise UserError(f"{label} is revoked", "leave it out, or train it again")
                continue
            result.written.append((label, export_adapter(registry, named, out, form=form)))
        except (AdapterFileError, StoreError) as error:
            result.failed.append((label, error))
    return result


def export_adapter(
    registry: Registry, named: NamedAdapter, out: Path, *, form: str | None = None
) -> Path:
    """Copy one version of one adapter; see ``export_adapters``.

    Returns:
        The folder or file that was written.

    Raises:
        UserError: if the form is unknown, or the adapter was saved without it.
    """
    _check_form(form)
    target = out / named.namespace / named.name
    if form is not None:
        return _export_form(registry, named, target, form)
    if own_files(registry.record(named.job_key), named) is None:
        registry.fetch(named.job_key, target)
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".farm-export-", dir=target.parent) as folder:
        _fetch_own(registry, named, Path(folder))
        shutil.copytree(folder, target, dirs_exist_ok=True)
    return target


def _fetch_own(registry: Registry, named: NamedAdapter, folder: Path) -> AdapterRecord:
    """Fetch an adapter as its name's namespace may see it."""
    names = own_files(registry.record(named.job_key), named)
    record = registry.fetch(named.job_key, folder, names=names)
    return record if names is None else make_own_copy(folder, record, named)


def _check_form(form: str | None) -> None:
    if form is not None and form not in FORM_FILES:
        raise UserError(f"there is no form {form!r}", f"use one of {', '.join(FORM_FILES)}")


def _chosen(
    registry: Registry, names: Sequence[str] | None, run_id: str | None
) -> Iterator[tuple[str, str]]:
    """(namespace, name) of each adapter to export."""
    if names:
        yield from [_named(registry, name) for name in names]
    elif run_id is not None:
        for item in read_assignments(registry.store, run_id):
            yield from item.names
    else:
        for namespace in registry.store.list("names"):
            for name in registry.listing(namespace):
                yield namespace, name


def _named(registry: Registry, text: str) -> tuple[str, str]:
    namespace, _, name = text.rpartition("/")
    namespace = namespace or "default"
    if name not in registry.listing(namespace):
        raise UserError(f"no adapter is named {text!r}", "list the names with `farm list`")
    return namespace, name


def _export_form(registry: Registry, named: NamedAdapter, target: Path, form: str) -> Path:
    wanted = FORM_FILES[form]
    with tempfile.TemporaryDirectory(prefix="farm-export-") as folder:
        record = _fetch_own(registry, named, Path(folder))
        file = next(
            (name for name in record.files if name == wanted or name.endswith(wanted)), None
        )
        target.parent.mkdir(parents=True, exist_ok=True)
        if form == "peft" and (Path(folder) / wanted).is_dir():
            shutil.copytree(Path(folder) / wanted, target, dirs_exist_ok=True)
            return target
        if file is None:
            raise AdapterFileError(
                f"{named.namespace}/{named.name} was saved without the {form} format",
                "export another format; not every model family has all of them",
            )
        placed = target.with_name(f"{named.name}.safetensors")
        shutil.copyfile(Path(folder) / file, placed)
        return placed
