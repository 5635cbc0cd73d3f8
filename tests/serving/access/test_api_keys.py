"""API keys: what is stored, who is admitted, and how soon changes take effect."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from farm.errors import NotAuthorized, UserError
from farm.serving.access.api_keys import Gate, Tenant, create_key, list_keys, revoke_key
from farm.storage import Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as pool:
        yield pool


def admit(gate: Gate, *headers: str | None) -> list[Tenant | str]:
    """What the gate says to each header, in one event loop."""

    async def ask() -> list[Tenant | str]:
        answers: list[Tenant | str] = []
        for header in headers:
            try:
                answers.append(await gate.admit(header))
            except NotAuthorized as error:
                answers.append(error.message)
        return answers

    return asyncio.run(ask())


def test_a_key_opens_its_own_namespace(store: Store, threads: ThreadPoolExecutor) -> None:
    token, record = create_key(store, "acme", pictures_per_minute=7)
    gate = Gate(store, executor=threads)
    assert (
        admit(gate, f"Bearer {token}", f"bearer {token}")
        == [Tenant(key_id=record.key_id, namespace="acme", pictures_per_minute=7)] * 2
    )


def test_the_store_never_holds_the_secret(store: Store, tmp_path: Path) -> None:
    token, record = create_key(store, "acme", label="the shop")
    secret = token.split("_", 2)[2]
    everything = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert secret.encode() not in everything
    assert token.encode() not in everything
    assert record.secret_sha256.encode() in everything


def test_wrong_and_malformed_and_unknown_keys_are_told_the_same(
    store: Store, threads: ThreadPoolExecutor
) -> None:
    token, record = create_key(store, "acme")
    other, _ = create_key(store, "other")
    forged = f"farm_{record.key_id}_{other.split('_', 2)[2]}"
    gate = Gate(store, executor=threads)
    answers = admit(
        gate,
        f"Bearer {forged}",
        f"Bearer {token}x",
        f"Bearer {token[:-1]}",
        f"Basic {token}",
        "Bearer",
        "Bearer farm__",
        "Bearer farm_../../x_y",
        f"Bearer farm_{'0' * 16}_{'a' * 43}",
        "Bearer \udcff",
        f"Bearer {'a' * 10_000}",
    )
    assert set(answers) == {"the key is not valid"}
    assert admit(gate, None, "") == ["no key was sent"] * 2


def test_a_revoked_key_is_refused_and_stays_on_the_books(
    store: Store, threads: ThreadPoolExecutor
) -> None:
    token, record = create_key(store, "acme")
    keeper, _ = create_key(store, "acme")
    gate = Gate(store, executor=threads, refresh_s=0)
    assert isinstance(admit(gate, f"Bearer {token}")[0], Tenant)
    revoke_key(store, record.key_id, "lost")
    refused, kept = admit(gate, f"Bearer {token}", f"Bearer {keeper}")
    assert refused == "the key is not valid"
    assert isinstance(kept, Tenant)
    assert {entry.key_id: good for entry, good in list_keys(store)}[record.key_id] is False


def test_without_keys_loopback_callers_see_one_namespace(
    store: Store, threads: ThreadPoolExecutor
) -> None:
    gate = Gate(store, executor=threads, anonymous_namespace="default")
    assert (
        admit(gate, None, "Bearer whatever")
        == [Tenant(key_id="anonymous", namespace="default")] * 2
    )


def test_an_open_endpoint_closes_for_good_when_the_first_key_is_made(
    store: Store, threads: ThreadPoolExecutor
) -> None:
    gate = Gate(store, executor=threads, anonymous_namespace="default", refresh_s=0)
    assert isinstance(admit(gate, None)[0], Tenant)
    _, record = create_key(store, "acme")
    assert admit(gate, None) == ["no key was sent"]
    revoke_key(store, record.key_id)
    assert admit(gate, None) == ["no key was sent"]


def test_a_damaged_key_file_locks_out_no_other_key(
    store: Store, threads: ThreadPoolExecutor
) -> None:
    token, _ = create_key(store, "acme")
    store.write(f"keys/{'ab' * 8}.json", b"{not json")
    store.write("keys/readme.txt", b"hello")
    gate = Gate(store, executor=threads)
    assert isinstance(admit(gate, f"Bearer {token}")[0], Tenant)


def test_a_namespace_that_could_name_another_place_is_refused(store: Store) -> None:
    for namespace in ("", "..", "a/b", "a b", "ä", "x\n"):
        with pytest.raises(UserError):
            create_key(store, namespace)


def test_revoking_an_unknown_key_says_so(store: Store) -> None:
    for key_id in ("0" * 16, "../../etc/passwd"):
        with pytest.raises(UserError, match="there is no key"):
            revoke_key(store, key_id)
