from __future__ import annotations

from collections.abc import Callable

import pytest
from conftest import Draw

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
        ("batch_size = 2", "batch_size = 0", 9, "out of range"),
        ("batch_size = 2", "batch_size = ", 7, "not valid TOML"),
        ('caption_extension = ".txt"', 'caption_extension = ".cap"', 2, "are not read"),
    ],
)
def test_faults_have_the_lines_of_the_config(
    faults_of: FaultsOf, old: str, new: str, line: int, words: str
):
    faults = faults_of(CONFIG.replace(old, new, 1), "config.toml")
    assert any(fault.line == line and words in fault.message for fault in faults), faults


def test_a_config_without_datasets_is_told(faults_of: FaultsOf):
    assert "no `[[datasets]]`" in faults_of("[general]\n", "config.toml")[0].message
