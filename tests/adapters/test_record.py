"""The record contains all that is needed to evaluate an adapter or to train it again."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from farm.adapters.record import AdapterRecord, ImportedFile
from farm.errors import AdapterFileError
from farm.recipe import PRESETS, Recipe


def record(**changes: object) -> AdapterRecord:
    return AdapterRecord.model_validate(
        {
            "job_key": "0123abcd",
            "subject_id": "tom",
            "name": "tom",
            "class_noun": "cat",
            "instance_prompt": "a photo of sks cat",
            "base_id": "tiny",
            "base_fingerprint": "f" * 64,
            "recipe": Recipe(),
            **changes,
        }
    )


@given(
    loss_curve=st.lists(st.floats(0, 1e6), max_size=5).map(tuple),
    seed=st.integers(0, 2**63 - 1),
    preset=st.sampled_from(sorted(PRESETS)),
    quality=st.none() | st.dictionaries(st.text(max_size=5), st.floats(0, 1)),
)
def test_a_record_reads_back_as_it_was_written(
    loss_curve: tuple[float, ...],
    seed: int,
    preset: str,
    quality: dict[str, float] | None,
) -> None:
    recipe = Recipe.model_validate({**PRESETS[preset], "seed": seed})  # type: ignore[index]
    written = record(
        recipe=recipe,
        loss_curve=loss_curve,
        evaluation_curve=((25, 0.5), (50, 0.25)),
        quality=quality,
    )
    assert AdapterRecord.from_json(written.to_json()) == written


def test_what_is_no_record_is_refused(tmp_path: Path) -> None:
    with pytest.raises(AdapterFileError, match="does not exist"):
        AdapterRecord.read(tmp_path)
    for text in ("", "{}", "[1]", record().to_json().replace('"cat"', "17")):
        (tmp_path / "adapter.json").write_text(text)
        with pytest.raises(AdapterFileError, match="not an adapter record"):
            AdapterRecord.read(tmp_path)
    with pytest.raises(AdapterFileError):
        AdapterRecord.from_json(record().to_json().replace('"namespace"', '"nmspace"'))


@pytest.mark.parametrize(
    "name",
    [
        "/etc/passwd", "../x", "a/../../x", "a//b", "./a", "", ".", "..", "a/", "adapter.json",
        "ADAPTER.JSON", "c:\\x", "..\\x", "a\x00b", "a\nb", "a\u202eb", "x" * 2000,
    ],
)  # fmt: skip
def test_a_record_names_files_beside_itself_alone(name: str) -> None:
    with pytest.raises(ValidationError):
        record(files={name: "0" * 64})
    text = record().to_json().replace('"files": {}', f'"files": {json.dumps({name: "0" * 64})}')
    with pytest.raises(AdapterFileError, match="not an adapter record"):
        AdapterRecord.from_json(text)


def test_files_in_folders_and_of_any_script_are_taken() -> None:
    names = {"peft/text_encoder/adapter_config.json", "Küche 猫.kohya.safetensors", "a..b.png"}
    assert set(record(files=dict.fromkeys(names, "0" * 64)).files) == names


def test_a_record_has_a_recipe_or_a_source() -> None:
    source = ImportedFile(file="tom.safetensors", sha256="0" * 64, form="kohya")
    imported = record(recipe=None, imported=source)
    assert AdapterRecord.from_json(imported.to_json()) == imported
    for changes in ({"recipe": None}, {"imported": source}):
        with pytest.raises(ValidationError, match="either a recipe or the file"):
            record(**changes)


def test_a_record_of_another_version_is_named_as_such_and_never_to_be_deleted() -> None:
    newer = json.loads(record().to_json()) | {"farm_version": "99.0", "tempo": 3}
    with pytest.raises(AdapterFileError, match=r"another version wrote it \(99\.0; this is") as it:
        AdapterRecord.from_json(json.dumps(newer), "work/adapters/k/adapter.json")
    assert "`tempo` is unknown" in it.value.message
    assert "work/adapters/k/adapter.json" in it.value.message
    nested = json.loads(record().to_json())
    nested["recipe"]["tempo"] = 3
    with pytest.raises(
        AdapterFileError, match="another version wrote it; its field `recipe.tempo`"
    ):
        AdapterRecord.from_json(json.dumps(nested))
    for text in ("", "{}", json.dumps(newer), json.dumps(nested)):
        with pytest.raises(AdapterFileError) as caught:
            AdapterRecord.from_json(text)
        whole = str(caught.value)
        assert "pydantic" not in whole
        assert "remove" not in whole
        assert "\n" not in caught.value.message
