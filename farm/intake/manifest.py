"""The manifest: every subject that a user submits, resolved, with all faults at once.

Owns what concerns several subjects (duplicate ids and names, the order of work) and the resolved
form that a run stores as Parquet.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import islice

from farm.errors import FarmError, Fault, FaultList, ManifestError
from farm.intake.faults import similar_name
from farm.intake.formats.open import open_rows
from farm.intake.formats.unnamed import unnamed_folders, unnamed_photos
from farm.intake.modules import BaseModules, fits
from farm.intake.prompts.token_limit import Reader
from farm.intake.resolve import ResolvedSubject, Resolver, unexpected
from farm.intake.rows import ManifestRow, ManifestRows
from farm.intake.scoring import ScoringSettings
from farm.intake.subject import Subject
from farm.recipe import Quantization
from farm.text.safe_names import only_in_case

__all__ = ["Manifest", "all_fit", "invalid", "read_manifest"]

logger = logging.getLogger(__name__)

CHUNK_ROWS = 256
"""Rows resolved between two collections of results; bounds the number in flight."""
MAX_SUBJECTS = 1_000_000
"""Maximum number in one manifest."""
ROWS_TOGETHER = 1_000
"""Subjects of one row group of a Parquet file: as Python values they take ten times the memory."""
REMOTE_THREADS = 16
"""Threads that list folders of a store; each waits for the network most of the time."""


@dataclass(frozen=True)
class Manifest:
    """Resolved subjects in the order of the file."""

    source: str
    """The manifest, as the user named it."""
    subjects: tuple[Subject, ...]
    """The subjects without errors."""
    faults: tuple[Fault, ...] = ()
    """Warnings, and with ``strict=False`` also errors."""
    resolved: tuple[ResolvedSubject, ...] = field(default=(), compare=False, repr=False)
    """All subjects of the file, with or without errors, for the check."""
    scoring: ScoringSettings = ScoringSettings()
    """The settings for quality cards in its defaults."""
    quantization: Quantization | None = None
    """How its defaults keep the base."""
    is_broken: bool = field(default=False, compare=False)
    """Whether an error concerns the whole file, or a part of it that names no subject."""

    def __len__(self) -> int:
        return len(self.subjects)

    @property
    def errors(self) -> tuple[Fault, ...]:
        """The faults that prevent a subject from being trained."""
        return tuple(fault for fault in self.faults if fault.severity == "error")

    def to_parquet(self) -> bytes:
        """The resolved subjects as a Parquet file; ``read_manifest`` reads it back, equal."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        photo = pa.struct([("uri", pa.string()), ("caption", pa.string())])
        kinds = {
            "photos": pa.list_(photo),
            "sample_prompts": pa.list_(pa.string()),
            "class_images": pa.list_(pa.string()),
            "priority": pa.int64(),
        }
        fields = [*Subject.model_fields, "captions"]
        schema = pa.schema([(field, kinds.get(field, pa.string())) for field in fields])
        buffer, subjects = io.BytesIO(), iter(self.subjects)
        with pq.ParquetWriter(buffer, schema, compression="zstd") as writer:
            while part := list(map(_as_row, islice(subjects, ROWS_TOGETHER))):
                writer.write_table(pa.Table.from_pylist(part, schema=schema))
        return buffer.getvalue()


def _as_row(subject: Subject) -> dict[str, object]:
    row = subject.model_dump(mode="json", exclude={"recipe", "prior"})
    return row | {
        "recipe": subject.recipe.model_dump_json(),
        "prior": subject.prior.model_dump_json(),
        # captions are resolved; files beside the photos are not read again
        "captions": "none",
    }


def read_manifest(
    url: str,
    *,
    strict: bool = True,
    recipe: Mapping[str, object] | None = None,
    base_recipe: Mapping[str, object] | None = None,
    family_recipe: Mapping[str, object] | None = None,
    base_prior: Mapping[str, object] | None = None,
    reader: Reader | None = None,
    modules: BaseModules | None = None,
) -> Manifest:
    """Read a manifest and resolve every subject.

    Args:
        url: a manifest (YAML, JSON, JSONL, CSV, Parquet, kohya TOML, Hugging Face metadata), or a
            folder of folders; a local path or any fsspec URL.
        strict: raise if there is any error; otherwise the faults are in the manifest.
        recipe: fields that override everything in the manifest, for every subject.
        base_recipe, family_recipe, base_prior: as ``farm.recipe.base_layers`` gives them.
        reader: how the base reads prompts, as by ``prompt_reader``; None checks no prompts.
        modules: that can have adapters; None checks no module names.

    Raises:
        ManifestError: with every fault, if there is an error and ``strict`` is set, or if the file
            cannot be read at all.
    """
    rows, register = open_rows(url), _Register()
    resolver = Resolver(
        rows.head,
        recipe,
        base_recipe=base_recipe,
        family_recipe=family_recipe,
        base_prior=base_prior,
        reader=reader,
        modules=modules,
    )
    for row, (resolved, own) in _resolved(_within_limit(rows), resolver):
        register.add(row, resolved, own)
    of_reader = (*rows.faults.whole(), *resolver.faults.whole())
    faulty = {fault.subject for fault in of_reader if fault.severity == "error"}
    register.exclude(faulty - {""})
    found = [*rows.faults.whole(), *resolver.faults.whole(), *register.faults.whole()]
    manifest = Manifest(
        url,
        tuple(one.subject for one in register.resolved if one.subject is not None),
        _all_faults(rows, url, found, register.resolved, reader),
        tuple(register.resolved),
        scoring=resolver.scoring,
        quantization=resolver.quantization,
        is_broken="" in faulty,
    )
    if strict and manifest.errors:
        raise invalid(url, manifest.faults)
    return manifest


