"""The catalog of adapters that each namespace can see.

Owns the endpoint's view of the registry. Names are at most ``NAME_TTL_S`` old, so that a new
adapter is available to the next request and a renamed or revoked one is noticed within seconds;
records, which are named by their content, are kept as long as there is room. A request for a
recently used adapter reads nothing from the store, and a page of names reads only that page.
"""

from __future__ import annotations

import asyncio
import re
from bisect import bisect_right
from collections.abc import Callable, Collection, Iterable, Sequence
from concurrent.futures import Executor
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, TypeVar

from farm.adapters.file_names import DIFFUSERS_FILE
from farm.adapters.record import BaseFamily
from farm.adapters.registry import NamedAdapter, Registry, is_revoked_among
from farm.errors import AdapterFileError, AdapterNotFound, StoreError
from farm.recipe import LongPrompts
from farm.serving.ttl_cache import MAX_AGE_S, PATIENCE_S, TtlCache
from farm.text.safe_names import is_job_key, is_safe_name

__all__ = ["AdapterFacts", "Catalog", "Page", "unix_seconds"]

NAME_TTL_S = 2.0
LISTING_TTL_S = 5.0
PAGE_TTL_S = 60.0
"""Maximum age of the dates shown in a listing; requests never use them."""
PAGE_READERS = 12
"""Threads that read one page, of those for store reads; requests use the others."""
MAX_COUNTED = 500
"""Names that are read to leave revoked ones out of the total."""
SLOW_READ_S = 0.25
"""Time allowed for each read of a thread beyond the caller's patience for one."""
NUM_RECORDS_KEPT = 20_000
Result = TypeVar("Result")
_SAMPLE = re.compile(r"samples(?:-others)?/[A-Za-z0-9_.\-]{1,100}\.(png|jpg|jpeg|webp)")


@dataclass(frozen=True, slots=True)
class AdapterFacts:
    """The parts of an adapter's record that requests and listings need, as one tenant sees it.

    ``resolve`` replaces the first tenant's names, date and samples with this tenant's."""

    job_key: str
    namespace: str
    name: str
    identifier: str
    class_noun: str | None
    instance_prompt: str | None
    """Both as the namespace that trained it wrote them; None for another that shares the job."""
    base_id: str
    base_fingerprint: str
    base_family: BaseFamily
    created: str
    sha256: str
    """Digest of the weights file."""
    long_prompts: LongPrompts
    """How prompts were read in training."""
    samples: tuple[str, ...]
    """Sample images by their paths within the adapter's folder."""


@dataclass(frozen=True, slots=True)
class Page:
    """A page of names, in order."""

    adapters: tuple[NamedAdapter, ...]
    has_more: bool
    total: int
    """Number of all matching names that can be requested: without revoked and broken ones.
    Those of more than ``MAX_COUNTED`` names are included, as nothing reads them all."""


