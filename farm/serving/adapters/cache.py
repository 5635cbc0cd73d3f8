"""The adapter cache: store → local disk → host memory, each bounded, each verified.

Owns loading and verification, and remembers invalid adapters. Loads run in their own threads, in
parallel across adapters and once per adapter, however many requests wait for it. The last tier, the
bank's slots, belongs to the engine, which alone knows which rows are still running.

An adapter is identified by its job key, which names its content, so nothing here becomes stale: a
retrained name has another key. A key can only be revoked.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from farm.adapters.file_names import DIFFUSERS_FILE, PEFT_FOLDER, PEFT_WEIGHTS
from farm.adapters.record import AdapterRecord
from farm.adapters.weights import AdapterWeights
from farm.base.names import trained_on
from farm.errors import AdapterFileError, AdapterNotFound, FarmError, StoreError
from farm.keys import file_digest
from farm.serving.adapters.cache_tiers import (
    KEY,
    DiskTier,
    MemoryTier,
    Pinned,
    Tier,
)
from farm.serving.adapters.revocations import Revocations
from farm.serving.config import CacheLimits, CacheStats
from farm.serving.request import AdapterRef

__all__ = ["AdaptedBase", "AdapterCache", "AdapterSource", "HostedAdapter"]

LOG = logging.getLogger(__name__)


class AdapterSource(Protocol):
    """A source of adapters, such as ``farm.adapters.registry.Registry``."""

    def is_committed(self, job_key: str) -> bool:
        """Whether the adapter is complete in the store."""

    def fetch(
        self, job_key: str, local_folder: str | Path, *, names: Collection[str] | None = None
    ) -> AdapterRecord:
        """Copy the named files (all if None) and the record into a folder."""

    def record(self, job_key: str) -> AdapterRecord:
        """The store's record of an adapter."""

    def revoked_keys(self) -> Collection[str]:
        """All revoked keys."""


@dataclass(frozen=True, slots=True)
class HostedAdapter:
    """A verified adapter in host memory."""

    key: str
    weights: AdapterWeights
    sha256: str
    """Digest of the (first) weights file that was read."""
    tier: Tier
    """Where this load found the adapter."""
    load_s: float
    """Seconds from the request to host memory; 0 if it was already there."""

    @property
    def num_bytes(self) -> int:
        """Size of all weights."""
        return sum(
            tensor.numel() * tensor.element_size()
            for layer in self.weights.layers.values()
            for tensor in (layer.down, layer.up)
        )


@dataclass(frozen=True, slots=True)
class AdaptedBase:
    """The base whose adapters are served; others are refused before their files are read."""

    fingerprint: str
    family: str
    """As messages name it."""


