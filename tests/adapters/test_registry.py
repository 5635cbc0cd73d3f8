"""The registry: committed adapters stay, incomplete ones are invisible, names change atomically."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest

from farm.adapters.file_names import DIFFUSERS_FILE, RECORD_FILE
from farm.adapters.record import AdapterRecord
from farm.adapters.registry import NamedAdapter, Registry
from farm.errors import AdapterFileError, UserError
from farm.keys import bytes_digest
from farm.recipe import Recipe
from farm.storage import Store
from farm.training.run.export import export_adapters


def saved(
    folder: Path, key: str, *, name: str = "kira", weights: bytes = b"weights"
) -> AdapterRecord:
    """A folder as ``save_adapter`` leaves it, with the record that names its files."""
    contents = {DIFFUSERS_FILE: weights, "samples/000.png": b"png"}
    for file, data in contents.items():
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_bytes(data)
    record = AdapterRecord(
        job_key=key,
        subject_id=name,
        name=name,
        class_noun="cat",
        instance_prompt="a photo of sks cat",
        base_id="tiny",
        base_fingerprint="f" * 64,
        recipe=Recipe(steps=1),
        files={file: bytes_digest(data) for file, data in contents.items()},
    )
    (folder / RECORD_FILE).write_text(record.to_json())
    return record


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(Store(tmp_path / "store"))


def test_a_published_adapter_is_found_by_key_and_by_name(
    registry: Registry, tmp_path: Path
) -> None:
    record = saved(tmp_path / "a", "k1")
    assert registry.publish(record, tmp_path / "a")
    assert registry.is_committed("k1")
    assert registry.committed_keys() == ["k1"]
    assert registry.record("k1") == record
    named = registry.resolve("default", "kira")
    assert named is not None
    assert (named.job_key, named.sha256) == ("k1", bytes_digest(b"weights"))


def test_an_adapter_without_its_record_is_not_committed(registry: Registry) -> None:
    registry.store.write(f"adapters/k1/{DIFFUSERS_FILE}", b"weights")
    assert not registry.is_committed("k1")
    assert registry.committed_keys() == []
    assert registry.committed_among(["k1", "k2"]) == set()


def test_publishing_again_changes_nothing_and_completes_a_missing_name(
    registry: Registry, tmp_path: Path
) -> None:
    record = saved(tmp_path / "a", "k1")
    registry.publish(record, tmp_path / "a", names=[])  # killed before the name
    assert registry.resolve("default", "kira") is None
    other = saved(tmp_path / "b", "k1", weights=b"a second training of the same key")
    assert not registry.publish(other, tmp_path / "b")
    assert registry.store.read(f"adapters/k1/{DIFFUSERS_FILE}") == b"weights"
    named = registry.resolve("default", "kira")
    assert named is not None
    assert named.sha256 == bytes_digest(b"weights")


class PausedStore(Store):
    """Another process publishes after this one's first upload."""

    def __init__(self, url: str, other: Callable[[], object]) -> None:
        super().__init__(url)
        self._other: Callable[[], object] | None = other

    def upload(self, local: str | Path, path: str) -> None:
        super().upload(local, path)
        if self._other is not None:
            other, self._other = self._other, None
            other()


def test_a_process_that_was_paused_replaces_no_committed_file(
    registry: Registry, tmp_path: Path
) -> None:
    other = saved(tmp_path / "b", "k1", weights=b"committed while the first process was paused")
    (tmp_path / "a" / "samples").mkdir(parents=True)
    late = saved(tmp_path / "a", "k1", weights=b"late")
    store = PausedStore(registry.store.url, lambda: registry.publish(other, tmp_path / "b"))
    assert not Registry(store).publish(late, tmp_path / "a")
    assert registry.fetch("k1", tmp_path / "fetched").files == other.files


def test_two_subjects_with_one_key_share_one_adapter(registry: Registry, tmp_path: Path) -> None:
    record = saved(tmp_path / "a", "k1")
    registry.publish(record, tmp_path / "a", names=[("default", "kira"), ("studio", "rex")])
    assert {(n.namespace, n.name, n.job_key) for n in registry.names()} == {
        ("default", "kira", "k1"),
        ("studio", "rex", "k1"),
    }
    assert [named.name for named in registry.names("studio")] == ["rex"]


def test_a_name_moves_to_the_newer_adapter_and_stays_when_nothing_changed(
    registry: Registry, tmp_path: Path
) -> None:
    first = saved(tmp_path / "a", "k1")
    registry.publish(first, tmp_path / "a")
    before = registry.resolve("default", "kira")
    assert registry.point("default", "kira", first) == before
    registry.publish(saved(tmp_path / "b", "k2", weights=b"newer"), tmp_path / "b")
    after = registry.resolve("default", "kira")
    assert isinstance(after, NamedAdapter)
    assert after.job_key == "k2"


