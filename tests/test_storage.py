"""The store: the same promises on a folder and on a real S3 server."""

from __future__ import annotations

import errno
import os
import pickle
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.s3 import BUCKET, CREDENTIALS, flaky_proxy, s3_server

from farm.errors import StoreError, StoreUnusable, UserError
from farm.storage import Store


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    with s3_server() as running:
        yield running


@pytest.fixture(params=["folder", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    if request.param == "folder":
        return Store(tmp_path / "store")
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_ENDPOINT_URL", request.getfixturevalue("endpoint"))
    return Store(f"s3://{BUCKET}/{tmp_path.name}")


def test_what_is_written_is_read_back_and_replaced_whole(store: Store) -> None:
    store.write("a/b.bin", b"one")
    assert store.read("a/b.bin") == b"one"
    store.write("a/b.bin", b"two")
    assert store.read("a/b.bin") == b"two"
    assert store.size("a/b.bin") == 3
    store.write_json("a/c.json", {"x": [1, 2]})
    assert store.read_json("a/c.json") == {"x": [1, 2]}


def test_names_are_listed_one_level_deep_and_walked_all_the_way(store: Store) -> None:
    for name in ("f/1", "f/sub/2", "g/3"):
        store.write(name, b"x")
    assert store.list("f") == ["1", "sub"]
    assert list(store.walk("f")) == ["f/1", "f/sub/2"]
    assert store.list("nowhere") == []
    assert list(store.walk("nowhere")) == []


def test_folders_that_contain_a_marker_are_found_in_listings(store: Store) -> None:
    for name in ("a1", "a2", "b1"):
        store.write(f"adapters/{name}/weights", b"w")
        store.write(f"adapters/{name}/deep/marker", b"not here")
    for name in ("a1", "b1"):
        store.write(f"adapters/{name}/marker", b"m")
    assert store.folders_with("adapters", "marker") == {"a1", "b1"}
    assert store.folders_with("adapters", "marker", prefixes=["a", "b"]) == {"a1", "b1"}
    assert store.folders_with("none", "marker") == set()


def test_new_names_are_seen_at_once(store: Store) -> None:
    assert store.list("f") == []
    assert not store.exists("f/1")
    store.write("f/1", b"x")
    assert store.exists("f/1")
    assert store.list("f") == ["1"]
    store.write("f/2", b"x")
    assert store.list("f") == ["1", "2"]


def test_deleting_takes_folders_whole_and_missing_ones_quietly(store: Store) -> None:
    store.write("f/1", b"x")
    store.write("f/sub/2", b"x")
    store.delete("f")
    assert list(store.walk("f")) == []
    store.delete("f")
    store.delete("f/1")


def test_a_missing_object_is_file_not_found(store: Store) -> None:
    with pytest.raises(FileNotFoundError):
        store.read("nothing")
    with pytest.raises(FileNotFoundError):
        store.size("nothing")


def test_only_one_of_many_creates_an_object(store: Store) -> None:
    made: list[int] = []
    barrier = threading.Barrier(6)

    def race(number: int) -> None:
        barrier.wait()
        if store.create("marker", b"%d" % number):
            made.append(number)

    threads = [threading.Thread(target=race, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1
    assert store.read("marker") == b"%d" % made[0]
    assert not store.create("marker", b"late")


def test_files_travel_both_ways(store: Store, tmp_path: Path) -> None:
    local = tmp_path / "here.bin"
    local.write_bytes(b"data" * 1000)
    store.upload(local, "up/there.bin")
    store.download("up/there.bin", tmp_path / "back" / "again.bin")
    assert (tmp_path / "back" / "again.bin").read_bytes() == local.read_bytes()
    assert list((tmp_path / "back").iterdir()) == [tmp_path / "back" / "again.bin"]
    with pytest.raises(FileNotFoundError):
        store.download("up/nowhere.bin", tmp_path / "back" / "no.bin")
    assert not (tmp_path / "back" / "no.bin").exists()


def test_a_version_changes_with_its_object(store: Store) -> None:
    store.write("v", b"one")
    before = store.version("v")
    assert store.version("v") == before
    store.write("v", b"three")
    assert store.version("v") != before


def test_a_store_travels_as_its_url(store: Store) -> None:
    store.write("x", b"1")
    copy = pickle.loads(pickle.dumps(store))
    assert copy == store
    assert copy.read("x") == b"1"


@pytest.mark.parametrize("path", ["/etc/passwd", "../x", "a/../../x"])
def test_no_path_leaves_the_store(store: Store, path: str) -> None:
    with pytest.raises(ValueError, match="leaves the store"):
        store.read(path)


def test_what_is_not_json_is_a_store_error(store: Store) -> None:
    store.write("bad.json", b"{")
    with pytest.raises(StoreError, match="is not JSON"):
        store.read_json("bad.json")


def test_unknown_protocols_are_the_users_fault() -> None:
    with pytest.raises(UserError, match="cannot open the store"):
        Store("nosuch://bucket/x")


def test_unfinished_local_writes_are_never_listed(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.write("f/1", b"x")
    (tmp_path / "f" / ".2.abc").write_bytes(b"torn")
    assert store.list("f") == ["1"]
    assert list(store.walk("f")) == ["f/1"]


def test_a_store_that_fails_now_and_then_is_asked_again(
    endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    with flaky_proxy(endpoint, every=4) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy)
        store = Store(f"s3://{BUCKET}/{tmp_path.name}-flaky")
        for number in range(12):
            # a lost answer to a create that was carried out is not taken for somebody else's
            assert store.create(f"made/{number:02d}", b"%d" % number)
            store.write(f"written/{number:02d}", b"x")
        assert len(store.list("made")) == len(store.list("written")) == 12
        assert [store.read(f"made/{number:02d}") for number in range(12)] == [
            b"%d" % number for number in range(12)
        ]


def test_a_store_that_never_answers_is_a_store_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("farm.retries.CALL_BUDGET_S", 0.1)
    store = Store(tmp_path)

    def broken(*_: object) -> bytes:
        raise OSError("the disk is gone")

    monkeypatch.setattr(store.filesystem, "cat_file", broken)
    with pytest.raises(StoreError, match="the disk is gone"):
        store.read("x")


def test_a_store_that_refuses_this_user_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path)

    def refuse(*_: object) -> bytes:
        raise PermissionError("AccessDenied")

    monkeypatch.setattr(store.filesystem, "cat_file", refuse)
    with pytest.raises(StoreUnusable, match="access denied"):
        store.read("x")


def test_a_local_folder_that_cannot_be_written_is_not_a_question_of_credentials(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("farm.storage._write_local", refuse)
    with pytest.raises(StoreUnusable, match="access denied") as caught:
        Store(tmp_path).write("x", b"1")
    assert caught.value.remedy == "make the folder writable for this user"


def test_a_bucket_that_does_not_exist_is_an_error_with_a_remedy(
    endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    store = Store("s3://no-such-bucket-of-ours/x")
    for call in (
        lambda: store.write("a", b"x"),
        lambda: store.create("a", b"x"),
        lambda: store.read("a"),
    ):
        with pytest.raises(StoreUnusable, match="there is no such bucket") as caught:
            call()
        assert "create the bucket" in caught.value.remedy


def test_missing_credentials_are_an_error_with_a_remedy(
    endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in CREDENTIALS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    store = Store(f"s3://{BUCKET}/{tmp_path.name}-anonymous")
    with pytest.raises(StoreUnusable, match="no credentials for the store") as caught:
        store.write("a", b"x")
    assert "AWS_ACCESS_KEY_ID" in caught.value.remedy


def test_a_write_to_a_full_disk_leaves_no_half_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StoreUnusable, match="a/b: the store is full\n"):
        Store(tmp_path).write("a/b", b"x")
    with pytest.raises(StoreUnusable, match=f"^{tmp_path}: the store is full\n"):
        Store(tmp_path).check_writable()
    assert list((tmp_path / "a").iterdir()) == []


def test_a_missing_object_is_missing_whatever_it_is_called(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Store(tmp_path).read("names/default/QuotaExceeded.json")


def test_a_folder_that_can_be_no_store_is_one_clear_error_and_leaves_nothing(
    tmp_path: Path,
) -> None:
    (tmp_path / "file").write_bytes(b"")
    for place in (tmp_path / "file", tmp_path / "file/deep/store", Path("/proc/store")):
        with pytest.raises(StoreUnusable, match="cannot be created") as caught:
            Store(place).check_writable()
        assert caught.value.remedy
        with pytest.raises(StoreUnusable, match="cannot be created"):
            Store(place).write_json("names/tom.json", {})
    Store(tmp_path / "a/b/store").check_writable()
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
