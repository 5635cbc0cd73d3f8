"""``farm score``: scores committed adapters again, with more images than during training.

Owns finding adapters and their photos, and loading them into a bank in groups. Writes nothing:
committed adapters never change, so a new card is only returned.
"""

from __future__ import annotations

import tempfile
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from farm.adapters.bank.bank import Bank
from farm.adapters.files.folder import load_adapter
from farm.adapters.lookup import find_adapter
from farm.adapters.record import AdapterRecord
from farm.adapters.registry import Registry
from farm.base.interface import Base
from farm.base.loading import load_base
from farm.base.names import EMBEDDED, edition_of, trained_on
from farm.errors import FarmError, UserError
from farm.intake.photos.bytes import read_photo_bytes
from farm.intake.photos.decode import open_photo
from farm.keys import bytes_digest
from farm.quality.card import Candidate, Examiner
from farm.quality.protocol import ScoringBudget
from farm.quality.scorer import ImageScorer, Scorer, load_scorer
from farm.recipe import Recipe
from farm.storage import Store
from farm.text.safe_names import is_job_key
from farm.training.run.files import list_runs, read_assignments

__all__ = ["score_named"]

GROUP = 16
"""Number of adapters in the bank at once."""
CAREFUL = ScoringBudget(24, 16, 12, steps=25, scheduler="ddim")
"""Three times the images of a training's budget, with twice the steps."""


@dataclass(frozen=True)
class _Found:
    name: str
    record: AdapterRecord
    photos: Sequence[Image.Image]

    @property
    def recipe(self) -> Recipe:
        """The recipe of its training; ``_find`` rejects adapters without one."""
        assert self.record.recipe is not None
        return self.record.recipe


def score_named(
    store: Store,
    names: Sequence[str],
    *,
    base_name: str = EMBEDDED,
    scorer_name: str | None = None,
    dino_name: str | None = None,
    photos_folder: Path | None = None,
    full: bool = False,
    device: str = "cpu",
) -> dict[str, dict[str, Any]]:
    """Cards by name.

    Args:
        names: ``name`` (of the default namespace), ``namespace/name``, either with ``@key`` for
            one version, or a job key.
        photos_folder: contains a folder of photos for each name; None uses the run's own paths.
        full: use the paper's full protocol instead of a part of it.

    Raises:
        UserError: if an adapter, its photos or a scorer cannot be found, or an adapter belongs to
            another base.
    """
    base = load_base(base_name, device=device)
    if scorer_name is None and edition_of(base_name) != EMBEDDED:
        raise UserError("no scorer was given", "give --scorer a CLIP folder or hub id")
    scorer = load_scorer(scorer_name or EMBEDDED, device=device)
    if not isinstance(scorer, Scorer):
        raise UserError(
            f"the scorer {scorer_name} cannot embed text",
            "give --scorer a CLIP; use --dino for a DINO",
        )
    extra = {"dino": load_scorer(dino_name, device=device)} if dino_name else {}
    found = _find(store, names, photos_folder)
    _check_base(base, found)
    budget = ScoringBudget.full() if full else CAREFUL
    cards: dict[str, dict[str, Any]] = {}
    for group in _groups(found):
        cards |= _score_group(store, base, group, scorer, extra, budget)
    return {name: cards[name] for name in names}


def _find(store: Store, names: Sequence[str], photos_folder: Path | None) -> list[_Found]:
    registry = Registry(store)
    records = {}
    for name in names:
        key = name if is_job_key(name) else find_adapter(registry, name).job_key
        records[name] = registry.record(key)
        if records[name].recipe is None:
            raise UserError(
                f"{name} was imported, so its photos and recipe are unknown; it cannot be scored",
                "leave it out",
            )
    if photos_folder is not None:
        photos = {name: _folder_photos(photos_folder / name) for name in names}
    else:
        by_key = _run_photos(store, {record.job_key for record in records.values()})
        photos = {name: by_key.get(record.job_key, []) for name, record in records.items()}
    for name, pictures in photos.items():
        if not pictures:
            raise UserError(
                f"the photos of {name} are no longer where its run found them",
                f"give --photos a folder that contains a folder {name}",
            )
    return [_Found(name, records[name], photos[name]) for name in names]


def _folder_photos(folder: Path) -> list[Image.Image]:
    if not folder.is_dir():
        return []
    return [open_photo(path.read_bytes()) for path in sorted(folder.iterdir()) if path.is_file()]


def _run_photos(store: Store, keys: set[str]) -> dict[str, list[Image.Image]]:
    """Photos from the paths that the store's runs recorded, if they are unchanged."""
    found: dict[str, list[Image.Image]] = {}
    for run_id in list_runs(store):
        for assignment in read_assignments(store, run_id):
            spec = assignment.spec
            if spec.key not in keys or spec.key in found:
                continue
            pairs = zip(spec.subject.photos, spec.photo_digests, strict=True)
            data = [_same_bytes(photo.uri, digest) for photo, digest in pairs]
            found[spec.key] = [open_photo(one) for one in data if one is not None]
        if len(found) == len(keys):
            break
    return found


def _same_bytes(uri: str, digest: str) -> bytes | None:
    try:
        data = read_photo_bytes(uri)
    except (FarmError, OSError):
        return None
    return data if bytes_digest(data) == digest else None


def _check_base(base: Base, found: Iterable[_Found]) -> None:
    for one in found:
        if one.record.base_fingerprint != base.fingerprint:
            known_as = trained_on(one.record.base_id, one.record.base_fingerprint)
            raise UserError(
                f"{one.name} was trained on {known_as} "
                f"({one.record.base_family.title}), not on {base.name} ({base.family.title})",
                f"give --base {known_as}",
            )


def _groups(found: Sequence[_Found]) -> Iterable[list[_Found]]:
    """Groups of adapters that fit into one bank."""
    alike: dict[tuple[tuple[str, ...], tuple[str, ...]], list[_Found]] = defaultdict(list)
    for one in found:
        recipe = one.recipe
        alike[(recipe.target_modules, recipe.text_encoder_modules)].append(one)
    for members in alike.values():
        for start in range(0, len(members), GROUP):
            yield members[start : start + GROUP]


def _score_group(
    store: Store,
    base: Base,
    group: Sequence[_Found],
    scorer: Scorer,
    extra: dict[str, ImageScorer],
    budget: ScoringBudget,
) -> dict[str, dict[str, Any]]:
    recipe = group[0].recipe
    bank = Bank(
        base,
        num_slots=len(group),
        max_rank=max(one.recipe.rank for one in group),
        target_modules=recipe.target_modules,
        text_encoder_modules=recipe.text_encoder_modules,
    )
    try:
        with tempfile.TemporaryDirectory(prefix="farm-score-") as folder:
            for slot, one in enumerate(group):
                place = Path(folder) / str(slot)
                Registry(store).fetch(one.record.job_key, place)
                bank.set_slot(slot, load_adapter(place, base))
        examiner = Examiner(base, bank, scorer, budget, extra)
        examined = examiner.examine([_candidate(slot, one) for slot, one in enumerate(group)])
    finally:
        bank.close()
    return {one.name: found.card for one, found in zip(group, examined, strict=True)}


def _candidate(slot: int, one: _Found) -> Candidate:
    record = one.record
    return Candidate(
        slot,
        one.photos,
        record.class_noun,
        record.identifier,
        record.class_prompt or f"a photo of a {record.class_noun}",
        seed=one.recipe.seed % 2**32,
        evaluation_curve=record.evaluation_curve,
    )
