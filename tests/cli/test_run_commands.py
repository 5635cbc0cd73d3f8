"""``farm plan, run, status, logs, retry, cancel, export, demo`` as a user types them."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.manifests import write_manifest
from support.quality.scorers import save_clip
from typer.testing import CliRunner

from farm.adapters.registry import Registry
from farm.cli import app
from farm.cli.execute import hardware_of
from farm.cli.existing_store import existing_store
from farm.cli.options import PlanOptions, recipe_fields
from farm.errors import FarmError, ManifestError, PlanError, StoreUnusable, UserError
from farm.intake.scoring import ScoringSettings
from farm.storage import Store
from farm.text.durations import duration
from farm.training.cluster.jobs.submit import entrypoint_of, scoring_arguments
from farm.training.dispatch.messages import Snapshot
from farm.training.pace import Pace, Work
from farm.training.plan.estimate import Estimate
from farm.training.run.files import read_settings

QUIET = ["--base", "tiny", "--in-process", "--no-cards", "--no-report", "--sample-steps", "2"]


def farm(*arguments: str | Path, fails: bool = False) -> Any:
    """Run a command; returns its last line as JSON if it has ``--json``."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert (result.exit_code != 0) == fails, result.output
    if "--json" in arguments:
        return json.loads(result.stdout.splitlines()[-1])
    return result.stdout


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, str]:
    """A trained manifest of two subjects: manifest, store, run id."""
    folder = tmp_path_factory.mktemp("cli")
    manifest = write_manifest(folder / "m", 2)
    summary = farm("run", manifest, "--store", folder / "store", *QUIET, "--json")
    assert {key: summary[key] for key in ("jobs", "committed", "reused", "failed")} == {
        "jobs": 2,
        "committed": 2,
        "reused": 0,
        "failed": 0,
    }
    assert set(summary) == {
        *("run", "jobs", "committed", "reused", "revoked", "failed", "quarantined", "cancelled"),
        "seconds",
    }
    # the report takes its duration from there
    settings = read_settings(Store(folder / "store"), summary["run"])
    assert round(settings["seconds"], 3) == summary["seconds"]
    (start,) = settings["starts"].values()
    assert start == {"gpu_fraction": 0.0, "num_nodes": 1, "seconds": settings["seconds"]}
    return manifest, folder / "store", summary["run"]


def test_plan_shows_what_run_would_do_and_writes_nothing(tmp_path: Path) -> None:
    manifest = write_manifest(tmp_path / "m", 3)
    facts = farm("plan", manifest, "--store", tmp_path / "store", "--base", "tiny", "--json")
    assert (facts["jobs"], facts["to_train"], facts["prior_sets_to_draw"]) == (3, 3, 1)
    assert facts["plan"]["lanes"] == 1
    assert not (tmp_path / "store").exists()
    text = farm(
        *("plan", manifest, "--store", tmp_path / "store", "--base", "tiny"),
        *("--gpu", "A100", "--gpus", "8", "--nodes", "2"),
    )
    assert "GPU hours" in text
    assert "lanes" in text


def test_a_recipe_field_on_the_command_line_wins(tmp_path: Path) -> None:
    manifest = write_manifest(tmp_path / "m", 1)
    plain, longer = (
        farm("plan", manifest, "--store", tmp_path / "s", "--base", "tiny", "--json", *extra)
        for extra in ((), ("--set", "steps=60"))
    )
    assert plain["run"] != longer["run"]
    assert longer["plan"]["hours"] > plain["plan"]["hours"]


def test_run_again_finds_everything(trained: tuple[Path, Path, str]) -> None:
    manifest, store, run = trained
    summary = farm("run", manifest, "--store", store, *QUIET, "--json")
    assert (summary["run"], summary["committed"], summary["reused"]) == (run, 0, 2)
    assert "2 found" in farm("run", manifest, "--store", store, *QUIET)


