"""Comparison of a subject's photos: copies, look-alikes, sizes, shapes, another class's photos.

Owns every check that needs more than one photo or the recipe. Pure, apart from remembering which
subject a photo was first seen in.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from farm.errors import MAX_SUBJECT_FAULTS, Fault, FaultList
from farm.intake.photos.inspect import PhotoFacts, PhotoRefusal
from farm.intake.resolve import ResolvedSubject

__all__ = ["PhotoComparer", "look_alikes"]

NEAR_BITS = 4
"""Bits of 64: photos whose perceptual hashes differ in no more than this look alike."""
MAX_ENLARGEMENT = 4.0
"""A photo that must be enlarged further to fill a crop is refused: it has too little detail."""
MAX_SHAPE = 3.0
"""Ratio of the sides; beyond it a square crop covers at most a third of the photo."""
HASH_BITS = 64
MAX_NAMED = 3
"""Photos named in one warning about several."""
BLOCK_ROWS = 512


class PhotoComparer:
    """Checks the subjects of one manifest, in order."""

    def __init__(
        self, verdicts: Mapping[str, PhotoFacts | PhotoRefusal], resolution_px: int | None
    ) -> None:
        """Use the results of single photos by URI, which may still be growing.

        Args:
            resolution_px: side of the crops for recipes that name none; None skips those.
        """
        self._verdicts = verdicts
        self._resolution_px = resolution_px
        self._seen: dict[str, tuple[str, str]] = {}
        """By digest: class noun and subject where a photo was first seen."""

    def faults(self, subject: ResolvedSubject) -> FaultList:
        """All faults of a subject's photos and class images."""
        own = _SubjectFaults(subject)
        self._check_refused(subject.uris, own, "photos")
        self._check_refused(subject.class_images, own, "class_images")
        known = [(uri, facts) for uri in subject.uris if (facts := self._facts(uri)) is not None]
        _check_copies(known, own)
        self._check_other_class(known, subject, own)
        recipe = subject.subject.recipe if subject.subject is not None else None
        resolution_px = (recipe.resolution_px if recipe else None) or self._resolution_px
        if resolution_px is not None:
            _check_small(known, resolution_px, own)
        _check_long(known, own)
        return own.faults

    def _facts(self, uri: str) -> PhotoFacts | None:
        verdict = self._verdicts[uri]
        return verdict if isinstance(verdict, PhotoFacts) else None

    def _check_refused(self, uris: Sequence[str], own: _SubjectFaults, field: str) -> None:
        for uri in uris:
            verdict = self._verdicts[uri]
            if isinstance(verdict, PhotoRefusal):
                own.error(f"{own.name(uri)}: {verdict.message}", verdict.remedy, field)

    def _check_other_class(
        self, known: Sequence[tuple[str, PhotoFacts]], subject: ResolvedSubject, own: _SubjectFaults
    ) -> None:
        mine = (subject.class_noun, subject.id)
        shared: dict[tuple[str, str], list[str]] = {}
        for uri, facts in known if subject.class_noun else ():
            first = self._seen.setdefault(facts.digest, mine)
            if first[0] != subject.class_noun:
                shared.setdefault(first, []).append(own.name(uri))
        for (noun, other), names in shared.items():
            own.warning(*_shared_photos(names, other, noun))


def _shared_photos(names: Sequence[str], other: str, noun: str) -> tuple[str, str]:
    """Message and remedy for photos that a subject of another class has too."""
    named = ", ".join(names[:MAX_NAMED]) + (", …" if len(names) > MAX_NAMED else "")
    what, where = f"`{other}`, which is a {noun}", "in the right folder"
    if len(names) == 1:
        return f"{named} is also a photo of {what}", f"check that it is {where}"
    return f"{len(names)} photos are also photos of {what}: {named}", f"check that they are {where}"


