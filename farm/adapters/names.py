"""Names of adapters: what a name points to, and the form of its file in the store.

Owns ``names/<namespace>/<name>.json``; ``registry`` reads and writes it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from farm.adapters.record import AdapterRecord

__all__ = ["SAMPLES", "NamedAdapter", "pointer_of", "pointed_to"]

SAMPLES = ("samples/", "samples-others/")
"""Samples for the prompts of the namespace that trained it, and of namespaces that share it."""


@dataclass(frozen=True, slots=True)
class NamedAdapter:
    """A name and the adapter that it points to."""

    namespace: str
    name: str
    job_key: str
    sha256: str
    """Digest of the weights file, so that caches can verify their copy; of ``adapter.json`` if
    there is no weights file."""
    created: str
    """When the name was pointed here, ISO 8601 in UTC."""
    samples: tuple[str, ...] | None = None
    """The sample images generated for this name's own prompts; an adapter may have others, for
    another namespace that shares the job. None in pointers written by older versions."""
    earlier: tuple[NamedAdapter, ...] = ()
    """Previous adapters of the name, latest first."""

    def shows(self, picture: str, record: AdapterRecord) -> bool:
        """Whether a sample image of the adapter's record is this name's own."""
        if self.samples is not None:
            return picture in self.samples
        # a name of an older farm version: the samples are those of the first training
        return self.namespace == record.namespace and picture.startswith(SAMPLES[0])

    def version(self, job_key: str) -> NamedAdapter | None:
        """The current or an earlier adapter of the name, by job key."""
        return next((it for it in (self, *self.earlier) if it.job_key == job_key), None)

    def version_without_history(
        self, job_key: str, owner: tuple[str, str], sha256: str, created: str
    ) -> NamedAdapter | None:
        """An adapter of the name that its history lacks, as names of older farm versions have none.

        Args:
            owner: namespace and name in the adapter's record, which are those of its first owner.
        """
        if owner != (self.namespace, self.name):
            return None
        return NamedAdapter(self.namespace, self.name, job_key, sha256, created)


def _one(namespace: str, name: str, body: Mapping[str, Any]) -> NamedAdapter:
    """Parse a pointer; older ones have no samples and no earlier versions."""
    samples = body.get("samples")
    return NamedAdapter(
        namespace,
        name,
        job_key=str(body.get("job_key", "")),
        sha256=str(body.get("sha256", "")),
        created=str(body.get("created", "")),
        samples=tuple(map(str, samples)) if isinstance(samples, list) else None,
    )


def pointed_to(namespace: str, name: str, body: Mapping[str, Any]) -> NamedAdapter:
    """What the content of a name's file says."""
    earlier = body.get("earlier")
    return replace(
        _one(namespace, name, body),
        earlier=tuple(
            _one(namespace, name, it)
            for it in (earlier if isinstance(earlier, list) else [])
            if isinstance(it, dict)
        ),
    )


def pointer_of(named: NamedAdapter) -> dict[str, Any]:
    """The content of a name's file."""
    body: dict[str, Any] = {
        "job_key": named.job_key,
        "sha256": named.sha256,
        "created": named.created,
    }
    if named.samples is not None:
        body["samples"] = list(named.samples)
    if named.earlier:
        body["earlier"] = [pointer_of(it) for it in named.earlier]
    return body
