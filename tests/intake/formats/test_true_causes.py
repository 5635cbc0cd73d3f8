"""What is wrong with other people's files is named by its cause, and nothing is lost in silence."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.folders import Files, photos, read

from farm.errors import ManifestError
from farm.intake.photos.uris import PATTERN_REMEDY

TABLE = "subject,class\ntom,cat\n"
TOML = '[[datasets]]\nresolution = 64\n{}\n[[datasets.subsets]]\nimage_dir = "tom"\n'


@pytest.mark.parametrize(
    ("name", "text", "line", "told"),
    [
        ("m.yaml", "subjects:\n\t- id: tom\n", 2, "indent with blanks"),
        ("m.yaml", "subjects:\n- id: tom\n  \tclass_noun: cat\n", 3, "a tab indents this line"),
        ("m.yaml", "subjects:\n- id: tom\n  class_noun: “cat”\n", 3, "leave them out: `cat`"),
        ("m.csv", "subject,class\n# old ones\ntom,cat\n", 2, "remove the line"),
        ("m.csv", "subject,class\ntom,a cat\n", 2, "leave it out: `cat`"),
        ("m.csv", "subject,class,photos\nbase,cat,tom\n", 2, "another name, such as `base-1`"),
        (
            "m.csv",
            "subject,class,class_prompt\ntom,An old cat,a cat\n",
            2,
            "leave it out: `old cat`",
        ),
        ("d.toml", TOML.format("name = “img”"), 3, "write straight quotes"),
        ("d.toml", TOML.format("flip_aug = True"), 3, "write `flip_aug = true`"),
        ("d.toml", TOML.format("image_dir = tom"), 3, 'write text in quotes: `image_dir = "tom"`'),
        ("d.toml", TOML.format("sizes = 512,768"), 3, "brackets: `sizes = [512,768]`"),
        ("d.toml", TOML.format("x = 1 2"), 3, "correct the syntax"),
        ("m.csv", "subject,class,photos\ntom,cat,tom/*.JPG\n", 2, PATTERN_REMEDY),
        ("m.yaml", "- {id: tom, class_noun: cat, photos: 'tom/*.{jpg,png}'}\n", 1, PATTERN_REMEDY),
        ("m.yaml", "id: tom\nclass_noun: cat\nphotos: tom\n", 1, "put it into a list: `- id: …`"),
        ("m.json", '{"id": "tom", "class_noun": "cat"}', 1, "inside `[` and `]`"),
        ("m.json", '{\n// my cats\n"subjects": []}', 2, "a comment begins, which JSON"),
        ("m.json", '{"subjects": [],\n}', 2, "a comma stands before the `}`"),
        ("m.yaml", "- {id: tom, class_noun: cat, photos: 1}\n", 1, 'needs quotes: "1"'),
        ("m.csv", "subject,class\ntom;cat\n", 2, "divide all rows alike"),
        ("m.csv", "subject  class\ntom  cat\n", 1, "write `subject,class`, and its rows alike"),
        ("m.csv", "subject,class,type\ntom,cat,x\n", 2, "known here: subject, class, live"),
        ("m.csv", "subject,class,photos\ntom,cat,tom/0.png/a\n", 2, "is a file; unpack it"),
        ("m.csv", "subject,class,photos\ntom,cat,/Usrs/me/tom\n", 2, "/ holds no `Usrs`"),
        ("m.csv", "subject,class,photos\ntom,cat,file:///C:/tom\n", 2, "a path of Windows"),
        ("m.csv", "subject,class,lr\ntom,cat,1\n", 2, "name it `recipe.learning_rate`"),
        (
            "m.yaml",
            "- id: tom\n  class_noun: cat\n  captions:\n    0.png: |\n      sks\n      cat\n",
            4,
            "on one line: it has several lines",
        ),
    ],
)
def test_the_cause_is_named_at_its_line(
    tmp_path: Path, name: str, text: str, line: int, told: str
) -> None:
    (fault,) = read(tmp_path, {**photos("tom/"), name: text}, name).faults
    assert (fault.line, told in str(fault)) == (line, True)


@pytest.mark.parametrize(("word", "preset"), [("WAHR", 800), ("Vrai", 800), ("FALSO", 500)])
def test_switches_are_read_as_spreadsheets_of_other_languages_write_them(
    tmp_path: Path, word: str, preset: int
) -> None:
    table = f"subject;class;live;recipe.flip\ntom;cat;{word};{word}\n"
    manifest = read(tmp_path, {**photos("tom/"), "subjects.csv": table})
    assert not manifest.faults
    recipe = manifest.subjects[0].recipe
    assert (recipe.steps, recipe.flip) == (preset, preset == 800)


def test_mappings_in_cells_are_read_as_json(tmp_path: Path) -> None:
    table = 'subject,class,recipe\ntom,cat,"{""steps"": 300}"\n'
    manifest = read(tmp_path, {**photos("tom/"), "subjects.csv": table})
    assert (manifest.faults, manifest.subjects[0].recipe.steps) == ((), 300)


def test_a_folder_whose_name_ends_in_a_blank_is_named_for_it(tmp_path: Path) -> None:
    (fault,) = read(tmp_path, {**photos("tom /"), "subjects.csv": TABLE}).errors
    assert fault.remedy == "rename the folder `tom `, whose name begins or ends with a blank"


# -- captions -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "captions",
    [
        {"tom/0_mask.txt": "sks cat with a mask"},
        {"tom/metadata.csv": "file_name,text\n0_mask.png,sks cat with a mask\n"},
    ],
)
@pytest.mark.parametrize("where", ["tom", "tom/*"])
def test_a_picture_with_a_caption_is_a_photo_though_it_is_named_as_a_mask(
    tmp_path: Path, captions: Files, where: str
) -> None:
    table = f"subject,class,photos\ntom,cat,{where}\n"
    masks = {f"tom/{name}": data for name, data in photos("").items()}
    files: Files = {**photos("tom/"), "tom/0_mask.png": masks["tom/0.png"], **captions}
    manifest = read(
        tmp_path, {**files, "tom/1_mask.png": masks["tom/1.png"], "subjects.csv": table}
    )
    found = {photo.uri.rsplit("/", 1)[1]: photo.caption for photo in manifest.subjects[0].photos}
    assert list(found) == ["0.png", "0_mask.png", "1.png", "2.png"]
    assert found["0_mask.png"] == "sks cat with a mask"
    (fault,) = manifest.faults
    assert fault.message.endswith("are not used: 1_mask.png")


def test_masks_beside_photos_named_one_by_one_are_not_reported(tmp_path: Path) -> None:
    text = "- {id: tom, class_noun: cat, photos: [tom/0.png, tom/1.png, tom/2.png]}\n"
    files: Files = {**photos("tom/"), "tom/0_mask.png": b"x", "tom/0_mask.txt": "sks cat"}
    manifest = read(tmp_path, {**files, "m.yaml": text}, "m.yaml")
    assert (len(manifest.subjects[0].photos), manifest.faults) == (3, ())


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("0.yaml", "main_prompt: sks cat\nrating: 1\n", "captions in 1 YAML file"),
        ("0.png.yml", '"caption": sks cat\n', "captions in 1 YAML file"),
        ("0.yaml", "rating: 1\n", ""),
        ("caption.txt", "sks cat on a bed\n", "1 caption file without a photo"),
        ("Prompts.txt", "sks cat on a bed\n", "1 caption file without a photo"),
        ("notes.txt", "from Anna\n", ""),
        ("metadata.csv", "file_name,text\n0.png;sks cat\n", "`;` divides this row"),
        ("captions.txt", "0.png: sks cat\n1.png: sks cat\n", "it names 2 of the photos"),
    ],
)
def test_captions_that_are_not_read_are_told(
    tmp_path: Path, name: str, text: str, told: str
) -> None:
    files: Files = {**photos("tom/"), f"tom/{name}": text, "subjects.csv": TABLE}
    faults = read(tmp_path, files).faults
    assert len(faults) == bool(told)
    assert all(told in fault.message for fault in faults)


@pytest.mark.parametrize(
    ("name", "text", "line"),
    [
        ("metadata.csv", "file_name,text\nrex/0.png,sks dog\ntom/0.png,sks cat\n", 3),
        ("captions.jsonl", '{"image": "./tom/1.png", "caption": "sks cat"}\n', 1),
        ("metadata.csv", "file_name,text\n0.png,sks cat\n", 2),
        ("metadata.csv", "file_name,text\nrex/0.png,sks cat\n", 0),
        ("metadata.csv", "file_name,size\ntom/0.png,3\n", 0),
    ],
)
def test_a_table_above_the_folder_of_a_subject_is_told_at_its_row(
    tmp_path: Path, name: str, text: str, line: int
) -> None:
    row = "- {id: tom, class_noun: cat, photos: set/tom}\n"
    files: Files = {**photos("set/tom/"), f"set/{name}": text}
    manifest = read(tmp_path, {**files, "m.yaml": row}, "m.yaml")
    assert [(fault.severity, fault.line) for fault in manifest.faults] == (
        [("warning", line)] if line else []
    )
    # what the remedy says
    (tmp_path / "set/tom/metadata.csv").write_text(
        "file_name,text\n0.png,sks\n1.png,sks\n2.png,sks\n"
    )
    assert not read(tmp_path, {}, "m.yaml").faults


def test_a_table_beside_photos_is_not_taken_for_one_above_a_folder(tmp_path: Path) -> None:
    rows = "".join(f"{number}.png,sks dog\n" for number in range(3))
    text = (
        "- {id: rex, class_noun: dog, photos: set}\n- {id: tom, class_noun: cat, photos: set/tom}\n"
    )
    files: Files = {
        **photos("set/"),
        **photos("set/tom/"),
        "set/metadata.csv": f"file_name,text\n{rows}",
    }
    (fault,) = read(tmp_path, {**files, "m.yaml": text}, "m.yaml").faults
    assert "folders in set are not read" in fault.message


# -- data sets and other trainers -----------------------------------------------------------------


def test_rows_of_other_splits_are_told_by_their_column(tmp_path: Path) -> None:
    rows = "".join(f"{n}.png,sks cat,{('train', 'Test')[n > 1]},cat\n" for n in range(3))
    files: Files = {**photos("d/"), "d/metadata.csv": f"file_name,text,split,label\n{rows}"}
    manifest = read(tmp_path, files, "d")
    assert [photo.uri[-5:] for photo in manifest.subjects[0].photos] == ["0.png", "1.png"]
    assert any("split `test` are not trained on" in fault.message for fault in manifest.faults)


def test_a_row_for_each_photo_of_a_subject_is_read(tmp_path: Path) -> None:
    rows = "".join(f"tom,cat,tom/{number}.png,sks cat {number}\n" for number in range(3))
    table = f"subject,class,photo,caption\n{rows}"
    manifest = read(tmp_path, {**photos("tom/"), "subjects.csv": table})
    assert not manifest.faults
    assert [one.caption for one in manifest.subjects[0].photos] == [
        f"sks cat {n}" for n in range(3)
    ]


def test_a_table_of_addresses_and_captions_is_one_of_photos(tmp_path: Path) -> None:
    text = "url,text\nhttps://example.com/0.png,sks cat\n"
    (fault,) = read(tmp_path, {"m.csv": text}, "m.csv").errors
    assert (fault.line, fault.message) == (2, "`class_noun` is missing")


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("d.toml", '[[directory]]\npath = "img"\nnum_repeats = 10\n', "diffusion-pipe"),
        ("c.yml", "base_model: x\nproject_name: p\ndata:\n  path: img\n", "AutoTrain"),
        ("c.json", '{"--data_backend_config": "b.json", "--model_type": "lora"}', "SimpleTuner"),
        ("train.json", '{"resume_ckpt": "sd_v1-5", "data_root": "img"}', "EveryDream"),
        ("c.yaml", "data_config:\n  img_dir: img\n", "x-flux"),
    ],
)
def test_settings_of_more_trainers_are_named(
    tmp_path: Path, name: str, text: str, told: str
) -> None:
    try:
        (fault,) = read(tmp_path, {name: text}, name).errors
    except ManifestError as error:
        message, remedy = error.message, error.remedy
    else:
        message, remedy = fault.message, fault.remedy
    assert f"settings of {told}" in message
    assert ("'img'" in remedy) == ("img" in text)


@pytest.mark.parametrize("has_images", [True, False])
def test_the_two_folders_of_dreambooth_are_told_with_a_manifest_that_works(
    tmp_path: Path, has_images: bool
) -> None:
    images = photos("class_images/") if has_images else {"class_images/x.md": ""}
    with pytest.raises(ManifestError) as caught:
        read(tmp_path, {**photos("instance_images/"), **images})
    manifest = read(tmp_path, {"manifest.yaml": caught.value.remedy.split("`")[1]})
    assert not manifest.errors
    (subject,) = manifest.subjects
    assert (len(subject.photos), len(subject.class_images)) == (3, 3 * has_images)
