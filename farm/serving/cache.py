"""Adapters on their way in: store → local disk → host memory, each bounded, each verified.

Owns loading, verification and remembering of bad adapters. Loads run in threads of their own, in
parallel across adapters and once per adapter however many requests wait for it. The last tier,
the bank's slots, belongs to the engine, because only it knows which rows still run.

An adapter's identity is its job key, which names its content; so nothing here ever goes stale,
and a re-trained name arrives as another key. What may change is that a key is revoked.
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

from farm.adapters.files import DIFFUSERS_FILE, PEFT_FOLDER, PEFT_WEIGHTS, RECORD_FILE
from farm.adapters.record import AdapterRecord
from farm.adapters.weights import AdapterWeights
from farm.errors import AdapterFileError, AdapterNotFound, FarmError, StoreError
from farm.keys import file_digest
from farm.safe_names import is_safe_name
from farm.serving.request import AdapterRef
from farm.serving.revocations import Revocations
from farm.serving.tiers import CacheLimits, CacheStats, DiskTier, MemoryTier, Pinned, Tier

__all__ = ["AdapterCache", "AdapterSource", "HostedAdapter"]

LOG = logging.getLogger(__name__)


class AdapterSource(Protocol):
    """Where adapters come from; ``farm.adapters.registry.Registry`` is one."""

    def is_committed(self, job_key: str) -> bool:
        """Whether the adapter is whole in the store."""

    def fetch(
        self, job_key: str, local_folder: str | Path, *, names: Collection[str] | None = None
    ) -> AdapterRecord:
        """Copy the named files (all if None) and the record into a folder."""

    def record(self, job_key: str) -> AdapterRecord:
        """What the store knows of an adapter."""

    def revoked_keys(self) -> Collection[str]:
        """All keys that were withdrawn."""


@dataclass(frozen=True, slots=True)
class HostedAdapter:
    """A verified adapter in host memory."""

    key: str
    weights: AdapterWeights
    sha256: str
    """Of the (first) weights file that was read."""
    tier: Tier
    """Where this load found it."""
    load_s: float
    """Seconds from the request to host memory; 0 if it was there."""

    @property
    def num_bytes(self) -> int:
        """Of all weights."""
        return sum(
            tensor.numel() * tensor.element_size()
            for layer in self.weights.layers.values()
            for tensor in (layer.down, layer.up)
        )


class AdapterCache:
    """The tiers above the slots, one per engine."""

    def __init__(
        self,
        source: AdapterSource,
        read: Callable[[Path], AdapterWeights],
        *,
        folder: Path,
        base_fingerprint: str,
        check: Callable[[AdapterWeights], None] = lambda weights: None,
        prepare: Callable[[AdapterWeights], AdapterWeights] = lambda weights: weights,
        limits: CacheLimits | None = None,
        revocations: Revocations | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Open the tiers.

        Args:
            source: where adapters come from.
            read: reads a safetensors file or a PEFT folder; raises AdapterFileError, also for
                values that are not finite.
            folder: of the disk tier; processes of one machine may share it.
            base_fingerprint: adapters of another base are refused.
            check: raises AdapterFileError if the weights do not fit the bank.
            prepare: last change before host memory, such as the bank's dtype and page-locking.
        """
        self._source = source
        self._read = read
        self._base_fingerprint = base_fingerprint
        self._check = check
        self._prepare = prepare
        self._limits = limits or CacheLimits()
        self._clock = clock
        self.revocations = revocations or Revocations(source.revoked_keys)
        self.revocations.listen(self._purge)
        self._disk = DiskTier(folder, self._limits.disk_bytes)
        self._host: MemoryTier[HostedAdapter] = MemoryTier(self._limits.host_bytes)
        self._flights: dict[str, list[Future[Pinned[HostedAdapter]]]] = {}
        self._bad: dict[str, tuple[float, AdapterFileError]] = {}
        self._lock = threading.Lock()
        self._loaders = ThreadPoolExecutor(self._limits.num_loaders, thread_name_prefix="load")
        self._stats = CacheStats()

    def start(self) -> None:
        """Begin to watch for revocations."""
        self.revocations.start()

    def close(self) -> None:
        """End the threads; loads that have begun end first."""
        self.revocations.stop()
        self._loaders.shutdown(wait=True, cancel_futures=True)

    @property
    def stats(self) -> CacheStats:
        """Counts and sizes now."""
        self._stats.host_bytes = self._host.num_bytes
        self._stats.disk_bytes = self._disk.num_bytes
        return self._stats

    def is_hosted(self, key: str) -> bool:
        """Whether an adapter lies in host memory."""
        return key in self._host

    # -- taking into use ----------------------------------------------------------------------

    def acquire(self, ref: AdapterRef) -> Future[Pinned[HostedAdapter]]:
        """Bring an adapter to host memory and pin it there; never blocks on a load.

        The future's error is AdapterNotFound (no such adapter, or revoked), AdapterFileError
        (it cannot be used, and why) or StoreError (the store did not answer; try again).
        Whoever gets the pinned adapter releases it.
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
                self._flights[ref.key].append(future)
            else:
                self._flights[ref.key] = [future]
                self._loaders.submit(self._fly, ref)
        return future

    def check(self, ref: AdapterRef) -> None:
        """Refuse what cannot be served, as far as is known without a load.

        Raises:
            AdapterNotFound: for a malformed or revoked key.
            AdapterFileError: for an adapter that was found bad a while ago.
            StoreError: if the revocations are too old to tell.
        """
        if not is_safe_name(ref.key):
            raise _not_found(ref)
        self.revocations.check(ref.key, ref.label)
        bad = self._bad.get(ref.key)
        if bad is None:
            return
        if self._clock() < bad[0]:
            raise AdapterFileError(*bad[1].args)  # a fresh one, without old tracebacks
        self._bad.pop(ref.key, None)

    def _fly(self, ref: AdapterRef) -> None:
        """Load for all who wait; their futures get the outcome, whatever it is."""
        started_s = self._clock()
        try:
            hosted = self._load(ref, started_s)
            self.revocations.check(ref.key, ref.label)  # it may have been revoked meanwhile
        except BaseException as error:
            self._land_failed(ref, error)
            return
        with self._lock:
            waiting = self._flights.pop(ref.key)
            mine = self._host.add(ref.key, hosted, hosted.num_bytes)
            self._stats.load_s += hosted.load_s
        for future in waiting:
            if future.set_running_or_notify_cancel():
                future.set_result(self._host.pin(ref.key) or Pinned(hosted))
        mine.release()

    def _land_failed(self, ref: AdapterRef, error: BaseException) -> None:
        if isinstance(error, AdapterFileError):
            LOG.warning("adapter %s is refused: %s", ref.label, error.message)
            self._bad[ref.key] = (self._clock() + self._limits.bad_for_s, error)
        elif not isinstance(error, FarmError):
            LOG.error("loading %s failed", ref.label, exc_info=error)
            error = StoreError(f"adapter {ref.label} could not be loaded", "try again later")
        with self._lock:
            self._stats.failed += 1
            waiting = self._flights.pop(ref.key)
        for future in waiting:
            if future.set_running_or_notify_cancel():
                future.set_exception(error)

    # -- loading ------------------------------------------------------------------------------

    def _load(self, ref: AdapterRef, started_s: float) -> HostedAdapter:
        """From the disk if it is there and good, else from the store."""
        try:
            with self._disk.use(ref.key) as folder:
                if folder is not None:
                    hosted = self._open(ref, folder, "disk", started_s)
                    self._count("disk_hits")
                    return hosted
        except AdapterFileError as error:
            # the local copy may be at fault: the store decides
            LOG.warning("the disk's copy of %s is bad: %s", ref.label, error.message)
            self._disk.drop(ref.key)
        try:
            with self._disk.bring(ref.key, lambda empty: self._fetch(ref, empty)) as folder:
                self._count("store_loads")
                return self._open(ref, folder, "store", started_s)
        except AdapterFileError:
            self._disk.drop(ref.key)
            raise

    def _count(self, name: str) -> None:
        with self._lock:
            setattr(self._stats, name, getattr(self._stats, name) + 1)

    def _fetch(self, ref: AdapterRef, folder: Path) -> None:
        try:
            record = self._source.record(ref.key)
            self._source.fetch(ref.key, folder, names=_served_form(ref, record)[1])
        except AdapterFileError as error:
            if not self._source.is_committed(ref.key):
                raise _not_found(ref) from error
            raise _bad(ref, _without_path(error.message, folder), error.remedy) from error

    def _open(self, ref: AdapterRef, folder: Path, tier: Tier, started_s: float) -> HostedAdapter:
        """Verify an adapter's files and read them.

        Raises:
            AdapterFileError: naming the adapter and what is wrong with it, and no path.
        """
        try:
            record = AdapterRecord.model_validate_json((folder / RECORD_FILE).read_bytes())
            self._check_record(ref, record)
            target, names = _served_form(ref, record)
            for name in names:
                self._check_file(ref, folder / name, record.files[name])
            weights = self._read(folder / target)
            self._check(weights)
        except AdapterFileError as error:
            raise _bad(ref, _without_path(error.message, folder), error.remedy) from error
        except (OSError, ValueError) as error:
            raise _bad(ref, _without_path(str(error), folder)) from error
        prepared = self._prepare(weights)
        sha256 = record.files[names[0]]
        return HostedAdapter(ref.key, prepared, sha256, tier, self._clock() - started_s)

    def _check_record(self, ref: AdapterRef, record: AdapterRecord) -> None:
        if record.job_key != ref.key:
            raise _bad(ref, "its record names another job")
        if record.base_fingerprint != self._base_fingerprint:
            raise _bad(ref, f"it was trained on another base, {record.base_id}")

    def _check_file(self, ref: AdapterRef, path: Path, sha256: str) -> None:
        most = self._limits.max_file_bytes
        if path.stat().st_size > most:
            raise _bad(ref, f"{path.name} is over {most} bytes")
        if file_digest(path) != sha256:
            raise _bad(ref, f"{path.name} is not the file that was committed (sha256)")

    def _purge(self, keys: frozenset[str]) -> None:
        """Remove revoked adapters from every tier that this cache owns."""
        for key in keys:
            self._host.drop(key)
            if is_safe_name(key):
                self._disk.drop(key)


def _served_form(ref: AdapterRef, record: AdapterRecord) -> tuple[str, list[str]]:
    """What to read (a file, or PEFT's folder) and the files that takes, in whichever form there is.

    Raises:
        AdapterFileError: if the adapter has no safetensors file.
    """
    if DIFFUSERS_FILE in record.files:
        return DIFFUSERS_FILE, [DIFFUSERS_FILE]
    if f"{PEFT_FOLDER}/{PEFT_WEIGHTS}" in record.files:
        prefix = f"{PEFT_FOLDER}/"
        return PEFT_FOLDER, sorted(name for name in record.files if name.startswith(prefix))
    single = sorted(name for name in record.files if name.endswith(".safetensors"))
    if not single:
        raise _bad(ref, "it has no safetensors file; nothing else is read")
    return single[0], single[:1]


def _bad(ref: AdapterRef, reason: str, remedy: str = "") -> AdapterFileError:
    prefix = f"adapter {ref.label} cannot be used: "
    general = "train it again, or revoke it and publish a good one"
    return AdapterFileError(prefix + reason.removeprefix(prefix), remedy or general)


def _not_found(ref: AdapterRef) -> AdapterNotFound:
    return AdapterNotFound(
        f"no adapter {ref.label}", "list the adapters with GET /v1/models", "model"
    )


def _without_path(message: str, folder: Path) -> str:
    return message.replace(f"{folder}/", "").replace(str(folder), "its folder")
