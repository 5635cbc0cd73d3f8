from __future__ import annotations

from collections.abc import Callable

import pytest
from support.factories import Draw, Write

from farm.errors import Fault
from farm.intake.manifest import Manifest

FaultsOf = Callable[..., list[Fault]]
ManifestOf = Callable[..., Manifest]

CONFIG = """
    [general]
    caption_extension = ".txt"
    shuffle_caption = true

    [[datasets]]
    resolution = 512
    batch_size = 2

      [[datasets.subsets]]
      image_dir = "10_sks girl"
      class_tokens = "sks girl"
      num_repeats = 10
      flip_aug = true

      [[datasets.subsets]]
      is_reg = true
      image_dir = "1_girl"
      class_tokens = "girl"

    [[datasets]]
    resolution = [768, 768]

      [[datasets.subsets]]
      image_dir = "hats"
      class_tokens = "zwx old hat"

      [[datasets.subsets]]
      image_dir = "more_hats"
      class_tokens = "zwx old hat"
"""


@pytest.fixture(autouse=True)
def _photos(draw_subject: Draw) -> None:
    for name in ("10_sks girl", "1_girl", "hats", "more_hats"):
        draw_subject(name)


def test_a_dataset_config_becomes_subjects(manifest_of: ManifestOf):
    girl, hat = manifest_of(CONFIG, "config.toml").subjects
    assert (girl.id, girl.identifier, girl.class_noun) == ("sks-girl", "sks", "girl")
    assert (len(girl.photos), len(girl.class_images)) == (4, 4)
    assert girl.recipe.resolution_px == 512
    assert girl.recipe.instance_rows == 2
    assert girl.recipe.flip
    assert girl.recipe.uses_prior
    assert girl.photo_prompts[0] == "sks girl"
    assert girl.class_prompt == "girl"
    assert (hat.class_noun, len(hat.photos)) == ("old hat", 8)
    assert hat.recipe.resolution_px == 768
    assert not hat.recipe.uses_prior


def test_options_that_mean_nothing_here_are_told(faults_of: FaultsOf):
    (fault,) = faults_of(CONFIG, "config.toml")
    assert (fault.line, fault.severity) == (3, "warning")
    assert "`shuffle_caption`" in fault.message
    assert "num_repeats" not in fault.message


@pytest.mark.parametrize(
    ("old", "new", "line", "words"),
    [
        ('class_tokens = "zwx old hat"', 'class_tokens = "hat"', 25, "identifier and class"),
        ('image_dir = "hats"', 'image_dirr = "hats"', 23, "`image_dir` is missing"),
        ("resolution = [768, 768]", "resolution = [768, 512]", 21, "not square"),
        ('image_dir = "hats"', 'image_dir = "hatts"', 24, "there is no"),
        ("batch_size = 2", "batch_size = 0", 7, "out of range"),
        ("batch_size = 2", "batch_size = ", 7, "not valid TOML"),
        ('caption_extension = ".txt"', 'caption_extension = "txt"', 2, "want the dot"),
    ],
)
def test_faults_have_the_lines_of_the_config(
    faults_of: FaultsOf, old: str, new: str, line: int, words: str
):
    faults = faults_of(CONFIG.replace(old, new, 1), "config.toml")
    assert any(fault.line == line and words in fault.message for fault in faults), faults


SUBSET = """
    [[datasets]]
    resolution = 64
      [[datasets.subsets]]
      image_dir = "10_sks girl"
      class_tokens = "sks girl"
"""
REG = """
      [[datasets.subsets]]
      is_reg = true
      image_dir = "1_girl"
"""


def test_a_fault_of_an_option_names_the_option(faults_of: FaultsOf):
    faults = faults_of(CONFIG.replace("batch_size = 2", "batch_size = 0"), "config.toml")
    assert "datasets[0].subsets[0].batch_size" in {fault.field for fault in faults}


@pytest.mark.parametrize(
    ("tokens", "prompt"),
    [('class_tokens = "woman"', "woman"), ("", "girl"), ('class_tokens = "girl"', "girl")],
)
def test_class_images_regularise_their_dataset_whatever_their_tokens(
    manifest_of: ManifestOf, tokens: str, prompt: str
):
    (girl,) = manifest_of(f"{SUBSET}{REG}      {tokens}\n", "config.toml").subjects
    assert len(girl.class_images) == 4
    assert girl.recipe.prior_rows == 1
    assert girl.class_prompt == prompt


def test_captions_of_class_images_are_their_prompt(manifest_of: ManifestOf, write: Write):
    config = f'{SUBSET}{REG}      class_tokens = "girl"\n      caption_extension = ".txt"\n'
    for number in range(4):
        write(f"1_girl/{number}.txt", "a photo of a girl")
    assert manifest_of(config, "config.toml").subjects[0].class_prompt == "a photo of a girl"
    write("1_girl/0.txt", "another girl")
    manifest = manifest_of(config, "config.toml")
    assert manifest.subjects[0].class_prompt == "girl"
    assert "2 captions" in manifest.faults[0].message