class Catalog:
    """The adapters of a store, by namespace and name."""

    def __init__(
        self,
        registry: Registry,
        *,
        executor: Executor,
        name_ttl_s: float = NAME_TTL_S,
        max_age_s: float = MAX_AGE_S,
    ) -> None:
        """Args:
        name_ttl_s: maximum age of a name or a revocation.
        max_age_s: maximum age while the store does not answer; beyond it requests fail.
        """
        self._registry = registry
        self._executor = executor
        self._names: TtlCache[tuple[str, str], NamedAdapter] = TtlCache(
            self._read_name, ttl_s=name_ttl_s, max_age_s=max_age_s, executor=executor
        )
        self._page_names: TtlCache[tuple[str, str], NamedAdapter] = TtlCache(
            self._read_name,
            ttl_s=PAGE_TTL_S,
            max_age_s=PAGE_TTL_S + max_age_s,
            executor=executor,
            max_items=50_000,
        )
        self._listings: TtlCache[str, tuple[str, ...]] = TtlCache(
            self._read_listing,
            ttl_s=min(LISTING_TTL_S, max(name_ttl_s, 0.0)),
            max_age_s=max_age_s,
            executor=executor,
        )
        self._revoked: TtlCache[str, frozenset[str]] = TtlCache(
            self._read_revoked,
            ttl_s=name_ttl_s,
            max_age_s=max_age_s,
            executor=executor,
            max_items=1,
        )
        self._facts: TtlCache[str, AdapterFacts] = TtlCache(
            self._read_facts,
            ttl_s=float("inf"),
            executor=executor,
            max_items=NUM_RECORDS_KEPT,
        )

    async def resolve(self, namespace: str, model: str) -> tuple[NamedAdapter, AdapterFacts]:
        """The adapter that ``name`` or ``name@key`` refers to in this namespace.

        Raises:
            AdapterNotFound: the same for unknown and revoked adapters and another namespace's.
        """
        name, pinned, key = model.partition("@")
        if not is_safe_name(name) or (pinned and not is_job_key(key)):
            raise _not_found(model)
        try:
            named, revoked = await asyncio.gather(
                self._names.get((namespace, name)), self._revoked.get("")
            )
            facts = None
            if pinned and named.job_key != key:
                named, facts = await self._pinned(named, key)
            if is_revoked_among(revoked, named.job_key, named.namespace):
                raise _not_found(model)
            return named, _seen_by(named, facts or await self._facts.get(named.job_key))
        except FileNotFoundError as error:
            raise _not_found(model) from error

    async def _pinned(self, named: NamedAdapter, key: str) -> tuple[NamedAdapter, AdapterFacts]:
        """A version of a name by its key: only one that the name has had."""
        known = named.version(key)
        try:
            facts = await self._facts.get(key)
        except AdapterFileError as error:
            if known is not None:
                raise
            raise FileNotFoundError(key) from error  # hides others' broken records
        if known is None:
            owner = facts.namespace, facts.name
            known = named.version_without_history(key, owner, facts.sha256, facts.created)
        if known is None:
            raise FileNotFoundError(key)
        return known, facts

    async def page(
        self, namespace: str, *, search: str = "", after: str = "", limit: int = 100
    ) -> Page:
        """The names after ``after`` that contain ``search``, in order."""
        names, revoked = await asyncio.gather(self._listings.get(namespace), self._revoked.get(""))
        matching: Sequence[str] = names
        if wanted := search.casefold():
            matching = await self._in_thread(_containing, names, wanted)
        start = bisect_right(matching, after) if after else 0
        found = await self._read_page(namespace, matching[start : start + limit])
        shown = tuple(_requestable(found, revoked))
        has_more = len(matching) > start + limit
        total = len(matching)
        if start == 0 and not has_more:
            total = len(shown)
        elif revoked and total <= MAX_COUNTED:
            with suppress(StoreError):  # the page is shown with the number of names
                total = len(_requestable(await self._read_page(namespace, matching), revoked))
        return Page(shown, has_more, total)

    async def _read_page(self, namespace: str, names: Sequence[str]) -> list[NamedAdapter | None]:
        """The names' files, several in each thread; None for one that does not exist or is broken.

        Raises:
            StoreError: if the store does not answer, and a name was never read before.
        """
        cached = {name: self._page_names.fresh((namespace, name)) for name in names}
        missing = [name for name, named in cached.items() if named is None]
        parts = [missing[start::PAGE_READERS] for start in range(min(PAGE_READERS, len(missing)))]
        reads = (self._in_thread(self._read_names, namespace, part) for part in parts)
        patience_s = PATIENCE_S + SLOW_READ_S * (len(missing) / PAGE_READERS)
        try:
            found = await asyncio.wait_for(asyncio.gather(*reads), patience_s)
        except (StoreError, TimeoutError) as error:
            for name in missing:
                cached[name] = self._page_names.peek((namespace, name))
            if any(cached[name] is None for name in missing):
                raise StoreError("the store does not answer", "try again") from error
            return [cached[name] for name in names]
        for part, read in zip(parts, found, strict=True):
            for name, named in zip(part, read, strict=True):
                if named is not None:
                    self._page_names.put((namespace, name), named)
                cached[name] = named
        return [cached[name] for name in names]

    def _read_names(self, namespace: str, names: Sequence[str]) -> list[NamedAdapter | None]:
        def one(name: str) -> NamedAdapter | None:
            try:
                return self._read_name((namespace, name))
            except (FileNotFoundError, AdapterFileError):
                return None

        return [one(name) for name in names]

    async def _in_thread(self, work: Callable[..., Result], *arguments: Any) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self._executor, work, *arguments)

    async def sample(self, facts: AdapterFacts, index: int) -> bytes:
        """One of an adapter's sample images.

        Raises:
            AdapterNotFound: if it has no such sample.
        """
        if not 0 <= index < len(facts.samples):
            raise AdapterNotFound("there is no such sample")
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(
                self._executor, self._registry.sample, facts.job_key, facts.samples[index]
            )
        except FileNotFoundError as error:
            raise AdapterNotFound("there is no such sample") from error

    # -- reads, in the executor's threads -------------------------------------------------------

    def _read_name(self, key: tuple[str, str]) -> NamedAdapter:
        named = self._registry.resolve(*key)
        if named is None:
            raise FileNotFoundError(key[1])
        return named

    def _read_listing(self, namespace: str) -> tuple[str, ...]:
        return tuple(self._registry.listing(namespace))

    def _read_revoked(self, _: str) -> frozenset[str]:
        revoked = frozenset(self._registry.revoked_keys())
        if not revoked and self._revoked.peek(""):
            # tombstones are never removed, so this is not the same store
            raise StoreError("the store no longer lists revocations", "check that it is mounted")
        return revoked

    def _read_facts(self, job_key: str) -> AdapterFacts:
        try:
            record = self._registry.record(job_key)
        except AdapterFileError as error:
            if isinstance(error.__cause__, FileNotFoundError):
                raise FileNotFoundError(job_key) from error
            raise AdapterFileError(
                f"the record of adapter {job_key} cannot be read",
                "train or import it again, or revoke it",
            ) from error
        return AdapterFacts(
            job_key=record.job_key,
            namespace=record.namespace,
            name=record.name,
            identifier=record.identifier,
            class_noun=record.class_noun,
            instance_prompt=record.instance_prompt,
            base_id=record.base_id,
            base_fingerprint=record.base_fingerprint,
            base_family=record.base_family,
            created=record.created,
            sha256=record.files.get(DIFFUSERS_FILE, ""),
            long_prompts=record.recipe.long_prompts if record.recipe else "cut",
            samples=tuple(file for file in sorted(record.files) if _SAMPLE.fullmatch(file)),
        )