def test_a_file_that_changed_after_saving_is_refused(registry: Registry, tmp_path: Path) -> None:
    record = saved(tmp_path / "a", "k1")
    (tmp_path / "a" / DIFFUSERS_FILE).write_bytes(b"other")
    with pytest.raises(AdapterFileError, match="changed after it was saved"):
        registry.publish(record, tmp_path / "a")
    assert not registry.is_committed("k1")


def test_fetch_brings_every_file_and_checks_it(registry: Registry, tmp_path: Path) -> None:
    record = saved(tmp_path / "a", "k1")
    registry.publish(record, tmp_path / "a")
    assert registry.fetch("k1", tmp_path / "copy") == record
    assert (tmp_path / "copy" / "samples/000.png").read_bytes() == b"png"
    registry.store.write(f"adapters/k1/{DIFFUSERS_FILE}", b"rotten")
    with pytest.raises(AdapterFileError, match="not the file that was committed"):
        registry.fetch("k1", tmp_path / "second")
    assert not (tmp_path / "second" / RECORD_FILE).exists()


def test_a_missing_adapter_or_file_says_what_to_do(registry: Registry, tmp_path: Path) -> None:
    with pytest.raises(AdapterFileError, match="no adapter k9"):
        registry.record("k9")
    registry.publish(saved(tmp_path / "a", "k1"), tmp_path / "a")
    registry.store.delete(f"adapters/k1/{DIFFUSERS_FILE}")
    with pytest.raises(AdapterFileError, match="is missing"):
        registry.fetch("k1", tmp_path / "copy")


def test_revoking_by_name_leaves_a_tombstone_and_the_files(
    registry: Registry, tmp_path: Path
) -> None:
    registry.publish(saved(tmp_path / "a", "k1"), tmp_path / "a")
    assert not registry.is_revoked("k1")
    assert registry.revoke("default", "kira", reason="the owner asked") == "k1"
    assert registry.is_revoked("k1")
    assert registry.is_committed("k1")
    with pytest.raises(UserError, match="no adapter is named"):
        registry.revoke("default", "nobody")


@pytest.mark.parametrize("name", ["", "..", "a/b", "../../etc", ".hidden", "a b"])
def test_names_cannot_leave_their_folder(registry: Registry, name: str) -> None:
    with pytest.raises(UserError, match="cannot be a name"):
        registry.resolve("default", name)


def test_a_registry_travels_between_processes(registry: Registry) -> None:
    assert pickle.loads(pickle.dumps(registry)).store == registry.store


def test_a_record_that_names_files_elsewhere_writes_nothing(
    registry: Registry, tmp_path: Path
) -> None:
    registry.publish(saved(tmp_path, "key"), tmp_path)
    path = "adapters/key/adapter.json"
    for outside in (f"{tmp_path}/OUTSIDE", "../OUTSIDE"):
        body = json.loads(registry.store.read(path))
        body["files"] = {outside: bytes_digest(b"x")}
        registry.store.write_json(path, body)
        with pytest.raises(AdapterFileError, match="is not an adapter record"):
            registry.fetch("key", tmp_path / "out" / "tom")
        exported = export_adapters(registry.store, tmp_path / "exported")
        assert not exported.written
        ((name, error),) = exported.failed
        assert name == "default/kira"
        assert "is not an adapter record" in str(error)
    assert not list(tmp_path.rglob("OUTSIDE"))


def test_a_malformed_adapter_does_not_stop_the_export_of_the_others(
    registry: Registry, tmp_path: Path
) -> None:
    for key in ("good", "bad"):
        folder = tmp_path / key
        registry.publish(saved(folder, key), folder, names=[("default", key)])
    registry.store.write("adapters/bad/adapter.json", b"{}")
    registry.store.write("names/default/list.json", b"[1]")
    registry.store.write("names/default/torn.json", b"{")
    exported = export_adapters(registry.store, tmp_path / "out")
    assert exported.written == [("default/good", tmp_path / "out/default/good")]
    assert (tmp_path / "out/default/good/adapter.json").is_file()
    assert [name for name, _ in exported.failed] == ["default/bad", "default/list", "default/torn"]
    assert all(error.message for _, error in exported.failed)


def test_a_name_that_is_no_pointer_is_the_adapters_fault(registry: Registry) -> None:
    registry.store.write("names/default/tom.json", b"[1]")
    with pytest.raises(AdapterFileError, match="is not a pointer"):
        registry.resolve("default", "tom")


@pytest.mark.parametrize("num_present", [5, 300])
def test_committed_adapters_among_many_are_found_without_a_look_up_for_each(
    registry: Registry, num_present: int
) -> None:
    for number in range(num_present):
        registry.store.write(f"adapters/{number:04x}/weights", b"w")
        if number % 2:
            registry.store.write(f"adapters/{number:04x}/{RECORD_FILE}", b"{}")
    expected = {f"{number:04x}" for number in range(1, num_present, 2)}
    assert registry.committed_among(f"{number:04x}" for number in range(400)) == expected
    assert registry.committed_keys() == sorted(expected)
