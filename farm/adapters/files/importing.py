"""Import of other tools' adapters into a store.

Owns an imported adapter's names, key and record. ``read`` parses the file formats; the registry
commits.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from farm.adapters.file_names import PEFT_CONFIG, PEFT_WEIGHTS
from farm.adapters.files.folder import COMPONENT_NAMES, adapter_files, load_adapter, save_adapter
from farm.adapters.files.read import describe_file, states_alpha
from farm.adapters.files.write import TRIGGER_FIELD
from farm.adapters.lookup import check_case
from farm.adapters.record import AdapterRecord, ImportedFile
from farm.adapters.registry import Registry
from farm.adapters.weights import AdapterWeights
from farm.base.interface import Base
from farm.errors import UserError
from farm.intake.subject import (
    CLASS_NOUN_FIELD,
    DEFAULT_IDENTIFIER,
    DEFAULT_INSTANCE_PROMPT,
    DEFAULT_NAMESPACE,
    PLACEHOLDER,
    ClassNoun,
    Identifier,
    Name,
    Prompt,
    names_identifier,
)
from farm.keys import digest, file_digest, key_of
from farm.storage import Store
from farm.text.safe_names import names_of_base

__all__ = ["ImportRequest", "Imported", "import_adapter"]

PEFT_FILES = (PEFT_WEIGHTS, PEFT_CONFIG)


@dataclass(frozen=True)
class ImportRequest:
    """A file to import, and its name in the farm."""

    path: Path
    """A safetensors file, or a folder that PEFT or diffusers wrote."""
    name: str
    class_noun: str
    namespace: str = DEFAULT_NAMESPACE
    identifier: str | None = None
    """The trigger word, which replaces ``[V]``; None uses the file header's, else ``sks``."""
    instance_prompt: str | None = None
    """An example prompt with ``[V]``."""
    replace: bool = False
    """Whether an existing name may be pointed to this adapter."""


@dataclass(frozen=True)
class Imported:
    """An adapter that was imported into the store."""

    record: AdapterRecord
    weights: AdapterWeights
    is_new: bool
    """False if the same file was imported before under the same names."""
    identifier_assumed: bool
    """Whether the identifier is the default, because neither the caller nor the file gave one."""
    trigger_phrase: str = ""
    """The trigger words in the file's header; only a single word can be the identifier."""
    alpha_assumed: bool = False
    """Whether it is a PEFT file without its config and without alphas, so that its strength is not
    known and alpha = rank was used, as diffusers does."""


def import_adapter(store: Store, base: Base, request: ImportRequest) -> Imported:
    """Convert an adapter file to the farm's formats and commit it.

    Args:
        base: the base model that the adapter was trained on.

    Raises:
        AdapterFileError: if the file cannot be read or does not fit the base.
        UserError: if a name or prompt is not valid, or the name is taken.
    """
    weights = load_adapter(request.path, base)
    file = adapter_files(request.path)[0]
    form, header = describe_file(file)
    identifier, is_assumed = _identifier(request, header)
    record = _record(request, base, identifier, _origin(request.path, file, form))
    if record.name in names_of_base(base.name):
        raise UserError(
            f"--name: an endpoint takes {record.name!r} for the base model itself",
            "choose another --name",
        )
    registry = Registry(store)
    _check_name(registry, record, request.replace)
    with tempfile.TemporaryDirectory(prefix="farm-import-") as folder:
        written = save_adapter(folder, weights, record, base)
        is_new = registry.publish(written, folder)
    return Imported(
        registry.record(record.job_key),
        weights,
        is_new,
        identifier_assumed=is_assumed,
        trigger_phrase=header.get(TRIGGER_FIELD, "").strip(),
        alpha_assumed=form == "peft" and not states_alpha(file, header),
    )


