"""Folders, configs and settings of other trainers: read right, or named for what they are with the
place of the fault and a remedy that works."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.folders import Files, photos, read

from farm.errors import ManifestError

# -- kohya's folders and configs ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("files", "target", "told"),
    [
        (photos("set/img/10_sks cat/"), "set", "set/img"),
        ({**photos("p/images/10_sks cat/"), "p/logs/x": "", "p/models/x": ""}, "p", "p/images"),
        (photos("10_sks cat/"), "10_sks cat", "name the folder around it"),
        (photos("dog/"), "dog", "`dog,cat`"),
        ({"a.zip": b"PK", "b.zip": b"PK"}, "", "`a,cat,a.zip`"),
    ],
)
def test_another_folder_than_the_one_of_subjects_names_the_right_one(
    tmp_path: Path, files: Files, target: str, told: str
) -> None:
    with pytest.raises(ManifestError) as caught:
        read(tmp_path, files, target)
    assert told in caught.value.remedy


@pytest.mark.parametrize(
    ("name", "told"),
    [("10_cat", "`10_sks cat`"), ("5_ohwx_man", "`5_ohwx man`"), ("10_sks", "`10_sks cat`")],
)
def test_a_folder_named_nearly_as_kohya_wants_is_told_the_name(
    tmp_path: Path, name: str, told: str
) -> None:
    (fault,) = read(tmp_path, photos(f"img/{name}/"), "img").errors
    assert told in fault.remedy


def test_folders_and_datasets_of_one_concept_are_told_to_be_two_subjects(tmp_path: Path) -> None:
    tree = read(tmp_path, {**photos("img/10_sks cat/"), **photos("img/5_sks cat/")}, "img")
    assert any("each a subject of its own" in fault.message for fault in tree.faults)
    dataset = '[[datasets]]\nresolution = 64\n[[datasets.subsets]]\nimage_dir = "img/5_sks cat"\n'
    dataset += 'class_tokens = "sks cat"\n'
    (fault,) = read(tmp_path, {"d.toml": 2 * dataset}, "d.toml").faults
    assert "each has its adapter" in fault.message
    assert fault.line == 10


SUBSET = '[[datasets.subsets]]\nimage_dir = "{}"\nclass_tokens = "{}"\n'
DATASET = "[[datasets]]\nresolution = 64\n"


@pytest.mark.parametrize(
    ("toml", "line", "field"),
    [
        (DATASET + SUBSET.format("img", "sks cat") + SUBSET.format("gone", "sks cat"), 7,
         "datasets[0].subsets[1].image_dir"),
        (DATASET + SUBSET.format("img", "sks cat") + SUBSET.format("gone", "cat") + "is_reg = true",
         7, "datasets[0].subsets[1].image_dir"),
        (DATASET.replace("datasets", '"datasets"') + SUBSET.format("gone", "sks cat"), 4,
         "datasets[0].subsets[0].image_dir"),
        ("[datasets]\n" + SUBSET.format("img", "sks cat"), 1, "datasets"),
        (DATASET + 'image_dir = "img"\n', 1, "datasets[0]"),
        (DATASET + 'image_directory = "img"\n', 1, "datasets[0]"),
        (DATASET + 'video_directory = "clips"\n', 1, "datasets[0]"),
        ('[arguments]\ntrain_data_dir = "img"\n', 1, "train_data_dir"),
        ('dataset_config = "d.toml"\n', 1, "dataset_config"),
        (DATASET + SUBSET.format("img", "sks cat") + 'is_reg = "false"', 6,
         "datasets[0].subsets[0].is_reg"),
        ('[general]\nx = """\n[[datasets]]\n"""\n' + DATASET + SUBSET.format("gone", "sks cat"), 8,
         "datasets[0].subsets[0].image_dir"),
    ],
)  # fmt: skip
def test_a_fault_of_a_config_has_the_place_of_its_own_subset(
    tmp_path: Path, toml: str, line: int, field: str
) -> None:
    (fault,) = read(tmp_path, {**photos("img/"), "d.toml": toml}, "d.toml").errors
    assert (fault.line, fault.field) == (line, field)
    assert fault.remedy


def test_class_images_alone_are_no_subjects(tmp_path: Path) -> None:
    toml = DATASET + SUBSET.format("img", "sks cat") + "is_reg = true"
    (fault,) = read(tmp_path, {**photos("img/"), "d.toml": toml}, "d.toml").errors
    assert "no subjects" in fault.message


@pytest.mark.parametrize(
    ("texts", "extension", "told"),
    [
        ((".txt",), 'caption_extension = ""', '`caption_extension = ".txt"`'),
        ((".caption",), 'caption_extension = ".txt"', '`caption_extension = ".caption"`'),
        ((".txt",), "", '`caption_extension = ".txt"`'),
        ((".txt", ".caption"), 'caption_extension = ".txt"', None),
    ],
)
def test_texts_that_the_extension_leaves_out_are_told(
    tmp_path: Path, texts: tuple[str, ...], extension: str, told: str | None
) -> None:
    toml = DATASET + SUBSET.format("img", "sks cat") + extension
    files: Files = {f"img/0{suffix}": "sks cat" for suffix in texts}
    faults = read(tmp_path, {**photos("img/"), **files, "d.toml": toml}, "d.toml").faults
    remedies = [fault.remedy for fault in faults if "are not read" in fault.message]
    remedies += [fault.remedy for fault in faults if "is not read" in fault.message]
    assert [told in remedy for remedy in remedies if told] == ([True] if told else [])
    assert bool(remedies) is bool(told)


def test_a_config_as_json_and_tags_with_a_comma_are_read(tmp_path: Path) -> None:
    subset = {"image_dir": "img", "class_tokens": "sks, black cat"}
    config = {"general": {"batch_size": 2}, "datasets": [{"resolution": 64, "subsets": [subset]}]}
    text = json.dumps(config, indent=1)
    (found,) = read(tmp_path, {**photos("img/"), "d.json": text}, "d.json").subjects
    assert (found.identifier, found.class_noun) == ("sks", "black cat")
    assert found.instance_prompt == "[V], black cat"
    assert found.recipe.instance_rows == 2
    wrong = text.replace('"img"', '"gone"')
    (fault,) = read(tmp_path, {"d.json": wrong}, "d.json").errors
    assert fault.line == 10
    assert fault.field == "datasets[0].subsets[0].image_dir"


def test_a_relative_path_with_backslashes_is_read(tmp_path: Path) -> None:
    toml = DATASET + SUBSET.replace('"', "'").format("data\\img", "sks cat")
    assert not read(tmp_path, {**photos("data/img/"), "d.toml": toml}, "d.toml").faults


# -- settings of other trainers -------------------------------------------------------------------

CONCEPT = {"name": "tom", "path": "C:\\sets\\img", "image": {}, "text": {"prompt_source": "sample"}}
TOOLKIT = "job: extension\nconfig:\n  process:\n    - datasets:\n        - folder_path: img\n"


@pytest.mark.parametrize(
    ("name", "text", "told", "folder"),
    [
        ("c.json", json.dumps([CONCEPT]), "OneTrainer", "C:/sets/img"),
        ("c.json", json.dumps({"training_method": "LORA", "concepts": [CONCEPT]}), "OneTrainer",
         "C:/sets/img"),
        ("a.yaml", TOOLKIT, "ai-toolkit", "img"),
        ("m.json", '[{"id": "a", "type": "local", "instance_data_dir": "img"}]', "SimpleTuner",
         "img"),
        ("c.json", '[{"instance_prompt": "a", "instance_data_dir": "img"}]', "DreamBooth script",
         "img"),
        ("a.yaml", "instance_data_dir: img\nmax_train_steps: 4\n", "a diffusers script", "img"),
    ],
)  # fmt: skip
def test_settings_of_another_trainer_are_named_with_a_manifest_that_works(
    tmp_path: Path, name: str, text: str, told: str, folder: str
) -> None:
    with pytest.raises(ManifestError) as caught:
        read(tmp_path, {name: text}, name)
    assert told in caught.value.message
    yaml = caught.value.remedy.split("`")[1]
    assert folder in yaml
    if folder == "img":
        assert not read(tmp_path, {**photos("img/"), "m.yaml": yaml}, "m.yaml").faults


def concepts(instance: str, class_prompt: str = "photo of a cat", **more: object) -> str:
    values = {"instance_prompt": instance, "class_prompt": class_prompt, **more}
    return json.dumps([{"instance_data_dir": "img", **values}], indent=1)


@pytest.mark.parametrize(
    ("instance", "class_prompt", "wanted"),
    [
        ("photo of zwx cat", "photo of a cat", ("zwx", "cat", "photo of [V] cat")),
        ("a photo of zwx, black cat", "photo of black cat", ("zwx", "black cat", None)),
        ("zwx cat in a bucket", "a cat in a bucket", ("zwx", "cat", "[V] cat in a bucket")),
        ("photo of zwx", "photo of a cat", ("zwx", "cat", "photo of [V]")),
    ],
)
def test_concepts_of_dreambooth_scripts_are_subjects(
    tmp_path: Path, instance: str, class_prompt: str, wanted: tuple[str, str, str | None]
) -> None:
    text = concepts(instance, class_prompt, class_data_dir="reg")
    files: Files = {**photos("img/"), **photos("reg/"), "concepts_list.json": text}
    manifest = read(tmp_path, files)
    assert not manifest.faults
    (found,) = manifest.subjects
    assert (found.identifier, found.class_noun) == wanted[:2]
    assert found.instance_prompt == (wanted[2] or "a photo of [V], black cat")
    assert (found.class_prompt, len(found.class_images)) == (class_prompt, 3)


@pytest.mark.parametrize(
    ("text", "line", "told"),
    [
        (concepts("photo of a cat"), 4, "`photo of sks cat`"),
        (concepts("photo of zwx red cat"), 4, "`photo of sks cat`"),
        (concepts("photo of zwx cat", class_data_dir="gone"), 6, "so they are generated"),
        (concepts("photo of zwx cat", num_class_images=9), 6, "not used: `num_class_images`"),
        (concepts("zwx cat")[:-2] + ',\n{"instance_data_dir": "img"}]', 7, "write all three"),
    ],
)
def test_what_a_concept_does_not_say_is_told_at_its_line(
    tmp_path: Path, text: str, line: int, told: str
) -> None:
    faults = read(tmp_path, {**photos("img/"), "c.json": text}, "c.json").faults
    assert [fault.line for fault in faults if told in str(fault)] == [line]
    assert len(faults) == 1


def test_subjects_as_a_mapping_are_told(tmp_path: Path) -> None:
    text = "subjects:\n  tom: {class_noun: cat}\n"
    (fault,) = read(tmp_path, {"m.yaml": text}, "m.yaml").errors
    assert "a mapping, not a list" in fault.message
