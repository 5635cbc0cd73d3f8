"""Authentication: bearer keys, each with a namespace.

Owns how keys are created, stored and compared. A key is ``farm_<id>_<secret>``; the store holds the
secret's sha256, never the secret. The secret has 256 random bits and cannot be guessed, so a plain
hash is enough. Key files never change, so one listing shows every change:

    keys/<id>.json            the key's record
    keys/<id>.revoked.json    present once it is revoked

Without any key the endpoint accepts requests from its own machine only; see ``Gate``.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import re
import secrets
from collections.abc import Mapping
from concurrent.futures import Executor
from datetime import UTC, datetime

from pydantic import BaseModel, ConfigDict, Field

from farm.errors import NotAuthorized, StoreError, TooBusy, UserError
from farm.serving.access.limits import RateLimiter
from farm.serving.ttl_cache import MAX_AGE_S, TtlCache
from farm.storage import Store
from farm.text.safe_names import SAFE_NAME, is_safe_name

__all__ = ["Gate", "KeyRecord", "Tenant", "create_key", "list_keys", "revoke_key"]

logger = logging.getLogger(__name__)

REFRESH_S = 2.0
"""How long a revoked key may remain valid while the store answers; ``MAX_AGE_S`` while it does
not."""
FAILURES_PER_MINUTE = 60
"""Invalid keys from one address; a valid key from there is still accepted."""
_ID = re.compile(r"[0-9a-f]{16}")
_NO_DIGEST = hashlib.sha256(b"no such key").hexdigest()
_REMEDY = "send 'Authorization: Bearer farm_…'; 'farm keys create' makes a key"


class KeyRecord(BaseModel):
    """The stored record of one key."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    key_id: str = Field(pattern=r"^[0-9a-f]{16}$")
    secret_sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    namespace: str = Field(pattern=f"^{SAFE_NAME}$")
    """The namespace whose adapters it may use."""
    label: str = Field("", max_length=200)
    """For display, such as the name of the app that holds it."""
    created: str
    """UTC, ISO 8601."""
    pictures_per_minute: int | None = Field(None, ge=1)
    """Overrides the endpoint's own limit for this key."""
    operator: bool = False
    """Whether it may read what concerns all tenants, such as ``/metrics``."""


class Tenant(BaseModel):
    """The caller, once its key is validated."""

    model_config = ConfigDict(frozen=True)

    key_id: str
    namespace: str
    pictures_per_minute: int | None = None
    operator: bool = False


def create_key(
    store: Store,
    namespace: str,
    *,
    label: str = "",
    pictures_per_minute: int | None = None,
    operator: bool = False,
) -> tuple[str, KeyRecord]:
    """Create a key; the token is returned here and stored nowhere.

    Raises:
        UserError: if the namespace is not a plain name.
    """
    if not is_safe_name(namespace):
        raise UserError(
            f"{namespace!r} is not a namespace",
            "use letters, digits, '.', '_' and '-', at most 128",
        )
    key_id, secret = secrets.token_hex(8), secrets.token_urlsafe(32)
    record = KeyRecord(
        key_id=key_id,
        secret_sha256=_digest(secret),
        namespace=namespace,
        label=label,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        pictures_per_minute=pictures_per_minute,
        operator=operator,
    )
    store.create(f"keys/{key_id}.json", record.model_dump_json(indent=2).encode() + b"\n")
    return f"farm_{key_id}_{secret}", record


def list_keys(store: Store) -> list[tuple[KeyRecord, bool]]:
    """Every key and whether it is still valid, oldest first."""
    names = set(store.list("keys"))
    found = [
        (_read_key(store, name), f"{name.removesuffix('.json')}.revoked.json" not in names)
        for name in names
        if _ID.fullmatch(name.removesuffix(".json"))
    ]
    return sorted(found, key=lambda item: (item[0].created, item[0].key_id))


def revoke_key(store: Store, key_id: str, reason: str = "") -> None:
    """Revoke a key within ``REFRESH_S``; its record is kept.

    Raises:
        UserError: if there is no such key.
    """
    if not _ID.fullmatch(key_id) or not store.exists(f"keys/{key_id}.json"):
        raise UserError(f"there is no key {key_id!r}", "'farm keys list' shows them")
    when = datetime.now(UTC).isoformat(timespec="seconds")
    store.write_json(f"keys/{key_id}.revoked.json", {"revoked": when, "reason": reason})


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()


def _read_key(store: Store, name: str) -> KeyRecord:
    return KeyRecord.model_validate_json(store.read(f"keys/{name}"))