def _record(
    request: ImportRequest, base: Base, identifier: str, origin: ImportedFile
) -> AdapterRecord:
    noun = _checked(ClassNoun, request.class_noun, "--class")
    if PLACEHOLDER in noun:
        raise UserError(f"--class {noun!r} names the subject too", "write the class alone: cat")
    prompt = request.instance_prompt or DEFAULT_INSTANCE_PROMPT
    prompt = _checked(Prompt, prompt.replace(CLASS_NOUN_FIELD, noun), "--prompt")
    prompt = prompt.replace(PLACEHOLDER, identifier)
    if not names_identifier(prompt, identifier):
        raise UserError(
            f"--prompt: `{prompt}` does not name the subject",
            f"put {PLACEHOLDER} where its identifier belongs",
        )
    words = {
        "namespace": _checked(Name, request.namespace, "--namespace"),
        "name": _checked(Name, request.name, "--name"),
        "class_noun": noun,
        "identifier": identifier,
        "instance_prompt": prompt,
    }
    key = key_of("import", sha256=origin.sha256, base=base.fingerprint, **words)
    return AdapterRecord(
        job_key=key,
        subject_id=words["name"],
        base_id=base.name,
        base_fingerprint=base.fingerprint,
        imported=origin,
        stopped_because="imported",
        **words,
    )


def _identifier(request: ImportRequest, header: dict[str, str]) -> tuple[str, bool]:
    """The trigger word, and whether it is the default."""
    if request.identifier is not None:
        return _checked(Identifier, request.identifier, "--identifier"), False
    noun = request.class_noun.strip()
    for phrase in (header.get(TRIGGER_FIELD, ""), _folder_tokens(header, noun)):
        word = phrase.strip().removesuffix(noun).strip()
        with suppress(ValidationError):  # no phrase, or several words
            return str(TypeAdapter(Identifier).validate_python(word)), False
    return DEFAULT_IDENTIFIER, True


def _folder_tokens(header: Mapping[str, str], noun: str) -> str:
    """The identifier in the names of the folders that kohya's scripts trained on, which their
    header keeps: ``10_ohwx cat``. Empty if they name none, or several."""
    folders: set[str] = set()
    for field in ("ss_dataset_dirs", "ss_tag_frequency"):
        with suppress(ValueError, RecursionError):
            value = json.loads(header.get(field, ""))
            folders |= value.keys() if isinstance(value, dict) else set()
    tokens = {match[1] for name in folders if (match := re.fullmatch(r"\d+_(\S.*)", name))}
    if len(tokens) != 1:
        return ""
    words = tokens.pop().split()
    return words[0] if len(words) > 1 or words != [noun] else ""


_NAMES = "use letters from A to Z, digits, dot, dash and underscore"
_ALLOWED = {
    "--name": _NAMES,
    "--namespace": _NAMES,
    "--class": "write 1 to 100 characters, such as cat",
    "--identifier": "write one word, such as sks",
}
"""What each option may hold."""


def _reason(error: ValidationError) -> str:
    """Why a value was refused, without patterns."""
    first = error.errors()[0]
    is_pattern = first["type"] == "string_pattern_mismatch"
    return "it has characters that do not fit" if is_pattern else str(first["msg"])


def _checked(kind: Any, value: str, option: str) -> str:
    try:
        return str(TypeAdapter(kind).validate_python(value))
    except ValidationError as error:
        raise UserError(
            f"{option} {value[:100]!r} is not allowed: {_reason(error)}",
            _ALLOWED.get(option, "write 1 to 1,000 characters, with [V]"),
        ) from error


def _check_name(registry: Registry, record: AdapterRecord, may_replace: bool) -> None:
    label = f"{record.namespace}/{record.name}"
    if registry.is_revoked(record.job_key):
        raise UserError(
            f"{label} was already imported from this file, and revoked",
            "import it under another name",
        )
    check_case(registry, [(record.namespace, record.name)])
    named = registry.resolve(record.namespace, record.name)
    if named is not None and named.job_key != record.job_key and not may_replace:
        raise UserError(
            f"the name {label} belongs to another adapter",
            "choose another --name, or point the name to this file with --replace",
        )


def _origin(path: Path, file: Path, form: str) -> ImportedFile:
    is_peft = file.name == PEFT_FILES[0]
    if not is_peft:
        return ImportedFile(file=file.name, sha256=file_digest(file), form=form)
    is_component = path.is_dir() and file.relative_to(path).parts[0] in COMPONENT_NAMES
    folder = path if is_component else file.parent
    found = sorted(one for name in PEFT_FILES for one in folder.rglob(name))
    sha256 = digest({str(one.relative_to(folder)): file_digest(one) for one in found})
    name = (path if path.is_dir() else folder).resolve().name
    return ImportedFile(file=name, sha256=sha256, form="peft" if form == "diffusers" else form)
