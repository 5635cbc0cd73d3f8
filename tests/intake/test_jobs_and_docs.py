"""The manifests under jobs/ and the manifest's page match the code."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from support.factories import Draw, Write
from support.photos import encoded, picture

from farm.intake.check import check_manifest
from farm.intake.docs_tables import refreshed
from farm.intake.manifest import Manifest, read_manifest
from farm.recipe import BASE_PRIORS, FAMILY_RECIPES, Recipe

ROOT = Path(__file__).parents[2]
ARTICLE = {"photos/cat": 4, "photos/mushroom": 4}
KINDS = {"photos/any-vases": 5, "photos/rex": 3, "photos/watercolours": 3}


def placed(name: str, tmp_path: Path) -> Path:
    """A ready manifest, copied beside photos of our own."""
    return Path(shutil.copy(ROOT / "jobs" / name, tmp_path / name))


def checked(path: Path) -> Manifest:
    manifest = read_manifest(str(path), strict=False)
    assert check_manifest(manifest).faults == ()
    return manifest


def test_the_articles_pair_is_ready(draw_subject: Draw, tmp_path: Path):
    for folder, count in ARTICLE.items():
        draw_subject(folder, count)
    cat, mushroom = checked(placed("article.yaml", tmp_path)).subjects
    assert (cat.class_noun, mushroom.class_noun) == ("cat", "mushroom")
    assert cat.recipe.steps == mushroom.recipe.steps == 800
    assert cat.recipe.num_prior_images == 200


def test_the_sdxl_pair_has_the_official_scripts_numbers(draw_subject: Draw, tmp_path: Path):
    for folder, count in ARTICLE.items():
        draw_subject(folder, count)
    for subject in checked(placed("sdxl.yaml", tmp_path)).subjects:
        recipe = subject.recipe
        assert (recipe.steps, recipe.instance_rows, recipe.rank) == (500, 4, 4)
        assert (recipe.learning_rate, recipe.resolution_px) == (1e-4, None)  # the base's own 1024


def test_the_klein_pair_has_the_familys_recipe_with_four_samples_a_step(
    draw_subject: Draw, tmp_path: Path
):
    for folder, count in ARTICLE.items():
        draw_subject(folder, count)
    for subject in read_manifest(str(placed("klein.yaml", tmp_path))).subjects:
        rows = {"instance_rows": 4, "prior_rows": 4}
        wanted = Recipe.model_validate(FAMILY_RECIPES["Flux2KleinPipeline"] | rows)
        given = subject.recipe.model_copy(update={"text_encoder_learning_rate": None})
        assert given == wanted.model_copy(update={"text_encoder_learning_rate": None})


def test_a_familys_recipe_is_below_a_preset_and_a_base_own_fields_above_it(
    draw_subject: Draw, tmp_path: Path
):
    draw_subject("photos/cat", 4)
    entry = "{id: NAME, class_noun: cat, photos: photos/cat, preset: PRESET}"
    plain = entry.replace("NAME", "plain").replace(", preset: PRESET", "")
    style = entry.replace("NAME", "style").replace("PRESET", "style")
    path = tmp_path / "manifest.yaml"
    path.write_text(f"subjects:\n  - {plain}\n  - {style}\n")
    manifest = read_manifest(
        str(path),
        family_recipe=FAMILY_RECIPES["StableDiffusion3Pipeline"],
        base_recipe={"weight_decay": 0.5},
    )
    first, second = (subject.recipe for subject in manifest.subjects)
    assert (first.steps, first.learning_rate, first.resolution_px) == (500, 4e-4, 512)
    assert (second.steps, second.learning_rate, second.rank) == (1000, 1e-4, 16)
    assert second.target_modules == first.target_modules != Recipe().target_modules
    assert (first.weight_decay, second.weight_decay) == (0.5, 0.5)


def test_the_papers_thirty_subjects_are_ready(draw_subject: Draw, tmp_path: Path):
    path = placed("dreambooth.yaml", tmp_path)
    for name in re.findall(r"photos: (\S+?)[,}]", path.read_text()):
        draw_subject(name)
    subjects = checked(path).subjects
    assert len(subjects) == 30
    assert len({subject.class_noun for subject in subjects}) == 15
    assert {len(subject.sample_prompts) for subject in subjects} == {25}
    animals = [subject for subject in subjects if subject.class_noun in {"cat", "dog"}]
    assert len(animals) == 9
    assert all("a [V] dog in a chef outfit" in dog.sample_prompts for dog in animals[2:])


def test_the_kinds_are_ready(draw: Draw, draw_subject: Draw, tmp_path: Path):
    import zipfile

    for folder, count in KINDS.items():
        draw_subject(folder, count)
    for number in range(3):
        (tmp_path / f"photos/rex/{number}.png").rename(tmp_path / f"photos/rex/{number}.jpg")
    draw("photos/rex-asleep.png", 77)
    for name, seed in (("market", 5), ("harbour", 6)):
        draw(f"photos/watercolours/{name}.jpg", seed)
    with zipfile.ZipFile(tmp_path / "photos/blue-vase.zip", "w") as archive:
        for number in range(4):
            archive.writestr(f"{number}.png", encoded(picture(50 + number)))
    vase, rex, style = checked(placed("kinds.yaml", tmp_path)).subjects
    assert len(vase.class_images) == 5
    assert not vase.recipe.flip
    assert rex.priority == 10
    assert len(rex.photos) == 4
    assert not style.recipe.uses_prior


def test_the_folder_is_ready(draw_subject: Draw, write: Write, tmp_path: Path):
    draw_subject("photos/cat2")
    write("photos/subjects.csv", "subject,class,live\ncat2,cat,true\n")
    (subject,) = checked(placed("folder.yaml", tmp_path)).subjects
    assert subject.recipe.steps == 300
    assert subject.recipe.rank == 8


def test_the_page_of_the_manifest_is_fresh():
    page = (ROOT / "docs/manifest.md").read_text(encoding="utf-8")
    assert refreshed(page) == page, "run: python -m farm.intake.docs_tables docs/manifest.md"


def test_a_page_without_markers_is_refused():
    with pytest.raises(ValueError, match="no markers"):
        refreshed("# A page")


def test_the_example_of_the_page_is_a_manifest(draw_subject: Draw, write: Write, tmp_path: Path):
    import zipfile

    page = (ROOT / "docs/manifest.md").read_text(encoding="utf-8")
    example = re.search(r"```yaml[^\n]*\n(.*?)```", page, re.DOTALL)
    assert example is not None
    draw_subject("photos/tom")
    with zipfile.ZipFile(tmp_path / "photos/vase.zip", "w") as archive:
        for number in range(4):
            archive.writestr(f"{number}.png", encoded(picture(50 + number)))
    tom, vase = checked(write("manifest.yaml", example.group(1))).subjects
    assert (tom.class_noun, vase.class_noun) == ("cat", "vase")
    assert vase.recipe.rank == 8


def test_a_base_says_how_its_class_images_are_generated_and_the_manifest_overrides_it(
    tmp_path: Path,
) -> None:
    def prior(defaults: dict[str, object]) -> tuple[object, ...]:
        row = {"id": "a", "class_noun": "cat", "photos": ["a.png"]}
        (tmp_path / "a.png").write_bytes(encoded(picture()))
        path = tmp_path / "m.json"
        path.write_text(json.dumps({"version": 1, "defaults": defaults, "subjects": [row]}))
        read = read_manifest(str(path), strict=False, base_prior=BASE_PRIORS["embedded"])
        (one,) = read.resolved
        assert one.subject is not None
        return one.subject.prior.scheduler, one.subject.prior.steps, one.subject.prior.guidance

    assert prior({}) == ("dpm++2m", 10, 5.0)
    assert prior({"prior": {"steps": 30}}) == ("dpm++2m", 30, 5.0)