class AdapterCache:
    """The tiers above the slots, one per engine."""

    def __init__(
        self,
        source: AdapterSource,
        read: Callable[[Path], AdapterWeights],
        *,
        folder: Path,
        base: AdaptedBase,
        prepare: Callable[[AdapterWeights], AdapterWeights] = lambda weights: weights,
        limits: CacheLimits | None = None,
        revocations: Revocations | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Open the tiers.

        Args:
            source: of the adapters.
            read: reads a safetensors file or a PEFT folder; raises AdapterFileError, also for
                values that are not finite.
            folder: of the disk tier; processes of one machine may share it.
            base: adapters of another one are refused.
            prepare: checks weights and converts them for host memory, such as to the base's dtype;
                raises AdapterFileError if they do not fit.
        """
        self._source = source
        self._read = read
        self._base = base
        self._prepare = prepare
        self._limits = limits or CacheLimits()
        self._clock = clock
        self.revocations = revocations or Revocations(
            source.revoked_keys, max_age_s=self._limits.revocations_max_age_s
        )
        self.revocations.listen(self._purge)
        self._disk = DiskTier(folder, self._limits.disk_bytes)
        self._host: MemoryTier[HostedAdapter] = MemoryTier(self._limits.host_bytes)
        self._flights: dict[str, list[tuple[AdapterRef, Future[Pinned[HostedAdapter]]]]] = {}
        self._bad: dict[str, tuple[float, _Unusable]] = {}
        self._lock = threading.Lock()
        self._loaders = ThreadPoolExecutor(self._limits.num_loaders, thread_name_prefix="load")
        self._stats = CacheStats()

    def start(self) -> None:
        """Start watching for revocations."""
        self.revocations.start()

    def close(self) -> None:
        """Stop the threads after loads in progress."""
        self.revocations.stop()
        self._loaders.shutdown(wait=True, cancel_futures=True)

    @property
    def stats(self) -> CacheStats:
        """Current counts and sizes."""
        self._stats.host_bytes = self._host.num_bytes
        self._stats.disk_bytes = self._disk.num_bytes
        return self._stats

    def is_hosted(self, key: str) -> bool:
        """Whether an adapter is in host memory."""
        return key in self._host

    # -- acquiring ----------------------------------------------------------------------------

    def acquire(self, ref: AdapterRef) -> Future[Pinned[HostedAdapter]]:
        """Load an adapter into host memory and pin it there; never blocks on a load.

        The future's error is AdapterNotFound (no such adapter, or revoked), AdapterFileError
        (unusable, with the reason) or StoreError (the store did not answer; try again). The caller
        releases the pinned adapter.
        """
        future: Future[Pinned[HostedAdapter]] = Future()
        try:
            self.check(ref)
        except FarmError as error:
            self._count("refused")
            future.set_exception(error)
            return future
        with self._lock:
            pinned = self._host.pin(ref.key)
            if pinned is not None:
                self._stats.host_hits += 1
                future.set_result(pinned)
            elif ref.key in self._flights:
                self._stats.joined_loads += 1
                self._flights[ref.key].append((ref, future))
            else:
                self._flights[ref.key] = [(ref, future)]
                self._loaders.submit(self._fly, ref)
        return future

    def check(self, ref: AdapterRef) -> None:
        """Refuse an adapter that is known, without a load, to be unavailable.

        Raises:
            AdapterNotFound: for a malformed or revoked key.
            AdapterFileError: for an adapter recently found invalid.
            StoreError: if the list of revocations is too old.
        """
        if not KEY.fullmatch(ref.key):
            raise _not_found(ref)
        self.revocations.check(ref.key, ref.label, ref.namespace)
        bad = self._bad.get(ref.key)
        if bad is None:
            return
        if self._clock() < bad[0]:
            raise _bad(ref, bad[1])
        self._bad.pop(ref.key, None)

    def _fly(self, ref: AdapterRef) -> None:
        """Load for all waiting requests; their futures get the result or the error."""
        started_s = self._clock()
        try:
            hosted = self._load(ref, started_s)
            # it may have been revoked during the load
            self.revocations.check(ref.key, ref.label, ref.namespace)
        except BaseException as error:
            self._land_failed(ref, error)
            return
        with self._lock:
            waiting = self._flights.pop(ref.key)
            mine = self._host.add(ref.key, hosted, hosted.num_bytes)
            self._stats.load_s += hosted.load_s
        for _, future in waiting:
            if future.set_running_or_notify_cancel():
                future.set_result(self._host.pin(ref.key) or Pinned(hosted))
        mine.release()

    def _land_failed(self, ref: AdapterRef, error: BaseException) -> None:
        """Report the error to each waiter with its own name for the adapter: a job may have
        several."""
        if isinstance(error, _Unusable):
            LOG.warning("adapter %s is refused: %s", ref.label, error.reason)
            self._bad[ref.key] = (self._clock() + self._limits.bad_for_s, error)
        elif not isinstance(error, FarmError):
            LOG.error("loading %s failed", ref.label, exc_info=error)
        with self._lock:
            self._stats.failed += 1
            waiting = self._flights.pop(ref.key)
        for whose, future in waiting:
            if future.set_running_or_notify_cancel():
                future.set_exception(_error_for(whose, error))

    # -- loading ------------------------------------------------------------------------------

    def _load(self, ref: AdapterRef, started_s: float) -> HostedAdapter:
        """Load from the disk if a valid copy is there, else from the store. Validity is decided by
        the store's own record, never by the disk's copy of it."""
        record = self._record(ref)
        try:
            with self._disk.use(ref.key) as folder:
                if folder is not None:
                    hosted = self._open(ref, record, folder, "disk", started_s)
                    self._count("disk_hits")
                    return hosted
        except _Unusable as error:
            # only the local copy may be damaged: read the store's
            LOG.warning("the disk's copy of %s is invalid: %s", ref.label, error.reason)
            self._disk.drop(ref.key)
        try:
            with self._disk.bring(ref.key, lambda empty: self._fetch(ref, record, empty)) as folder:
                self._count("store_loads")
                return self._open(ref, record, folder, "store", started_s)
        except _Unusable:
            self._disk.drop(ref.key)
            raise

    def _count(self, name: str) -> None:
        with self._lock:
            setattr(self._stats, name, getattr(self._stats, name) + 1)

    def _record(self, ref: AdapterRef) -> AdapterRecord:
        """The store's record, checked against the request's reference."""
        try:
            record = self._source.record(ref.key)
        except AdapterFileError as error:
            if not self._source.is_committed(ref.key):
                raise _not_found(ref) from error
            raise _Unusable("its record cannot be read") from error
        if record.job_key != ref.key:
            raise _Unusable("its record names another job")
        if record.base_fingerprint != self._base.fingerprint:
            known_as = trained_on(record.base_id, record.base_fingerprint)
            raise _Unusable(
                f"it was trained on another base, {known_as} ({record.base_family.title}); "
                f"the base here is {self._base.family}",
                "use it with the base that it was trained on",
            )
        return record

    def _fetch(self, ref: AdapterRef, record: AdapterRecord, folder: Path) -> None:
        try:
            self._source.fetch(ref.key, folder, names=_served_form(record)[1])
        except AdapterFileError as error:
            raise _Unusable(_without_path(error.message, folder)) from error

    def _open(
        self, ref: AdapterRef, record: AdapterRecord, folder: Path, tier: Tier, started_s: float
    ) -> HostedAdapter:
        """Verify an adapter's files and read them.

        Raises:
            _Unusable: describes the problem, without a path.
        """
        try:
            target, names = _served_form(record)
            for name in names:
                self._check_file(folder / name, record.files[name])
            prepared = self._prepare(self._read(folder / target))
        except AdapterFileError as error:
            raise _Unusable(_without_path(error.message, folder), error.remedy) from error
        except (OSError, ValueError) as error:
            raise _Unusable(_without_path(str(error), folder)) from error
        sha256 = record.files[names[0]]
        return HostedAdapter(ref.key, prepared, sha256, tier, self._clock() - started_s)

    def _check_file(self, path: Path, sha256: str) -> None:
        most = self._limits.max_file_bytes
        if path.is_symlink() or not path.is_file():
            raise _Unusable(f"{path.name} is not a plain file")
        if path.stat().st_size > most:
            raise _Unusable(f"{path.name} is over {most} bytes")
        if file_digest(path) != sha256:
            raise _Unusable(f"{path.name} is not the file that was committed (sha256)")

    def _purge(self, keys: frozenset[str]) -> None:
        """Remove revoked adapters from every tier of this cache."""
        for revoked in keys:
            key = revoked.partition("@")[0]  # another namespace that still has it loads it again
            self._host.drop(key)
            if KEY.fullmatch(key):
                self._disk.drop(key)


class _Unusable(Exception):
    """Why an adapter cannot be served; without its name, which differs by tenant."""

    def __init__(self, reason: str, remedy: str = "") -> None:
        super().__init__(reason)
        self.reason, self.remedy = reason, remedy


def _served_form(record: AdapterRecord) -> tuple[str, list[str]]:
    """What to read (a file, or a PEFT folder) and the files needed, in whichever form is stored.

    Raises:
        _Unusable: if the adapter has no safetensors file.
    """
    if DIFFUSERS_FILE in record.files:
        return DIFFUSERS_FILE, [DIFFUSERS_FILE]
    if f"{PEFT_FOLDER}/{PEFT_WEIGHTS}" in record.files:
        prefix = f"{PEFT_FOLDER}/"
        return PEFT_FOLDER, sorted(name for name in record.files if name.startswith(prefix))
    single = sorted(name for name in record.files if name.endswith(".safetensors"))
    if not single:
        raise _Unusable("it has no safetensors file; nothing else is read")
    return single[0], single[:1]


def _error_for(ref: AdapterRef, error: BaseException) -> BaseException:
    """A failed load's error, as reported to one waiting request."""
    if isinstance(error, _Unusable):
        return _bad(ref, error)
    if isinstance(error, AdapterNotFound):
        return _not_found(ref)
    if isinstance(error, FarmError):
        return type(error)(*error.args)
    return StoreError(f"adapter {ref.label} could not be loaded", "try again later")


def _bad(ref: AdapterRef, error: _Unusable) -> AdapterFileError:
    return AdapterFileError(
        f"adapter {ref.label} cannot be used: {error.reason}",
        error.remedy or "train it again, or revoke it and publish a valid one",
    )


def _not_found(ref: AdapterRef) -> AdapterNotFound:
    return AdapterNotFound(
        f"no adapter {ref.label}", "list the adapters with GET /v1/models", "model"
    )


def _without_path(message: str, folder: Path) -> str:
    return message.replace(f"{folder}/", "").replace(str(folder), "its folder")
