"""Exports adapters from the store into a folder, in all forms or in one.

Owns the selection of adapters and the names of the exported files.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from farm.adapters.file_names import DIFFUSERS_FILE, KOHYA_ENDING, PEFT_FOLDER
from farm.adapters.registry import NamedAdapter, Registry
from farm.errors import UserError
from farm.storage import Store
from farm.training.run.files import read_assignments

__all__ = ["export_adapters"]

FORM_FILES = {
    "diffusers": DIFFUSERS_FILE,
    "peft": PEFT_FOLDER,
    "kohya": KOHYA_ENDING,
}
"""A file, a folder, or the ending of a file."""


def export_adapters(
    store: Store,
    out: Path,
    *,
    names: Sequence[str] | None = None,
    run_id: str | None = None,
    form: str | None = None,
) -> list[tuple[str, Path]]:
    """Copy committed adapters; neither names nor run means all that have a name.

    Args:
        names: ``name`` or ``namespace/name``.
        form: ``diffusers``, ``peft`` or ``kohya``: that form alone, named after the adapter.

    Returns:
        (namespace/name, path) of each.

    Raises:
        UserError: if a name or form is not known, or an adapter is revoked.
    """
    if form is not None and form not in FORM_FILES:
        raise UserError(f"there is no form {form!r}", f"use one of {', '.join(FORM_FILES)}")
    registry = Registry(store)
    written = []
    for named in _chosen(registry, names, run_id):
        if registry.is_revoked(named.job_key, named.namespace):
            if names:
                raise UserError(
                    f"{named.namespace}/{named.name} is revoked", "leave it out, or train it again"
                )
            continue
        label = f"{named.namespace}/{named.name}"
        target = out / named.namespace / named.name
        if form is None:
            registry.fetch(named.job_key, target)
            written.append((label, target))
        else:
            written.append((label, _export_form(registry, named, target, form)))
    return written


def _chosen(
    registry: Registry, names: Sequence[str] | None, run_id: str | None
) -> list[NamedAdapter]:
    if names:
        return [_named(registry, name) for name in names]
    if run_id is not None:
        pairs = [pair for item in read_assignments(registry.store, run_id) for pair in item.names]
        found = (registry.resolve(namespace, name) for namespace, name in pairs)
        return [named for named in found if named is not None]
    return list(registry.names())


def _named(registry: Registry, text: str) -> NamedAdapter:
    namespace, slash, name = text.rpartition("/")
    found = registry.resolve(namespace if slash else "default", name)
    if found is None:
        raise UserError(f"no adapter is named {text!r}", "see names/ in the store")
    return found


def _export_form(registry: Registry, named: NamedAdapter, target: Path, form: str) -> Path:
    wanted = FORM_FILES[form]
    with tempfile.TemporaryDirectory(prefix="farm-export-") as folder:
        record = registry.fetch(named.job_key, folder)
        file = next(
            (name for name in record.files if name == wanted or name.endswith(wanted)), None
        )
        target.parent.mkdir(parents=True, exist_ok=True)
        if form == "peft" and (Path(folder) / wanted).is_dir():
            shutil.copytree(Path(folder) / wanted, target, dirs_exist_ok=True)
            return target
        if file is None:
            raise UserError(
                f"{named.namespace}/{named.name} was saved without its {form} form",
                "export another form; `farm run` writes all of them by default",
            )
        placed = target.with_name(f"{named.name}.safetensors")
        shutil.copyfile(Path(folder) / file, placed)
        return placed
