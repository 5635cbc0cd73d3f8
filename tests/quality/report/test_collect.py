"""A real run, through training and judge, becomes a report."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from farm.adapters.bank.bank import Bank
from farm.adapters.files.importing import ImportRequest, import_adapter
from farm.adapters.registry import Registry
from farm.base.embedded.world import render_subject
from farm.base.loading import load_base
from farm.errors import FarmError, OutputUnusable, UserError
from farm.intake.job import job_spec
from farm.intake.scoring import DEFAULT_SHARE, ScoringSettings
from farm.intake.subject import Photo, Subject
from farm.keys import bytes_digest
from farm.quality.judge import QualityJudge
from farm.quality.protocol import ScoringBudget
from farm.quality.report.collect import collect, report_run
from farm.quality.rescore import score_named
from farm.storage import Store
from farm.training.dispatch.ledger import read_events
from farm.training.execute import RunRequest, run_manifest
from farm.training.lane.encode import prepare_photos
from farm.training.lane.settings import JobKind, SampleSettings
from farm.training.run.files import read_assignments
from farm.training.run.status import run_status
from farm.training.slots.slot import NOT_FINITE_REMEDY


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, clip_folder: Path) -> tuple[Store, str]:
    """Three subjects: one with progress pictures, one plain, one that diverges."""
    folder = tmp_path_factory.mktemp("run")
    recipe: dict[str, Any] = {"steps": 6, "rank": 2, "prior_rows": 0, "num_prior_images": 0}
    subjects = []
    for number, extra in enumerate(({"sample_every": 2}, {}, {"learning_rate": 1.0})):
        (folder / f"cat{number}").mkdir()
        for index, photo in enumerate(render_subject(number, 2, class_noun="cat")):
            photo.picture.save(folder / f"cat{number}" / f"{index}.png")
        subjects.append(
            {"id": f"cat{number}", "class_noun": "cat", "photos": f"cat{number}", "recipe": extra}
        )
    # a learning rate that overflows float32
    subjects[2]["recipe"] |= {"adam_epsilon": 1e-30, "max_grad_norm": 1e6, "alpha": 1024.0}
    subjects[2]["recipe"] |= {"adam_beta1": 0.0, "adam_beta2": 0.0, "steps": 20}
    manifest = folder / "manifest.yaml"
    manifest.write_text(
        yaml.safe_dump({"version": 1, "defaults": {"recipe": recipe}, "subjects": subjects})
    )
    store = Store(folder / "store")
    request = RunRequest(
        str(manifest),
        store.url,
        base="tiny",
        executor="local",
        make_judge=QualityJudge,
        scoring=ScoringSettings(str(clip_folder), share=100),
        slots=3,
        samples=SampleSettings(steps=2),
    )
    summary = run_manifest(request)
    return store, summary.run


def test_the_report_holds_what_the_run_made(run: tuple[Store, str]) -> None:
    store, run_id = run
    view = collect(store, run_id, price=2.5)
    assert len(view.subjects) == 3
    first = view.subjects[0]
    assert first.status == "committed"
    assert [picture.step for picture in first.progress] == [2, 4, 6]
    assert first.progress[0].text == "a photo of sks cat"
    assert all("sks cat" in picture.text for picture in first.gallery)
    assert len(first.gallery) == 2 + 8
    assert len(first.class_pictures) == 6
    assert len(first.photos) == 2
    assert first.card is not None
    assert first.card["scores"]["clip_i"]["num"] == 8
    assert len(first.loss_curve) == 6
    assert not view.subjects[1].progress
    assert view.seconds > 0
    assert view.lanes
    assert view.dollars is not None
    assert view.dollars > 0
    assert not view.notes


def test_a_failures_remedy_is_the_same_in_ledger_status_summary_and_report(
    run: tuple[Store, str],
) -> None:
    store, run_id = run
    key = read_assignments(store, run_id)[2].spec.key
    events = [event for event in read_events(store, run_id) if event.job == key]
    assert {event.remedy for event in events if event.reason} == {NOT_FINITE_REMEDY}
    (failure,) = run_status(store, run_id)["failures"]
    assert (failure["subject"], failure["remedy"]) == ("cat2", NOT_FINITE_REMEDY)
    (shown,) = collect(store, run_id).failures
    assert (shown.reason, shown.remedy) == (failure["reason"], failure["remedy"])
    assert "not finite" in shown.reason


def test_the_page_is_written_into_the_store_and_aside(
    run: tuple[Store, str], tmp_path: Path
) -> None:
    store, run_id = run
    out = tmp_path / "pages" / "report.html"
    summary = report_run(store, run_id, out=out)  # TensorBoard by default
    assert out.read_bytes() == store.read(f"runs/{run_id}/report.html")
    assert summary["subjects"] == 3
    assert sum(summary["verdicts"].values()) == 3
    logs = Path(store.full_path(f"runs/{run_id}/tracking/default/cat0"))
    assert any(logs.iterdir())
    with pytest.raises(OutputUnusable, match=f"cannot write {tmp_path}: it is a folder"):
        report_run(store, run_id, out=tmp_path)


def test_missing_photos_are_reported_and_not_fatal(run: tuple[Store, str]) -> None:
    store, run_id = run
    photo = Path(store.full_path("")).parent / "cat1" / "0.png"
    kept = photo.read_bytes()
    photo.unlink()
    try:
        view = collect(store, run_id)
        assert len(view.subjects[1].photos) == 1
        assert any("photos could no longer be read" in note for note in view.notes)
    finally:
        photo.write_bytes(kept)


def test_an_imported_adapter_in_the_store_changes_no_report(
    run: tuple[Store, str], tmp_path: Path
) -> None:
    store, run_id = run
    before = collect(store, run_id)
    registry = Registry(store)
    named = registry.resolve("default", "cat0")
    assert named is not None
    registry.fetch(named.job_key, tmp_path / "cat0")
    file = tmp_path / "cat0" / "pytorch_lora_weights.safetensors"
    request = ImportRequest(file, "brought", "cat")
    imported = import_adapter(store, load_base("tiny"), request)
    try:
        assert collect(store, run_id).subjects == before.subjects
        with pytest.raises(UserError, match="was imported"):
            score_named(store, ["brought"], base_name="tiny", scorer_name="embedded")
    finally:
        store.delete("names/default/brought.json")
        store.delete(f"adapters/{imported.record.job_key}")


def test_a_run_that_is_not_there_is_named(run: tuple[Store, str]) -> None:
    store, run_id = run
    with pytest.raises(UserError, match="no run") as caught:
        report_run(store, "nosuchrun")
    assert run_id in caught.value.remedy


def test_recipes_too_short_for_a_card_say_so(run: tuple[Store, str], clip_folder: Path) -> None:
    store, run_id = run

    spec = read_assignments(store, run_id)[0].spec
    base = load_base("tiny")
    bank = Bank(base, num_slots=1, max_rank=2, target_modules=("to_q",))
    try:
        judge = QualityJudge(ScoringSettings(str(clip_folder)))
        photos = {0: prepare_photos(base, spec).pictures}
        assert judge.judge(base, bank, {0: spec}, photos, {})[0].card is not None
        card = judge.judge(base, bank, {0: spec}, photos, {})[0].card
        assert card is not None
        (reason,) = card["verdict"]["reasons"]
        numbers = re.search(r"at least (\d+) steps, or set --scoring-share ([\d.]+)\.", reason)
        assert numbers is not None
        fewest, share = int(numbers[1]), float(numbers[2])
        recipe = spec.subject.recipe
        longer = recipe.model_copy(update={"steps": fewest})
        assert ScoringBudget.within(longer, DEFAULT_SHARE) is not None
        shorter = recipe.model_copy(update={"steps": fewest - 1})
        assert ScoringBudget.within(shorter, DEFAULT_SHARE) is None
        assert ScoringBudget.within(recipe, share) is not None
        kind = JobKind(recipe, spec.subject.class_noun, spec.subject.class_prompt)
        notes = judge.pictures("tiny", [(kind, 1)]).notes
        assert notes == (f"1 subject will not be scored: {reason}",)
        unnamed = QualityJudge().judge(base, bank, {0: spec}, photos, {})[0].card
        assert unnamed is not None
        assert "FARM_SCORER" in unnamed["verdict"]["reasons"][0]
    finally:
        bank.close()


def test_the_judge_reads_the_prepared_photos_never_the_disk(
    run: tuple[Store, str], clip_folder: Path
) -> None:
    store, run_id = run
    spec = read_assignments(store, run_id)[0].spec
    base = load_base("tiny")
    photos = prepare_photos(base, spec).pictures
    assert [photo.size for photo in photos] == [Image.open(p.uri).size for p in spec.subject.photos]
    gone = tuple(replace(photo, uri="/nowhere/1.png") for photo in spec.subject.photos)
    subject = spec.subject.model_copy(update={"photos": gone})
    spec = spec.model_copy(update={"subject": subject})
    bank = Bank(base, num_slots=1, max_rank=2, target_modules=("to_q",))
    try:
        judge = QualityJudge(ScoringSettings(str(clip_folder), share=100))
        card = judge.judge(base, bank, {0: spec}, {0: photos}, {})[0].card
    finally:
        bank.close()
    assert card is not None
    assert card["num_photos"] == 2
    assert card["scores"]["clip_i"]["num"] == 8


def test_large_photos_are_kept_small_for_the_judge(tmp_path: Path) -> None:
    photos, digests = [], []
    for number in range(13):
        path = tmp_path / f"{number}.png"
        Image.new("RGB", (2000, 500), (number, 0, 0)).save(path)
        photos.append(Photo(str(path)))
        digests.append(bytes_digest(path.read_bytes()))
    subject = Subject(id="a", class_noun="cat", photos=tuple(photos))
    spec = job_spec(subject, digests, base_fingerprint="f", resolution_px=64)
    kept = prepare_photos(load_base("tiny"), spec).pictures
    assert [photo.size for photo in kept] == [(1344, 336)] * 12


def test_thumbnails_are_small_pictures(run: tuple[Store, str]) -> None:
    import base64
    import io

    store, run_id = run
    uri = collect(store, run_id).subjects[0].photos[0].uri
    assert uri.startswith("data:image/webp;base64,")
    with Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))) as picture:
        assert picture.size == (64, 64)


def test_committed_adapters_are_scored_again(run: tuple[Store, str], clip_folder: Path) -> None:
    store, run_id = run
    small = ScoringBudget(4, 4, 4, steps=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("farm.quality.rescore.CAREFUL", small)
        cards = score_named(
            store, ["default/cat1", "cat0"], base_name="tiny", scorer_name=str(clip_folder)
        )
    assert list(cards) == ["default/cat1", "cat0"]
    assert cards["cat0"]["scores"]["clip_i"]["num"] == 4
    assert cards["cat0"]["scores"]["drift"]["mean"] != cards["default/cat1"]["scores"]["drift"]
    with pytest.raises(UserError, match="no scorer"):
        score_named(store, ["cat0"], base_name="tiny")
    with pytest.raises(UserError, match=r"was trained on tiny \(.*\), not on tiny-v"):
        score_named(store, ["cat0"], base_name="tiny-v", scorer_name=str(clip_folder))
    with pytest.raises(FarmError, match="no adapter"):
        score_named(store, ["nobody"], base_name="tiny", scorer_name=str(clip_folder))