def test_a_caption_of_class_images_that_names_the_subject_is_told_in_its_file(
    faults_of: FaultsOf, write: Write
):
    config = f'{SUBSET}{REG}      class_tokens = "girl"\n      caption_extension = ".txt"\n'
    for number in range(4):
        write(f"1_girl/{number}.txt", "sks girl")
    (fault,) = faults_of(config, "config.toml")
    assert (fault.severity, fault.line) == ("error", 1)
    assert fault.file.endswith("1_girl/0.txt")


def test_class_images_that_no_subject_takes_are_told(faults_of: FaultsOf):
    two = f'{SUBSET}{REG}      class_tokens = "girl"\n{REG}      class_tokens = "dog"\n'
    (fault,) = faults_of(two, "config.toml")
    assert (fault.severity, fault.line) == ("warning", 12)
    assert "not used" in fault.message


@pytest.mark.parametrize(
    ("option", "captions"),
    [
        ('caption_extension = ".caption"', ["sks girl A"]),
        ('caption_extension = ".txt"', ["1girl, sks"]),
        ('caption_extension = ".cap"', ["sks by hand"]),
        ('caption_extension = ".none"', []),
        ("", ["sks girl A"]),
    ],
)
def test_the_caption_extension_alone_says_which_files_are_captions(
    manifest_of: ManifestOf, write: Write, option: str, captions: list[str]
):
    for suffix, text in (
        (".caption", "sks girl A"),
        (".txt", "1girl, sks"),
        (".cap", "sks by hand"),
    ):
        write(f"10_sks girl/0{suffix}", text)
    write("10_sks girl/metadata.csv", "file_name,text\n9.png,not read by kohya\n")
    (girl,) = manifest_of(f"{SUBSET}      {option}\n", "config.toml").subjects
    assert [photo.caption for photo in girl.photos if photo.caption] == captions


def test_texts_that_the_default_extension_leaves_unread_are_told(faults_of: FaultsOf, write: Write):
    write("10_sks girl/0.txt", "sks girl")
    (fault,) = faults_of(SUBSET, "config.toml")
    assert fault.severity == "warning"
    assert 'caption_extension = ".txt"' in fault.remedy


def test_a_caption_of_several_lines_is_its_first_with_a_warning(
    manifest_of: ManifestOf, write: Write
):
    write("10_sks girl/0.caption", "sks girl one\nnotes: bad light\nsks girl two\n")
    manifest = manifest_of(SUBSET, "config.toml")
    assert manifest.subjects[0].photos[0].caption == "sks girl one"
    (fault,) = manifest.faults
    assert (fault.severity, fault.line) == ("warning", 1)
    assert "3 lines" in fault.message
    assert fault.file.endswith("0.caption")


def test_prefix_and_suffix_surround_every_prompt(manifest_of: ManifestOf, write: Write):
    write("10_sks girl/0.caption", "in a garden")
    options = '      caption_prefix = "sks girl,"\n      caption_suffix = "film grain"\n'
    (girl,) = manifest_of(SUBSET + options, "config.toml").subjects
    assert girl.photo_prompts[0] == "sks girl, in a garden film grain"
    assert girl.photo_prompts[1] == "sks girl, sks girl film grain"


def test_each_subset_keeps_its_own_prefix(manifest_of: ManifestOf):
    second = """
      [[datasets.subsets]]
      image_dir = "hats"
      class_tokens = "sks girl"
      caption_prefix = "outdoors,"
    """
    (girl,) = manifest_of(SUBSET + second, "config.toml").subjects
    assert girl.photo_prompts == ("sks girl",) * 4 + ("outdoors, sks girl",) * 4


def test_a_caption_without_the_identifier_has_a_remedy_for_a_config(
    faults_of: FaultsOf, write: Write
):
    write("10_sks girl/0.caption", "1girl, solo")
    (fault,) = faults_of(SUBSET, "config.toml")
    assert fault.severity == "error"
    assert "caption_prefix" in fault.remedy
    assert "captions: none" not in fault.remedy


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("keep_tokens = 2", "`keep_tokens`"),
        ("enable_wildcard = true", "`enable_wildcard`"),
        ("caption_dropout_rate = 0.1", "`caption_dropout_rate`"),
        ("keep_tokens = 1", ""),
        ("color_aug = false", ""),
        ("caption_dropout_rate = 0.0", ""),
    ],
)
def test_options_that_are_on_and_not_taken_over_are_told(
    faults_of: FaultsOf, option: str, words: str
):
    told = " ".join(fault.message for fault in faults_of(f"{SUBSET}      {option}\n", "c.toml"))
    assert words in told
    assert bool(told) == bool(words)