def _requestable(
    found: Iterable[NamedAdapter | None], revoked: Collection[str]
) -> list[NamedAdapter]:
    return [
        named
        for named in found
        if named and not is_revoked_among(revoked, named.job_key, named.namespace)
    ]


def _containing(names: Iterable[str], wanted: str) -> list[str]:
    return [name for name in names if wanted in name.casefold()]


def _seen_by(named: NamedAdapter, facts: AdapterFacts) -> AdapterFacts:
    """An adapter's facts as the tenant of a name sees them."""
    if named.samples is not None:
        samples = tuple(file for file in facts.samples if file in named.samples)
    else:  # a name of an older farm version: the samples are those of the first training
        is_own = facts.namespace == named.namespace
        samples = tuple(file for file in facts.samples if is_own and file.startswith("samples/"))
    is_own = facts.namespace == named.namespace
    return replace(
        facts,
        namespace=named.namespace,
        name=named.name,
        class_noun=facts.class_noun if is_own else None,
        instance_prompt=facts.instance_prompt if is_own else None,
        created=named.created or facts.created,
        samples=samples,
    )


def unix_seconds(iso: str) -> int:
    """An ISO date in the form that OpenAI's clients expect; 0 if it cannot be parsed."""
    try:
        return int(datetime.fromisoformat(iso).timestamp())
    except ValueError:
        return 0


def _not_found(model: str) -> AdapterNotFound:
    shown = model if len(model) <= 200 and model.isprintable() and model.isascii() else "that"
    return AdapterNotFound(
        f"the model {shown!r} does not exist or is not yours",
        "GET /v1/models lists the models of this key",
        "model",
    )