def all_fit(manifest: Manifest, modules: BaseModules) -> bool:
    """Whether a base has all modules that the subjects' recipes name."""
    recipes = {id(subject.recipe): subject.recipe for subject in manifest.subjects}
    return all(fits(recipe, modules) for recipe in recipes.values())


def _unnamed(rows: ManifestRows, resolved: Sequence[ResolvedSubject]) -> Iterator[Fault]:
    """Warnings about what is beside a table, or the folders of subjects, and none of them uses."""
    if not rows.folder or not resolved:
        return
    uris = [uri for one in resolved for uri in (*one.uris, *one.class_images)]
    ids = (one.id for one in resolved)
    for found in (
        unnamed_folders(rows.folder, rows.head.file, ids, uris),
        unnamed_photos(rows.folder, rows.head.file, uris, is_deep=rows.names_photos),
    ):
        if found is not None:
            yield found


def _all_faults(
    rows: ManifestRows,
    url: str,
    found: Iterable[Fault],
    resolved: Sequence[ResolvedSubject],
    reader: Reader | None,
) -> tuple[Fault, ...]:
    """Those found, each once, and those that concern all subjects together."""
    faults = list(dict.fromkeys(found))
    faults += _unnamed(rows, resolved)
    for judge in (_unknown_classes, _classes_in_two_cases, _unread_windows):
        if (fault := judge(url, resolved, reader)) is not None:
            faults.append(fault)
    if not resolved and all(fault.severity == "warning" for fault in faults):
        faults.append(_no_subjects(rows.head.file or url))
    return tuple(FaultList(faults).whole())


def _no_subjects(file: str) -> Fault:
    if file.lower().endswith((".csv", ".tsv")):
        return Fault(
            file, "it holds no subjects: no rows below its header", "write one row per subject"
        )
    return Fault(file, "it holds no subjects", "add subjects")


def _unknown_classes(
    url: str, resolved: Sequence[ResolvedSubject], reader: Reader | None
) -> Fault | None:
    """One warning for all classes that the base cannot generate."""
    if reader is None or not reader.class_nouns:
        return None
    nouns = dict.fromkeys(one.class_noun for one in resolved if one.class_noun)
    known = reader.class_nouns
    unknown = [noun for noun in nouns if not f" {noun.casefold()}".endswith(_as_last_words(known))]
    if not unknown:
        return None
    shown = ", ".join(f"`{noun}`" for noun in unknown[:3]) + (", …" if len(unknown) > 3 else "")
    message = (
        f"the base `{reader.base}` cannot generate {shown}: it knows {len(known)} classes "
        f"({', '.join(known)}), and those only as cartoons"
    )
    remedy = "name another base with --base, such as stable-diffusion-v1-5/stable-diffusion-v1-5"
    if meant := _meant(unknown[:3], known):
        remedy = f"did you mean {meant}? Otherwise {remedy}"
    return Fault(url, message, remedy, field="class_noun", severity="warning")


def _meant(unknown: Sequence[str], known: Sequence[str]) -> str:
    """The known nouns similar to unknown ones; empty if there are none."""
    similar = {noun: _misspelled(noun.casefold(), known) for noun in unknown}
    if len(similar) == 1:
        (found,) = similar.values()
        return f"`{found}`" if found else ""
    return ", ".join(f"`{found}` for `{noun}`" for noun, found in similar.items() if found)


def _misspelled(noun: str, known: Sequence[str]) -> str | None:
    """The known noun that was meant; a short word with another letter, such as `can`, is a word of
    its own."""
    meant = similar_name(noun, known)
    if meant is not None and len(noun) <= 3 and sorted(meant) != sorted(noun):
        return None
    return meant


def _classes_in_two_cases(
    url: str, resolved: Sequence[ResolvedSubject], reader: Reader | None
) -> Fault | None:
    """One warning if class nouns differ only in case: each has a prior set of its own."""
    forms: dict[str, dict[str, None]] = {}
    for one in resolved:
        if one.class_noun:
            forms.setdefault(one.class_noun.casefold(), {})[one.class_noun] = None
    several = [list(nouns) for nouns in forms.values() if len(nouns) > 1]
    if not several:
        return None
    shown = "; ".join(" and ".join(f"`{noun}`" for noun in nouns) for nouns in several[:3])
    message = f"class nouns differ only in case, and each has a prior set of its own: {shown}"
    remedy = "write each class noun in one form"
    return Fault(url, message, remedy, field="class_noun", severity="warning")


