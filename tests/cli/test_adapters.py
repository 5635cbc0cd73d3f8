"""``farm list``, ``farm revoke`` and ``farm status`` of a store that has adapters alone."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any

import pytest
from fsspec.implementations.local import LocalFileSystem
from typer.testing import CliRunner, Result

from farm.adapters.file_names import RECORD_FILE
from farm.adapters.lookup import check_case, find_adapter, split_label
from farm.adapters.record import AdapterRecord, ImportedFile
from farm.adapters.registry import Registry
from farm.api.adapter import load
from farm.cli import app
from farm.errors import OutputUnusable, UserError
from farm.recipe import Recipe
from farm.storage import Store


def call(*words: str) -> Result:
    result = CliRunner().invoke(app, list(words), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result


def document(*words: str) -> Any:
    return json.loads(call(*words, "--json").stdout.splitlines()[-1])


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Registry:
    """One trained, scored adapter and two imported ones; FARM_STORE names the store."""
    registry = Registry(Store(tmp_path / "store"))
    source = ImportedFile(file="x.safetensors", sha256="0" * 64, form="kohya")
    cards = ({"verdict": {"label": "learned well"}}, None, None)
    for number, (space, card) in enumerate(zip(("default", "default", "shop"), cards, strict=True)):
        record = AdapterRecord(
            job_key=f"{number:032x}",
            subject_id=f"s{number}",
            namespace=space,
            name=f"tom{number}",
            class_noun="cat",
            instance_prompt="a photo of sks cat",
            base_id="tiny",
            base_fingerprint="f" * 64,
            recipe=Recipe(steps=1) if number == 0 else None,
            imported=source if number else None,
            quality=card,
        )
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / RECORD_FILE).write_text(record.to_json())
        registry.publish(record, folder)
    monkeypatch.setenv("FARM_STORE", registry.store.url)
    return registry


def test_every_adapter_is_listed_with_its_origin_verdict_and_date(store: Registry) -> None:
    found = document("list")
    assert [one["name"] for one in found["adapters"]] == [
        "default/tom0",
        "default/tom1",
        "shop/tom2",
    ]
    assert [one["origin"] for one in found["adapters"]] == ["trained", "imported", "imported"]
    assert [one["verdict"] for one in found["adapters"]] == ["learned well", "", ""]
    assert all(one["created"].startswith("20") for one in found["adapters"])
    text = call("list").stdout
    assert "state" in text.splitlines()[1].split()[-2:]
    words = ("default/tom0", "cat", "s1", f"{2:032x}", "imported", "learned well", "available")
    for word in words:
        assert word in text


def test_a_list_is_filtered_and_paged(store: Registry) -> None:
    first = document("list", "--limit", "2")
    assert (len(first["adapters"]), first["total"]) == (2, 3)
    (last,) = document("list", "--limit", "2", "--after", first["next_after"])["adapters"]
    assert last["name"] == "shop/tom2"
    assert document("list", "--search", "TOM1")["total"] == 1
    assert document("list", "--namespace", "shop")["total"] == 1


def test_a_revoked_or_unreadable_adapter_is_marked(store: Registry) -> None:
    assert document("revoke", "shop/tom2", "--reason", "asked")["new"]
    assert not document("revoke", "shop/tom2")["new"]
    assert "tom0 is revoked" in call("revoke", "tom0", "--yes").stdout
    assert store.is_revoked(f"{0:032x}", "default")
    store.store.write(f"adapters/{1:032x}/adapter.json", b"{")
    rows = document("list")["adapters"]
    assert [one["is_revoked"] for one in rows] == [True, False, True]
    assert "not an adapter record" in rows[1]["problem"]
    with pytest.raises(UserError, match="no adapter is named default/rex") as caught:
        call("revoke", "rex")
    assert "farm list" in caught.value.remedy


def test_names_that_differ_only_in_case_are_listed_with_a_note(store: Registry) -> None:
    assert call("list").stderr == ""
    store.point("default", "TOM0", store.record(f"{1:032x}"))
    assert "such as default/TOM0 and default/tom0" in call("list").stderr
    check_case(store, [("default", "tom0"), ("default", "tom1"), ("default", "rex")])
    with pytest.raises(UserError, match="shop/TOM2 differs only in case from shop/tom2"):
        check_case(store, [("shop", "TOM2")])
    with pytest.raises(UserError, match="no adapter is named default/Tom1") as caught:
        call("revoke", "Tom1")
    assert "did you mean `tom1`?" in caught.value.remedy


def test_an_export_to_a_disk_that_ignores_case_loses_no_adapter(
    store: Registry, tmp_path: Path
) -> None:
    store.point("default", "TOM0", store.record(f"{1:032x}"))
    out = tmp_path / "out/default"
    out.mkdir(parents=True)
    (out / "tom0").symlink_to("TOM0", target_is_directory=True)  # as such a disk behaves
    result = CliRunner().invoke(app, ["export", str(out.parent), "TOM0", "--name", "tom0"])
    assert "default/TOM0" in result.stdout
    assert "differs only in case from default/TOM0" in result.stderr
    assert (result.exit_code, result.stdout.count("\n")) == (2, 1)


def test_an_export_to_a_place_that_is_no_folder_names_it_once(
    store: Registry, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("kept")
    for place in (tmp_path / "file", tmp_path / "file/inner", Path("/proc/x")):
        with pytest.raises(UserError, match=f"cannot write {place}: "):
            call("export", str(place))
    assert (tmp_path / "file").read_text() == "kept"
    (tmp_path / "out").mkdir()
    (tmp_path / "out/default").touch()
    with pytest.raises(UserError, match="default is a file; 0 of 3 adapters are complete"):
        call("export", str(tmp_path / "out"))


def test_a_disk_that_fills_during_an_export_leaves_whole_adapters_alone(
    store: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, fetch = tmp_path / "out", LocalFileSystem.get_file
    call("export", str(out), "tom1")
    (out / "default/tom1/adapter.json").write_text("an older version")

    def fill(self: LocalFileSystem, source: str, target: str, **options: Any) -> None:
        fetch(self, source, target, **options)
        if f"{1:032x}" in source:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(LocalFileSystem, "get_file", fill)
    full = "the disk is full; 1 of 3 adapters are complete in"
    with pytest.raises(OutputUnusable, match=full) as caught:
        call("export", str(out))
    assert (caught.value.exit_code, "free space" in caught.value.remedy) == (2, True)
    files = sorted(str(path.relative_to(out)) for path in out.rglob("*") if path.is_file())
    assert files == ["default/tom0/adapter.json", "default/tom1/adapter.json"]
    assert (out / "default/tom1/adapter.json").read_text() == "an older version"


def test_a_version_of_a_name_is_found_by_its_key_everywhere(
    store: Registry, tmp_path: Path
) -> None:
    old, new = f"{0:032x}", f"{1:032x}"
    store.point("default", "tom0", store.record(new))
    assert find_adapter(store, "tom0").job_key == new
    assert find_adapter(store, f"default/tom0@{old}").job_key == old
    out = tmp_path / "out"
    assert f"default/tom0@{old}" in call("export", str(out), f"tom0@{old}").stdout
    assert old in (out / "default/tom0/adapter.json").read_text()
    both = CliRunner().invoke(app, ["export", str(out), "tom0", f"tom0@{old}"])
    assert (both.exit_code, "exported in two versions" in both.stderr) == (2, True)
    assert document("revoke", f"tom0@{old}")["version"] == old
    assert [store.is_revoked(key, "default") for key in (old, new)] == [True, False]
    for unknown in (f"{2:032x}", "abc"):
        with pytest.raises(UserError, match=f"no version '{unknown}'") as caught:
            load(store.store, f"tom0@{unknown}")
        assert caught.value.remedy == f"its versions: {new}, {old}"
    with pytest.raises(UserError, match=f"tom0@{old} is revoked"):
        load(store.store, f"tom0@{old}")


def test_an_export_names_what_it_leaves_out(store: Registry, tmp_path: Path) -> None:
    for name in ("tom0", "shop/tom2"):
        store.revoke(*split_label(name))
    result = call("export", str(tmp_path / "out"), "--json")
    assert "2 adapters are left out, revoked: default/tom0, shop/tom2" in result.stderr
    rows = json.loads(result.stdout)
    assert [row["name"] for row in rows if row["path"]] == ["default/tom1"]
    assert [row["name"] for row in rows if row.get("left_out") == "revoked"] == [
        "default/tom0",
        "shop/tom2",
    ]


def test_a_score_needs_a_name_in_either_form(store: Registry) -> None:
    with pytest.raises(UserError, match="no adapter is named\n"):
        call("score")


def test_the_status_of_a_store_with_imported_adapters_counts_them(store: Registry) -> None:
    assert "holds 3 adapters and no runs" in call("status").stdout
    assert document("status")["adapters"] == 3


def test_the_option_wins_over_the_environment(store: Registry, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    assert document("list", "--store", str(other))["total"] == 0