class _SubjectFaults:
    """Puts a subject's faults at its place in the manifest."""

    def __init__(self, subject: ResolvedSubject) -> None:
        self._subject = subject
        self.faults = FaultList(limit=MAX_SUBJECT_FAULTS)

    def name(self, uri: str) -> str:
        """A photo's name, as short as possible."""
        inner, _, archive = uri.removeprefix("zip://").partition("::")
        name = f"{archive}:{inner}" if archive else inner
        return name.removeprefix(self._subject.base.rstrip("/") + "/")

    def error(self, message: str, remedy: str, field: str = "photos") -> None:
        """A fault that prevents the subject from being trained."""
        place = self._subject
        field = place.field if field == "photos" else field
        self.faults.append(Fault(place.file, message, remedy, place.line, field, place.id))

    def warning(self, message: str, remedy: str) -> None:
        """A fault that does not prevent training."""
        place = self._subject
        fault = Fault(place.file, message, remedy, place.line, place.field, place.id, "warning")
        self.faults.append(fault)


def _check_copies(known: Sequence[tuple[str, PhotoFacts]], own: _SubjectFaults) -> None:
    first: dict[str, str] = {}
    distinct = []
    for uri, facts in known:
        if facts.digest in first:
            same = own.name(first[facts.digest])
            own.warning(f"{own.name(uri)} is the same file as {same}", "remove one")
        else:
            first[facts.digest] = uri
            distinct.append((uri, facts))
    for late, early in look_alikes([facts.look for _, facts in distinct]):
        own.warning(
            f"{own.name(distinct[late][0])} looks like {own.name(distinct[early][0])}",
            "near-duplicates count twice; keep one, unless this is intended",
        )


def look_alikes(looks: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Pairs (later, first earlier one) of perceptual hashes that are nearly equal, by index.

    Works in blocks, so that ten thousand photos take bounded memory.
    """
    if len(looks) < 2:
        return
    bytes_N8 = np.array(looks, dtype=">u8").view(np.uint8).reshape(-1, HASH_BITS // 8)
    bits_N64 = np.unpackbits(bytes_N8, axis=1).astype(np.float32)
    signs_N64 = bits_N64 * 2 - 1
    for start in range(0, len(looks), BLOCK_ROWS):
        block = signs_N64[start : start + BLOCK_ROWS]
        # signs agree in (64 + dot) / 2 places
        distance = (HASH_BITS - block @ signs_N64[: start + len(block)].T) / 2
        for row, near in enumerate(distance <= NEAR_BITS):
            earlier = np.flatnonzero(near[: start + row])
            if earlier.size:
                yield start + row, int(earlier[0])


def _check_small(
    known: Sequence[tuple[str, PhotoFacts]], resolution_px: int, own: _SubjectFaults
) -> None:
    small = [(min(facts.width_px, facts.height_px), uri) for uri, facts in known]
    for side, uri in small:
        if side * MAX_ENLARGEMENT < resolution_px:
            own.error(
                f"{own.name(uri)}: its shorter side of {side} px is too small for "
                f"{resolution_px} px",
                f"give one of at least {resolution_px} px; {resolution_px / 4:.0f} px is the limit",
            )
    soft = [one for one in small if one[0] < resolution_px <= one[0] * MAX_ENLARGEMENT]
    if soft:
        side, uri = min(soft)
        own.warning(
            f"{len(soft)} of {len(known)} photos are enlarged to {resolution_px} px; "
            f"the smallest, {own.name(uri)}, from {side} px",
            "larger photos give sharper images",
        )


def _check_long(known: Sequence[tuple[str, PhotoFacts]], own: _SubjectFaults) -> None:
    for uri, facts in known:
        long, short = max(facts.width_px, facts.height_px), min(facts.width_px, facts.height_px)
        if long > MAX_SHAPE * short:
            own.warning(
                f"{own.name(uri)} is {facts.width_px} x {facts.height_px} px; "
                "a square crop sees little of it",
                "crop it around the subject",
            )
