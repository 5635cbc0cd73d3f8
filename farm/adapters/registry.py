"""Adapters in the store: committed by key, found by name, revoked by tombstone.

Owns ``adapters/``, ``names/`` and ``revoked/`` in the store. Does not depend on the contents of
adapter files: ``farm.adapters.files`` reads and writes them, ``record`` defines ``adapter.json``.

An adapter is committed when its ``adapter.json`` exists, and that file is written last. A committed
adapter never changes; a name is a pointer that is replaced atomically.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from itertools import zip_longest
from pathlib import Path

from farm.adapters.file_names import DIFFUSERS_FILE, RECORD_FILE
from farm.adapters.names import SAMPLES, NamedAdapter, pointed_to, pointer_of
from farm.adapters.record import AdapterRecord
from farm.errors import AdapterFileError, UserError
from farm.keys import bytes_digest, file_digest
from farm.storage import Store
from farm.text.safe_names import is_safe_name

__all__ = ["NEW_VERSION", "SAMPLES", "NamedAdapter", "Registry", "is_revoked_among"]

PARALLEL_READS = 16
"""Concurrent store look-ups; on object stores each takes tens of milliseconds."""
FEW_KEYS = 64
"""Up to this many keys are looked up without a listing."""
KEYS_PER_LOOKUP = 32
"""A listing of everything names about ten objects per adapter, a thousand in one request; it is
slower than look-ups where the keys are fewer than one in this many adapters."""
NEW_VERSION = "another recipe trains a new version, for example `farm run … --set seed=1`"
"""What to do about a revoked adapter: the same photos and recipe are the same finished job."""
MAX_EARLIER = 64
"""Earlier versions of a name that can still be requested by key."""


def is_revoked_among(revoked: Collection[str], job_key: str, namespace: str) -> bool:
    """Whether ``Registry.revoked_keys`` revoke an adapter for all namespaces, or for this one."""
    return job_key in revoked or f"{job_key}@{namespace}" in revoked


class Registry:
    """The committed adapters of one store. Picklable; has no state except the store."""

    def __init__(self, store: Store) -> None:
        self.store = store

    # -- committing ---------------------------------------------------------------------------

    def publish(
        self,
        record: AdapterRecord,
        local_folder: str | Path,
        *,
        names: Iterable[tuple[str, str]] | None = None,
        prompts: Iterable[Collection[str] | None] = (),
    ) -> bool:
        """Commit a saved adapter and point its names to it.

        Uploads the files, then ``adapter.json``, then writes the names. If it is called again after
        a crash, it completes what is missing and changes nothing that was committed. If two lanes
        publish one job at the same time, the files of the later one are used.

        Args:
            record: as returned by ``save_adapter``; ``files`` names the files to upload.
            local_folder: contains the files and ``adapter.json``.
            names: (namespace, name) pairs; None uses the record's own.
            prompts: the sample prompts of each name, see ``point``.

        Returns:
            Whether this call committed it; False if it was already committed.

        Raises:
            AdapterFileError: if a local file is missing or does not match the record.
        """
        folder = Path(local_folder)
        fresh = self._commit(record, folder)
        pairs = [(record.namespace, record.name)] if names is None else list(names)
        committed = self.record(record.job_key)
        for (namespace, name), own in zip_longest(pairs, list(prompts)[: len(pairs)]):
            self.point(namespace, name, committed, prompts=own)
        return fresh

    def _commit(self, record: AdapterRecord, folder: Path) -> bool:
        """Upload the files and the marker; False if another process was faster."""
        key = record.job_key
        if self.is_committed(key):
            return False
        _check_files(folder, record)
        marker, body = _adapter_path(key, RECORD_FILE), (folder / RECORD_FILE).read_bytes()
        for name in sorted(record.files):
            # before each file: a process that was paused must not replace committed files
            if self.is_committed(key):
                break
            self.store.upload(folder / name, _adapter_path(key, name))
        else:
            if self.store.create(marker, body):
                return True
        if not self._is_intact(self.record(key)):  # this process replaced some of its files
            for name in sorted(record.files):
                self.store.upload(folder / name, _adapter_path(key, name))
            self.store.write(marker, body)
        return False

    def _is_intact(self, record: AdapterRecord) -> bool:
        """Whether the files in the store are those of a record."""
        paths = {_adapter_path(record.job_key, name): it for name, it in record.files.items()}
        return all(bytes_digest(self.store.read(path)) == it for path, it in paths.items())

    def point(
        self,
        namespace: str,
        name: str,
        record: AdapterRecord,
        *,
        prompts: Collection[str] | None = None,
    ) -> NamedAdapter:
        """Point a name to a committed adapter; writes nothing if it already points there.

        Args:
            prompts: prompts of the name's own samples, with the identifier. Images for other
                prompts are not shown under the name, except that the record's own namespace shows
                the images generated for the job itself.
        """
        path = _name_path(namespace, name)
        sha256 = weights_digest(record)
        before = self._read_name(namespace, name)
        if before is not None and (before.job_key, before.sha256) == (record.job_key, sha256):
            return before
        earlier: tuple[NamedAdapter, ...] = ()
        if before is not None:
            kept = (it for it in (before, *before.earlier) if it.job_key != record.job_key)
            earlier = tuple(replace(it, earlier=()) for it in kept)[:MAX_EARLIER]
        named = NamedAdapter(
            namespace,
            name,
            record.job_key,
            sha256,
            datetime.now(UTC).isoformat(),
            _own_samples(record, namespace, prompts),
            earlier,
        )
        self.store.write_json(path, pointer_of(named))
        return named

    # -- finding ------------------------------------------------------------------------------

    def is_committed(self, job_key: str) -> bool:
        """Whether the adapter of a job is complete in the store."""
        return self.store.exists(_adapter_path(job_key, RECORD_FILE))

    def committed_among(self, job_keys: Iterable[str]) -> set[str]:
        """The given keys that are committed: looked up one by one if they are few, else found in
        listings of the store."""
        keys = set(job_keys)
        if len(keys) > FEW_KEYS:
            present = self.store.list("adapters")
            keys.intersection_update(present)
            if len(keys) > max(FEW_KEYS, len(present) // KEYS_PER_LOOKUP):
                return keys & self._complete(present)
        ordered = sorted(keys)
        with ThreadPoolExecutor(PARALLEL_READS) as pool:
            found = pool.map(self.is_committed, ordered)
            return {key for key, committed in zip(ordered, found, strict=True) if committed}

    def committed_keys(self) -> list[str]:
        """The keys of all committed adapters, sorted; incomplete ones are left out."""
        return sorted(self._complete(self.store.list("adapters")))

    def _complete(self, present: Iterable[str]) -> set[str]:
        """The adapters' folders that contain a record; ``present`` are the names of all folders."""
        firsts = sorted({key[0] for key in present}) or [""]
        return self.store.folders_with("adapters", RECORD_FILE, prefixes=firsts)

    def record(self, job_key: str) -> AdapterRecord:
        """The record of a committed adapter.

        Raises:
            AdapterFileError: if there is none, or it cannot be read.
        """
        path = _adapter_path(job_key, RECORD_FILE)
        try:
            return AdapterRecord.from_json(self.store.read(path), f"{self.store.url}/{path}")
        except FileNotFoundError as error:
            raise AdapterFileError(
                f"no adapter {job_key} in {self.store.url}",
                "list the names with `farm list`, or train it with `farm run`",
            ) from error

    def resolve(self, namespace: str, name: str) -> NamedAdapter | None:
        """The adapter that a name points to, or None if the name does not exist. Does not check
        revocation."""
        return self._read_name(namespace, name)

    def names(self, namespace: str | None = None) -> Iterator[NamedAdapter]:
        """All names, or those of one namespace, sorted."""
        spaces = self.store.list("names") if namespace is None else [namespace]
        pairs = ((space, name) for space in spaces for name in self.listing(space))
        with ThreadPoolExecutor(PARALLEL_READS) as pool:
            for named in pool.map(lambda pair: self._read_name(*pair), pairs):
                if named is not None:
                    yield named

    def listing(self, namespace: str) -> list[str]:
        """The names in a namespace, sorted; one listing, without reading them."""
        files = self.store.list(f"names/{_safe(namespace)}")
        return sorted(file.removesuffix(".json") for file in files if file.endswith(".json"))

    def fetch(
        self, job_key: str, local_folder: str | Path, *, names: Collection[str] | None = None
    ) -> AdapterRecord:
        """Copy an adapter's files to a local folder and verify each against its digest.

        ``adapter.json`` is written last, so that its presence marks a complete folder.

        Args:
            names: the files to copy; None copies all.

        Raises:
            AdapterFileError: if the adapter is not committed or a file does not match its digest.
        """
        record = self.record(job_key)
        folder = Path(local_folder)
        for name, sha256 in sorted(record.files.items()):
            if names is not None and name not in names:
                continue
            target = folder / name
            if target.is_file() and file_digest(target) == sha256:
                continue
            try:
                self.store.download(_adapter_path(job_key, name), target)
            except FileNotFoundError as error:
                raise _broken(job_key, f"{name} is missing") from error
            if file_digest(target) != sha256:
                target.unlink()
                raise _broken(job_key, f"{name} is not the file that was committed")
        self.store.download(_adapter_path(job_key, RECORD_FILE), folder / RECORD_FILE)
        return record

    # -- revoking -----------------------------------------------------------------------------

    def revoke(
        self,
        namespace: str | None = None,
        name: str | None = None,
        *,
        job_key: str | None = None,
        reason: str = "",
    ) -> str:
        """Revoke an adapter, so that it is no longer served. Its files stay.

        By name it is revoked in that name's namespace only: another namespace that trained the same
        photos shares the job and keeps the adapter. A key beside the name is the version to revoke;
        a key alone is revoked everywhere.

        Returns:
            The revoked job key.

        Raises:
            UserError: if neither a known name nor a key is given.
        """
        whose = ""
        if job_key is None or name is not None:
            space = namespace or "default"
            named = self._read_name(space, name) if name else None
            if named is None:
                raise UserError(
                    f"no adapter is named {space}/{name}",
                    "give a name that exists, or the job key",
                )
            job_key, whose = job_key or named.job_key, f"@{_safe(space)}"
        body = {"job_key": job_key, "reason": reason, "revoked": datetime.now(UTC).isoformat()}
        data = json.dumps(body, indent=2, sort_keys=True).encode()
        self.store.create(f"revoked/{_safe(job_key)}{whose}.json", data)
        return job_key

    def sample(self, job_key: str, name: str) -> bytes:
        """One of a committed adapter's sample images, by its name in ``adapter.json``.

        Raises:
            FileNotFoundError: if it does not exist.
        """
        return self.store.read(_adapter_path(job_key, name))

    def is_revoked(self, job_key: str, namespace: str | None = None) -> bool:
        """Whether an adapter is revoked in a namespace; None means in any."""
        if namespace is None:
            return any(entry.partition("@")[0] == job_key for entry in self.revoked_keys())
        return self.store.exists(f"revoked/{_safe(job_key)}.json") or self.store.exists(
            f"revoked/{_safe(job_key)}@{_safe(namespace)}.json"
        )

    def revoked_keys(self) -> set[str]:
        """All revocations, from one listing: job keys, or ``key@namespace`` for a revocation in one
        namespace."""
        return {
            name.removesuffix(".json")
            for name in self.store.list("revoked")
            if name.endswith(".json")
        }

    # -- inside -------------------------------------------------------------------------------

    def _read_name(self, namespace: str, name: str) -> NamedAdapter | None:
        try:
            body = self.store.read_json(_name_path(namespace, name))
        except FileNotFoundError:
            return None
        if not isinstance(body, dict):
            raise AdapterFileError(
                f"{self.store.url}/{_name_path(namespace, name)} is not a pointer to an adapter",
                "run the manifest again, or import the adapter again",
            )
        return pointed_to(namespace, name, body)