def _unread_windows(
    url: str, resolved: Sequence[ResolvedSubject], reader: Reader | None
) -> Fault | None:
    """One warning if long prompts are to be read in windows, and the base does not read them."""
    if reader is None or reader.max_windows > 1:
        return None
    subjects = (one.subject for one in resolved if one.subject is not None)
    if not any(subject.recipe.long_prompts == "chunk" for subject in subjects):
        return None
    message = (
        f"`chunk` has no effect on the base `{reader.base}`, which reads prompts at one length"
    )
    return Fault(url, message, "leave it out", field="long_prompts", severity="warning")


def _as_last_words(nouns: Sequence[str]) -> tuple[str, ...]:
    return tuple(f" {noun}" for noun in nouns)


def invalid(source: str, faults: Sequence[Fault]) -> ManifestError:
    """The error that lists every fault of a manifest."""
    count = sum(fault.count for fault in faults if fault.severity == "error")
    message = f"{source} has {count:,} fault{'s' if count > 1 else ''}"
    remedy = "correct them all and try again" if count > 1 else "correct it and try again"
    return ManifestError(message, remedy, faults)


def _within_limit(rows: ManifestRows) -> Iterator[ManifestRow]:
    """The rows up to the limit; any error of a reader ends them with a fault."""
    number, row = 0, rows.head
    try:
        for number, row in enumerate(rows.subjects, 1):
            if number > MAX_SUBJECTS:
                message = f"it has more than {MAX_SUBJECTS:,} subjects; the others are not read"
                rows.faults.append(row.fault((), message, "split it"))
                return
            yield row
    except FarmError:
        raise
    except Exception as error:
        logger.exception("reading %s failed", rows.head.file)
        rows.faults.append(row.fault((), *unexpected(error, "what follows")))


def _resolved(
    rows: Iterable[ManifestRow], resolver: Resolver
) -> Iterator[tuple[ManifestRow, tuple[ResolvedSubject, FaultList]]]:
    """Every row with its resolved subject and faults, in order."""
    rows = iter(rows)
    with ThreadPoolExecutor(REMOTE_THREADS) as pool:
        while chunk := list(islice(rows, CHUNK_ROWS)):
            is_remote = any("://" in str(row.value.get("photos", row.base)) for row in chunk)
            results = (pool.map if is_remote else map)(resolver.resolve, chunk)
            yield from zip(chunk, results, strict=True)


class _Register:
    """Collects subjects and reports duplicate ids and names; the first one is kept."""

    def __init__(self) -> None:
        self.resolved: list[ResolvedSubject] = []
        self.faults = FaultList()
        self._ids: dict[str, tuple[str, str]] = {}
        self._names: dict[str, tuple[str, str]] = {}
        """By the folded id, or ``namespace/name``: the first one as it is written, and where."""

    def add(self, row: ManifestRow, resolved: ResolvedSubject, faults: FaultList) -> None:
        """Add one resolved row."""
        subject = resolved.subject
        place = f"{row.file}:{row.line}" if row.line else row.file
        # names become paths, and some file systems do not distinguish `Cat` from `cat`
        name = str(row.value.get("id", ""))
        mine = (name, place)
        first = self._ids.setdefault(name.casefold(), mine)
        if name and first is not mine:
            what = (
                f"the id `{name}` is given twice" if first[0] == name else _two_cases(name, first)
            )
            message = f"{what}; first in {first[1]}"
            remedy = "give each an id of its own, or put the photos of both into one"
            faults.append(row.fault(("id",), message, remedy))
        elif subject is not None:
            mine = (f"{subject.namespace}/{subject.name}", place)
            first = self._names.setdefault(mine[0].casefold(), mine)
            if first is not mine:
                names = f"`{mine[0]}` names two subjects"
                what = names if first[0] == mine[0] else _two_cases(mine[0], first)
                message = f"{what}; first in {first[1]}"
                faults.append(row.fault(("name",), message, "give it another `name`"))
        self.faults += faults
        is_good = all(fault.severity == "warning" for fault in faults.whole())
        self.resolved.append(resolved if is_good else replace(resolved, subject=None))

    def exclude(self, ids: Collection[str]) -> None:
        """Leave nothing to train of subjects whose rows were read with errors."""
        if ids:
            self.resolved = [
                replace(one, subject=None) if one.id in ids else one for one in self.resolved
            ]


def _two_cases(name: str, first: tuple[str, str]) -> str:
    """A name that a disk which ignores case could not keep apart from the first one."""
    return only_in_case(f"`{name}`", f"`{first[0]}`")