def test_status_and_logs_tell_what_happened(trained: tuple[Path, Path, str]) -> None:
    _, store, run = trained
    facts = farm("status", "--store", store, "--json")
    assert (facts["run"], facts["counts"]["committed"], facts["left"]) == (run, 2, 0)
    assert "committed" in farm("status", run[:5], "--store", store)
    events = farm("logs", run, "--subject", "s001", "--store", store, "--json")
    assert {event["subject"] for event in events} == {"s001"}
    assert events[-1]["kind"] == "committed"
    assert "s000" in farm("logs", "--store", store)
    with pytest.raises(UserError, match="has no subject `s0000`") as unknown:
        farm("logs", "--subject", "s0000", "--store", store)
    assert unknown.value.remedy == "did you mean `s000`?"


def test_a_damaged_settings_file_is_named_with_a_remedy_that_works(
    trained: tuple[Path, Path, str], tmp_path: Path
) -> None:
    manifest, whole, run = trained
    store = shutil.copytree(whole, tmp_path / "store")
    for damage in ("{", "[]", '{"base": 3}'):
        (store / "runs" / run / "run.json").write_text(damage)
        with pytest.raises(UserError, match=r"run.json is damaged") as caught:
            farm("status", "--store", store)
        assert "run the manifest" in caught.value.remedy
    farm("run", manifest, "--store", store, *QUIET)
    assert farm("status", "--store", store, "--json")["counts"]["committed"] == 2


def test_a_name_that_differs_only_in_case_from_one_of_the_store_is_refused(
    trained: tuple[Path, Path, str], tmp_path: Path
) -> None:
    _, store, _ = trained
    manifest = write_manifest(tmp_path / "m", 1)
    manifest.write_text(manifest.read_text().replace('"id": "s000"', '"id": "S000"'))
    with pytest.raises(UserError, match="S000 differs only in case from default/s000"):
        farm("plan", manifest, "--store", store, "--base", "tiny")