def _own_samples(
    record: AdapterRecord, namespace: str, prompts: Collection[str] | None
) -> tuple[str, ...]:
    """The sample images that a name may show."""
    pictures = sorted(file for file in record.files if file.startswith(SAMPLES))
    return tuple(
        file
        for file in pictures
        if (namespace == record.namespace and file.startswith(SAMPLES[0]))
        or record.sample_prompts.get(file) in (prompts or ())
    )


def _check_files(folder: Path, record: AdapterRecord) -> None:
    for name, sha256 in sorted(record.files.items()):
        file = folder / name
        if not file.is_file():
            raise _broken(record.job_key, f"{name} was not saved")
        if file_digest(file) != sha256:
            raise _broken(record.job_key, f"{name} changed after it was saved")


def weights_digest(record: AdapterRecord) -> str:
    """Digest of the weights file, or of the record if there is none: ``NamedAdapter.sha256``."""
    return record.files.get(DIFFUSERS_FILE) or bytes_digest(record.model_dump_json().encode())


def _adapter_path(job_key: str, name: str) -> str:
    return f"adapters/{_safe(job_key)}/{name}"


def _name_path(namespace: str, name: str) -> str:
    return f"names/{_safe(namespace)}/{_safe(name)}.json"


def _safe(part: str) -> str:
    """One part of a path, rejected if it could leave its folder."""
    if not is_safe_name(part):
        raise UserError(
            f"{part!r} cannot be a name", "use letters, digits, dot, dash and underscore"
        )
    return part


def _broken(job_key: str, what: str) -> AdapterFileError:
    return AdapterFileError(
        f"adapter {job_key}: {what}", "remove the adapter's folder and run the manifest again"
    )