@pytest.mark.parametrize("path", [r"C:\Users\me\10_ohwx man", r"C:\train\new\10_ohwx man"])
def test_a_windows_path_in_double_quotes_is_told_as_an_escape(faults_of: FaultsOf, path: str):
    text = SUBSET.replace('"10_sks girl"', f'"{path}"')
    (fault,) = faults_of(text, "config.toml")
    assert fault.line == 4
    assert "escape" in fault.message
    assert "single quotes" in fault.remedy
    (other,) = faults_of(SUBSET.replace('"10_sks girl"', f"'{path}'"), "config.toml")
    assert "path of Windows" in other.message


@pytest.mark.parametrize(
    ("tokens", "wanted"),
    [
        ("a photo of sks girl", ("sks", "girl", "a photo of [V] girl")),
        ("The sks, old girl", ("sks", "old girl", "The [V], old girl")),
        ("photo of an ohwx girl", ("ohwx", "girl", "photo of an [V] girl")),
        ("sks girl, ", ("sks", "girl", "[V] girl,")),
        ("a girl", None),
        ("photo of girl", None),
    ],
)
def test_an_article_or_phrase_before_the_identifier_is_not_the_identifier(
    manifest_of: ManifestOf, faults_of: FaultsOf, tokens: str, wanted: tuple[str, ...] | None
):
    text = SUBSET.replace("sks girl", tokens).replace(f"10_{tokens}", "10_sks girl")
    if wanted is None:
        assert "identifier and class" in faults_of(text, "config.toml")[0].message
        return
    reg = f'{REG}      class_tokens = "hat"\n{REG}      class_tokens = "a photo of {wanted[1]}"\n'
    (girl,) = manifest_of(text + reg, "config.toml").subjects
    assert (girl.identifier, girl.class_noun, girl.instance_prompt) == wanted
    assert girl.class_prompt == f"a photo of {wanted[1]}"


@pytest.mark.parametrize(
    ("more", "line", "told"),
    [
        ('[[datasets.subsets]]\nimage_dir = "hats"\nclass_tokens = "sks girl"\nnum_repeats = 9\n',
         9, "shown equally often"),
        ('[[datasets.subsets]]\nimage_dir = "hats"\nclass_tokens = "sks girl"\nflip_aug = true\n',
         9, "the first one holds"),
        ('[[datasets.subsets]]\nimage_dir = "hats"\nclass_tokens = "zwx hat"\nnum_repeats = 0\n',
         9, "it has no repeats"),
        ('[[datasets]]\n[[datasets.subsets]]\nis_reg = true\nimage_dir = "1_girl"\n',
         7, "move this subset into the dataset of the photos"),
        ('resolution = "large"\n', 6, "write one, such as 512"),
        ('[[datasets]]\nsubsets = [{image_dir = "gone", class_tokens = "zwx hat"}]\n',
         7, "correct the path"),
    ],
)  # fmt: skip
def test_what_a_config_says_and_is_not_done_has_its_line(
    faults_of: FaultsOf, more: str, line: int, told: str
):
    (fault,) = faults_of(SUBSET + more, "config.toml")
    assert fault.line == line
    assert told in str(fault)


@pytest.mark.parametrize("side", ['"64"', "64.0", '"64x64"', "[64, 64]"])
def test_a_square_resolution_is_read_however_it_is_written(manifest_of: ManifestOf, side: str):
    text = SUBSET.replace("resolution = 64", f"resolution = {side}")
    assert manifest_of(text, "config.toml").subjects[0].recipe.resolution_px == 64


def test_missing_class_tokens_are_proposed_from_the_folder(faults_of: FaultsOf):
    (fault,) = faults_of(SUBSET.replace("class_tokens", "# "), "config.toml")
    assert "`class_tokens` is missing" in fault.message
    assert 'class_tokens = "sks girl"' in fault.remedy


def test_a_metadata_file_is_refused_not_forgotten(faults_of: FaultsOf):
    (fault,) = faults_of(f'{SUBSET}      metadata_file = "meta.json"\n', "config.toml")
    assert fault.severity == "error"
    assert "metadata_file" in fault.message


def test_a_config_without_datasets_is_told(faults_of: FaultsOf):
    assert "no `[[datasets]]`" in faults_of("[general]\n", "config.toml")[0].message


def test_a_number_of_thousands_of_digits_is_a_fault(faults_of: Callable[..., list[Fault]]):
    (fault,) = faults_of(f"batch_size = {'9' * 5_000}\n", "config.toml")
    assert "thousands of digits" in fault.message