def _matching(good: Mapping[str, KeyRecord], key_id: str, secret: str) -> KeyRecord | None:
    """The record that the secret belongs to; an unknown id costs the same comparison as a wrong
    secret."""
    record = good.get(key_id)
    expected = record.secret_sha256 if record is not None else _NO_DIGEST
    return record if hmac.compare_digest(_digest(secret), expected) else None


class Gate:
    """Admits requests by key, from a view of the keys at most ``REFRESH_S`` old."""

    def __init__(
        self,
        store: Store,
        *,
        executor: Executor,
        anonymous_namespace: str | None = None,
        refresh_s: float = REFRESH_S,
        max_age_s: float = MAX_AGE_S,
        failures_per_minute: int = FAILURES_PER_MINUTE,
    ) -> None:
        """Args:
        max_age_s: maximum age of the view while the store does not answer.
        failures_per_minute: invalid keys from one address before more are refused unchecked.
        anonymous_namespace: namespace of callers without a key while no key exists; None always
            requires one. Only for endpoints bound to loopback.
        """
        self._store = store
        self._records: dict[str, KeyRecord] = {}
        self._anonymous_namespace = anonymous_namespace
        self._keys_were_seen = False
        self._view: TtlCache[str, Mapping[str, KeyRecord]] = TtlCache(
            self._read_all,
            ttl_s=refresh_s,
            max_age_s=max_age_s,
            executor=executor,
            max_items=1,
        )
        self._failures = RateLimiter()
        self._failures_per_minute = failures_per_minute

    async def look(self) -> None:
        """Check whether keys exist before the first request, which reads them again.

        Raises:
            StoreError: if the store does not answer.
        """
        await self._view.get("keys")
        self._view.forget("keys")

    async def admit(self, authorization: str | None, address: str = "") -> Tenant:
        """The tenant behind an ``Authorization`` header.

        Args:
            address: of the caller; invalid keys are counted by it.

        Raises:
            NotAuthorized: the same for a missing, malformed, unknown, wrong and revoked key.
            TooBusy: if too many invalid keys came from the address.
            StoreError: if the store does not answer and there is no view, or it is too old.
        """
        good = await self._view.get("keys")
        # once a key has existed, the endpoint requires one even if all are revoked
        if self._anonymous_namespace is not None and not self._keys_were_seen:
            return Tenant(key_id="anonymous", namespace=self._anonymous_namespace)
        scheme, _, token = (authorization or "").partition(" ")
        prefix, _, rest = token.strip().partition("_")
        key_id, _, secret = rest.partition("_")
        is_formed = scheme.lower() == "bearer" and prefix == "farm" and bool(_ID.fullmatch(key_id))
        record = _matching(good, key_id, secret) if is_formed else None
        if record is None and authorization:
            self._count_failure(address)
            if is_formed and key_id not in good:
                # perhaps just created; forged keys cost the store one listing at a time
                good = await self._view.get("keys", max_age_s=0)
                record = _matching(good, key_id, secret)
        if record is None:
            problem = "no key was sent" if not authorization else "the key is not valid"
            raise NotAuthorized(problem, _REMEDY)
        return Tenant(
            key_id=record.key_id,
            namespace=record.namespace,
            pictures_per_minute=record.pictures_per_minute,
            operator=record.operator,
        )

    def _count_failure(self, address: str) -> None:
        try:
            self._failures.take(address, 1, self._failures_per_minute)
        except TooBusy as error:
            raise TooBusy(
                "too many requests without a valid key came from this address",
                _REMEDY,
                None,
                error.retry_after_s,
            ) from None

    @property
    def is_open(self) -> bool:
        """Whether callers without a key are accepted, as of the last check."""
        return self._anonymous_namespace is not None and not self._keys_were_seen

    def _read_all(self, _: str) -> Mapping[str, KeyRecord]:
        """The valid keys. Reads the listing, and only new files."""
        names = set(self._store.list("keys"))
        ids = {name.removesuffix(".json") for name in names}
        ids = {key_id for key_id in ids if _ID.fullmatch(key_id)}
        for key_id in ids - self._records.keys():
            try:
                self._records[key_id] = _read_key(self._store, f"{key_id}.json")
            except ValueError as error:
                logger.error("keys/%s.json is not a key record and is ignored: %s", key_id, error)
        if self._keys_were_seen and not ids:
            # key records are never removed, so this is not the same store
            raise StoreError("the store no longer lists keys", "check that it is mounted")
        self._keys_were_seen = self._keys_were_seen or bool(ids)
        return {
            key_id: self._records[key_id]
            for key_id in ids & self._records.keys()
            if f"{key_id}.revoked.json" not in names
        }
