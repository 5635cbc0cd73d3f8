"""The check: every photo of a manifest decoded, measured and compared.

Owns the flow, with a bounded number of photos in flight for a manifest of any length, and the
report. Single photos are checked in ``photos/inspect.py``, a subject's photos in ``compare.py``.

Threads suffice: Pillow, zlib, hashing and the network all release the interpreter lock
(benchmarks/intake-*.md compares the two).
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import groupby, islice

from farm.errors import Fault, FaultList
from farm.intake.compare import PhotoComparer
from farm.intake.manifest import Manifest, invalid
from farm.intake.photos.bytes import is_remote, split_member_uri
from farm.intake.photos.inspect import KnownPhotos, PhotoFacts, PhotoRefusal, inspect_changed
from farm.intake.resolve import ResolvedSubject
from farm.intake.subject import Subject

__all__ = ["CheckReport", "Progress", "check_manifest"]

CHUNK_PHOTOS = 16
"""Photos passed to a thread at once."""
REMOTE_THREADS = 16
"""Threads that fetch photos; each waits for the network most of the time."""
WINDOW_SUBJECTS = 64
WINDOWS = 3
"""Windows of subjects in flight: one is awaited while the others keep the threads busy."""

_Sent = tuple[list[str], Future[list[tuple[PhotoFacts | PhotoRefusal, str | None]]]]
Progress = Callable[[int, int], None]
"""Called with the number of photos done and the number known so far."""


@dataclass(frozen=True)
class CheckReport:
    """The result of the check."""

    manifest: Manifest
    faults: tuple[Fault, ...]
    """Faults of the manifest and of its photos, in the order of the manifest."""
    facts: dict[str, PhotoFacts] = field(repr=False)
    """Facts by URI, for every usable photo and class image."""
    good_subjects: tuple[Subject, ...] = field(repr=False)
    """Subjects that can be trained: without an error in them or in any of their photos."""
    num_photos: int
    """Photos checked, valid or not; shared ones count once."""
    seconds: float

    @property
    def errors(self) -> tuple[Fault, ...]:
        """Faults that prevent a subject from being trained."""
        return tuple(fault for fault in self.faults if fault.severity == "error")

    @property
    def warnings(self) -> tuple[Fault, ...]:
        """Faults that do not prevent training."""
        return tuple(fault for fault in self.faults if fault.severity == "warning")

    @property
    def num_errors(self) -> int:
        """Number of errors, including those that were counted and not kept."""
        return sum(fault.count for fault in self.errors)

    @property
    def num_warnings(self) -> int:
        """The same of warnings."""
        return sum(fault.count for fault in self.warnings)

    @property
    def num_trainable(self) -> int:
        """Number of good subjects; 0 while an error concerns the whole file."""
        return 0 if self.manifest.is_broken else len(self.good_subjects)

    @property
    def captions(self) -> tuple[int, int]:
        """Number of captioned photos, and of all photos; shared ones count for each subject."""
        resolved = self.manifest.resolved
        return sum(one.num_captions for one in resolved), sum(len(one.uris) for one in resolved)

    @property
    def num_bytes(self) -> int:
        """Total size of all usable photos."""
        return sum(facts.num_bytes for facts in self.facts.values())

    def photo_digests(self, subject: Subject) -> tuple[str, ...]:
        """sha256 of each photo of a good subject, in the order of ``subject.photos``."""
        return tuple(self.facts[photo.uri].digest for photo in subject.photos)

    def class_image_digests(self, subject: Subject) -> tuple[str, ...]:
        """sha256 of each class image of a good subject, in the order of its ``class_images``."""
        return tuple(self.facts[uri].digest for uri in subject.class_images)

    def raise_for_errors(self) -> None:
        """Raise ``ManifestError`` with all faults, if one of them is an error."""
        if self.errors:
            raise invalid(self.manifest.source, self.faults)


def check_manifest(
    manifest: Manifest,
    *,
    workers: int | None = None,
    resolution_px: int | None = None,
    progress: Progress | None = None,
) -> CheckReport:
    """Decode and check every photo of a manifest.

    Args:
        manifest: as read with ``strict=False``, so that all faults are reported together.
        workers: threads for local photos; None means the CPU's cores.
        resolution_px: side of the training crops where a recipe names none; None judges photos of
            such recipes by the absolute limits alone.
        progress: called periodically from this thread.
    """
    started = time.monotonic()
    workers = workers or os.cpu_count() or 1
    inspector = _Inspector(manifest.resolved, workers, progress)
    judge = PhotoComparer(inspector.verdicts, resolution_px)
    faults = FaultList()
    good: list[Subject] = []
    for resolved in inspector.run():
        own = judge.faults(resolved)
        faults += own
        is_good = all(fault.severity == "warning" for fault in own.whole())
        if resolved.subject is not None and is_good:
            good.append(resolved.subject)
    verdicts = inspector.verdicts
    return CheckReport(
        manifest=manifest,
        faults=tuple(FaultList([*manifest.faults, *faults.whole()]).whole()),
        facts={uri: one for uri, one in verdicts.items() if isinstance(one, PhotoFacts)},
        good_subjects=tuple(good),
        num_photos=len(verdicts),
        seconds=time.monotonic() - started,
    )


class _Inspector:
    """Checks photos in threads, a window of subjects at a time, and keeps the results."""

    def __init__(
        self, subjects: Sequence[ResolvedSubject], workers: int, progress: Progress | None
    ) -> None:
        self._subjects = subjects
        self._workers = workers
        self._progress = progress
        self._total = len({uri for subject in subjects for uri in _uris(subject)})
        self._sent: set[str] = set()
        self._known = KnownPhotos()
        self.verdicts: dict[str, PhotoFacts | PhotoRefusal] = {}
        """Results for every photo of the subjects that ``run`` has returned."""

    def run(self) -> Iterator[ResolvedSubject]:
        """Each subject, in order, once all its photos have a verdict."""
        local, remote = ThreadPoolExecutor(self._workers), ThreadPoolExecutor(REMOTE_THREADS)
        waiting: deque[tuple[list[ResolvedSubject], list[_Sent]]] = deque()
        subjects = iter(self._subjects)
        try:
            while window := list(islice(subjects, WINDOW_SUBJECTS)):
                waiting.append((window, self._send(window, local, remote)))
                if len(waiting) == WINDOWS:
                    yield from self._receive(*waiting.popleft())
            while waiting:
                yield from self._receive(*waiting.popleft())
        finally:
            # an interrupted check does not wait for queued photos
            local.shutdown(cancel_futures=True)
            remote.shutdown(cancel_futures=True)
            self._known.save()

    def _send(
        self, window: list[ResolvedSubject], local: ThreadPoolExecutor, remote: ThreadPoolExecutor
    ) -> list[_Sent]:
        uris = [uri for subject in window for uri in _uris(subject)]
        fresh = [uri for uri in dict.fromkeys(uris) if uri not in self._sent]
        self._sent.update(fresh)
        known = self._known.of(fresh)
        sent = []
        for chunk in _chunks(fresh):
            pool = remote if is_remote(chunk[0]) else local
            own = {uri: known[uri] for uri in chunk if uri in known}
            sent.append((chunk, pool.submit(inspect_changed, chunk, own)))
        return sent

    def _receive(
        self, window: list[ResolvedSubject], sent: list[_Sent]
    ) -> Iterator[ResolvedSubject]:
        for chunk, future in sent:
            for uri, (verdict, version) in zip(chunk, future.result(), strict=True):
                self.verdicts[uri] = verdict
                if version is not None and isinstance(verdict, PhotoFacts):
                    self._known.remember(uri, version, verdict)
            if self._progress is not None:
                self._progress(len(self.verdicts), self._total)
        yield from window


def _chunks(uris: Iterable[str]) -> Iterator[list[str]]:
    """Photos that one thread checks together: of one archive, or adjacent on the local disk."""
    for place, group in groupby(uris, key=_place):
        members = list(group)
        size = 1 if "://" in place and not members[0].startswith("zip://") else CHUNK_PHOTOS
        for start in range(0, len(members), size):
            yield members[start : start + size]


def _place(uri: str) -> str:
    """The archive of a member, the address of a remote photo, and nothing for local photos."""
    if uri.startswith("zip://"):
        return split_member_uri(uri)[1]
    return uri if is_remote(uri) else ""


def _uris(subject: ResolvedSubject) -> Iterator[str]:
    yield from subject.uris
    yield from subject.class_images