def test_reading_a_run_imports_neither_torch_nor_ray(trained: tuple[Path, Path, str]) -> None:
    _, store, _ = trained
    code = (
        "import sys\n"
        "from farm.cli import app\n"
        "for command in ('status', 'logs'):\n"
        f"    app([command, '--store', {str(store)!r}], standalone_mode=False)\n"
        "print(sorted({'torch', 'ray', 'diffusers', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "s001" in done.stdout
    assert done.stdout.strip().endswith("[]")


def test_export_writes_folders_or_the_one_file_a_tool_wants(
    trained: tuple[Path, Path, str], tmp_path: Path
) -> None:
    _, store, run = trained
    whole = farm("export", tmp_path / "all", "--store", store, "--run", run, "--json")
    assert sorted(one["name"] for one in whole) == ["default/s000", "default/s001"]
    assert (tmp_path / "all/default/s000/adapter.json").is_file()
    for form, made in (
        ("kohya", "default/s001.safetensors"),
        ("diffusers", "default/s001.safetensors"),
        ("peft", "default/s001/adapter_config.json"),
    ):
        out = tmp_path / form
        named = ("s001",) if form == "kohya" else ("--name", "s001")
        farm("export", out, *named, "--store", store, "--form", form)
        assert (out / made).is_file()
    with pytest.raises(UserError, match="there is no form"):
        farm("export", tmp_path, "--store", store, "--form", "ckpt")
    with pytest.raises(UserError, match="no adapter is named"):
        farm("export", tmp_path, "--store", store, "--name", "nobody")


def test_cancel_and_retry_answer_without_a_driver(trained: tuple[Path, Path, str]) -> None:
    _, store, run = trained
    assert farm("cancel", run, "--store", store, "--json") == {
        "run": run,
        "asked": "cancel",
        "subjects": None,
        "settled": True,
        "jobs": 0,  # all were committed, and committed jobs are not changed
    }
    assert farm("retry", run, "--subject", "s000", "--store", store, "--json")["jobs"] == 0
    with pytest.raises(UserError, match="has no subject"):
        farm("retry", run, "--subject", "nobody", "--store", store)


def test_a_store_without_runs_says_so(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no runs"):
        farm("status", "--store", tmp_path)


@pytest.mark.parametrize(
    "command",
    [
        ("status",),
        ("logs",),
        ("report",),
        ("retry",),
        ("cancel",),
        ("score", "tom"),
        ("export", "out"),
        ("keys", "list"),
        ("keys", "revoke", "abc"),
        ("serve",),
    ],
    ids=" ".join,
)
def test_a_command_that_only_reads_refuses_a_store_that_does_not_exist(
    tmp_path: Path, command: tuple[str, ...]
) -> None:
    with pytest.raises(StoreUnusable, match="nowhere does not exist") as caught:
        farm(*command, "--store", tmp_path / "nowhere")
    assert caught.value.remedy
    assert not list(tmp_path.iterdir())
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(StoreUnusable, match="is a file, not a store"):
        farm(*command, "--store", file)


def test_an_empty_bucket_is_pointed_out(capsys: pytest.CaptureFixture[str]) -> None:
    assert existing_store("memory://nothing/here").list() == []
    assert "memory://nothing/here holds nothing" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["plan", "run"])
def test_recipe_fields_on_the_command_line_are_validated_before_anything_is_read(
    tmp_path: Path, command: str
) -> None:
    fields = ["--set", "stesp=9", "--set", "rank=0"]
    with pytest.raises(ManifestError, match="--set") as caught:
        farm(command, tmp_path / "nothing", "--base", "nothing", "--skip-faulty", *fields)
    assert {fault.field for fault in caught.value.faults} == {"recipe.stesp", "recipe.rank"}
    assert any("`steps`" in fault.remedy for fault in caught.value.faults)


def test_a_faulty_manifest_ends_with_its_own_exit_code(tmp_path: Path) -> None:
    manifest = write_manifest(tmp_path / "m", 2)
    (tmp_path / "m" / "s001" / "0.png").write_bytes(b"")
    (tmp_path / "m" / "s001" / "1.png").write_bytes(b"")
    with pytest.raises(ManifestError) as caught:
        farm("run", manifest, "--store", tmp_path / "store", *QUIET)
    assert caught.value.exit_code == 3
    summary = farm(
        *("run", manifest, "--store", tmp_path / "store", *QUIET, "--skip-faulty", "--json"),
        fails=True,
    )
    assert (summary["committed"], summary["failed"]) == (1, 1)


def test_what_cannot_be_planned_is_refused(tmp_path: Path) -> None:
    manifest = write_manifest(tmp_path / "m", 1)
    with pytest.raises(PlanError, match="GiB"):
        farm(
            *("plan", manifest, "--store", tmp_path / "s", "--base", "tiny"),
            *("--gpu", "toy", "--gpu-memory", "0.1"),
        )


@pytest.mark.parametrize(
    ("options", "address", "message"),
    [
        (PlanOptions(gpu="toy"), None, "memory of 'toy' is not known"),
        (PlanOptions(), "127.0.0.1:1", "no Ray cluster at 127.0.0.1:1"),
    ],
)
def test_hardware_that_cannot_be_known_must_be_given(
    options: PlanOptions, address: str | None, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        hardware_of(options, address)


def test_recipe_fields_are_read_as_yaml() -> None:
    assert recipe_fields(["steps=300", "flip=false", "alpha=null", "learning_rate=5e-4"]) == {
        "steps": 300,
        "flip": False,
        "alpha": None,
        "learning_rate": 5e-4,
    }
    assert recipe_fields(["learning_rate=1e-3", "name='1e-3x'"]) == {
        "learning_rate": 1e-3,
        "name": "1e-3x",
    }
    with pytest.raises(FarmError, match="name=value"):
        recipe_fields(["steps"])


def test_a_dot_sets_a_nested_recipe_field() -> None:
    own = recipe_fields(["early_stop.patience=9", "steps=5", "early_stop.every_steps=5"])
    assert own == {"early_stop": {"patience": 9, "every_steps": 5}, "steps": 5}
    with pytest.raises(FarmError, match="given as a whole too"):
        recipe_fields(["early_stop=null", "early_stop.patience=9"])


def test_a_submitted_run_is_an_ordinary_run_on_the_head() -> None:
    assert entrypoint_of(["s3://b/m f.yaml", "--store", "s3://b"]) == (
        "farm run 's3://b/m f.yaml' --store s3://b --address auto --yes --json"
    )


def test_a_submitted_run_takes_the_scorers_of_this_terminal_along() -> None:
    settings = ScoringSettings("openai/clip", None, 0.5)
    assert scoring_arguments(settings) == ["--scorer", "openai/clip", "--scoring-share", "0.5"]
    assert scoring_arguments(ScoringSettings()) == []


def test_the_environment_names_scorers_once_at_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip = str(save_clip(tmp_path / "clip"))
    monkeypatch.setenv("FARM_SCORER", clip)
    monkeypatch.setenv("FARM_SCORING_SHARE", "1000")
    manifest, store = write_manifest(tmp_path / "m", 1), Store(tmp_path / "store")
    options = [option for option in QUIET if option != "--no-cards"]
    run = farm("run", manifest, "--store", store.url, *options, "--json")["run"]
    asked = read_settings(store, run)["request"]
    assert asked["scoring"] == {"scorer": clip, "dino": None, "share": 1000.0}
    assert asked["cards"]
    (named,) = Registry(store).names()
    card = Registry(store).record(named.job_key).quality
    assert card is not None
    assert card["scorers"] == {"clip": clip}


def test_times_are_told_as_people_say_them() -> None:
    assert [duration(s) for s in (0, 59.6, 61, 3_661)] == ["0s", "1m 00s", "1m 01s", "1h 01m"]
    pace = Pace()
    assert pace.note(0.0, 0.0) is None
    assert pace.note(10.0, 0.25) == pytest.approx(30.0)
    assert pace.note(15.0, 0.25) == pytest.approx(25.0)  # counts down between two measurements


def test_the_remaining_time_does_not_jump_while_lanes_start() -> None:
    """As in a demo: no step for a minute, then a few slow ones while others still wait."""
    pace = Pace(expected_s=176.0)
    seen = [(0, 0.0), (60, 0.0), (70, 0.331), (80, 0.333), (90, 0.34), (120, 0.5), (150, 0.7)]
    left = [pace.note(float(now), share) for now, share in seen]
    assert left[:2] == pytest.approx([176.0, 116.0])
    assert all(one is not None and 50 < one < 200 for one in left[2:])


def test_the_remaining_time_includes_what_follows_the_last_step() -> None:
    plan = Estimate(start_s=5.0, class_images_s=15.0, training_s=40.0, pictures_s=30.0, end_s=10.0)
    work = Work(plan)

    def share(trained: float, committed: int) -> float:
        counts = {"committed": committed}
        return work.done(Snapshot(counts, 4, trained, (), 0, False))[0]

    assert share(0.0, 0) == 0.0  # class images are generated: the plan's own time counts down
    assert share(0.5, 0) == pytest.approx(0.4)
    assert share(1.0, 0) == pytest.approx(0.6)
    assert share(1.0, 2) == pytest.approx(0.8)
    assert share(1.0, 4) == pytest.approx(1.0)
    resumed = Work(plan)
    for trained, committed, expected in ((0.5, 2, 0.0), (0.75, 2, 0.4), (1.0, 4, 1.0)):
        snapshot = Snapshot({"committed": committed}, 4, trained, (), 0, False)
        assert resumed.done(snapshot) == pytest.approx((expected, 0.0))


@pytest.mark.slow
def test_the_demo_needs_nothing_and_finds_its_own_work(tmp_path: Path) -> None:
    options = ("--out", tmp_path / "demo", "--base", "tiny", "--in-process", "--json")
    options += ("--subjects", "2", "--steps", "2")
    first = farm("demo", *options)
    assert (first["committed"], first["failed"]) == (2, 0)
    photos = sorted((tmp_path / "demo/photos").rglob("*.png"))
    assert len(photos) == 10
    assert {photo.parent.name for photo in photos} == {"cat-01", "mushroom-02"}
    (served,) = (tmp_path / "demo/store/runs").glob("*/served")
    pictures = {file.name: file.stat().st_mtime_ns for file in served.iterdir()}
    assert set(pictures) == {"cat-01.png", "mushroom-02.png"}
    again = farm("demo", *options)
    assert (again["committed"], again["reused"]) == (0, 2)
    assert {file.name: file.stat().st_mtime_ns for file in served.iterdir()} == pictures
