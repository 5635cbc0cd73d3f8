"""``farm submit`` on a real head with token authentication."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.cli.commands import farm_in_one_process
from support.manifests import write_manifest
from support.ray_head import BIN, Head, clean_environment, ray_head, slow_lanes

from farm.adapters.registry import Registry
from farm.locks import holder
from farm.storage import Store
from farm.training.execute import prepare_run
from farm.training.run.request import RunRequest
from farm.training.run.status import run_status

pytestmark = pytest.mark.slow

QUICK = {"steps": 4, "num_prior_images": 2, "crops_per_photo": 1, "prior_rows": 0}
LONG = QUICK | {"steps": 20_000, "checkpoint_every": 5_000}
OPTIONS = ["--with", "--no-cards --no-report --samples 0 --set 'flip=false'"]


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    with ray_head(env=slow_lanes(tmp_path_factory.mktemp("pace"), 0.05)) as running:
        yield running


def farm(environment: dict[str, str], *arguments: str | Path) -> Any:
    """A farm command in its own process."""
    return subprocess.run(
        [str(BIN / "farm"), *(str(argument) for argument in arguments)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=400,
    )


def submit(head: Head, manifest: Path, store: Store, *more: str) -> dict[str, Any]:
    done = farm(
        head.environment(),
        *("submit", manifest, "--store", store.url, "--address", head.dashboard, "--json"),
        *("--base", "tiny"),
        *OPTIONS,
        *more,
    )
    assert done.returncode == 0, done.stderr
    facts: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return facts


def client_of(head: Head) -> Any:
    """A client in this process, whose environment does not mention the head."""
    from ray.job_submission import JobSubmissionClient

    return JobSubmissionClient(head.dashboard, headers={"Authorization": f"Bearer {head.token}"})


def await_end(head: Head, job: str) -> str:
    client = client_of(head)
    until = time.monotonic() + 300
    while time.monotonic() < until:
        status = str(client.get_job_status(job).value)
        if status in ("SUCCEEDED", "FAILED", "STOPPED"):
            return status
        time.sleep(0.5)
    raise AssertionError(client.get_job_logs(job))


def await_training(store: Store, run: str) -> None:
    from farm.training.dispatch.ledger import read_events

    until = time.monotonic() + 240
    while time.monotonic() < until:
        if any(event.kind == "progress" for event in read_events(store, run)):
            return
        time.sleep(0.3)
    raise AssertionError("nothing was trained")


def test_a_local_manifest_travels_survives_its_driver_and_is_found_again(
    head: Head, tmp_path: Path
) -> None:
    manifest = write_manifest(tmp_path / "m", 2, recipe=QUICK | {"steps": 100})
    store = Store(tmp_path / "store")
    sent = submit(head, manifest, store, "--retry", "2")
    owner = holder(store, f"runs/{sent['run']}/drivers")
    assert owner is not None
    # a machine that has the store and no way to the cluster
    watch = subprocess.Popen(
        [str(BIN / "farm"), "status", sent["run"], "--store", store.url, "--watch", "--json"],
        env=clean_environment(),
        stdout=subprocess.PIPE,
        text=True,
    )
    os.kill(owner.pid, signal.SIGKILL)
    assert await_end(head, sent["job"]) == "SUCCEEDED", client_of(head).get_job_logs(sent["job"])
    assert len(list(Registry(store).names())) == 2
    log = client_of(head).get_job_logs(sent["job"])
    assert "the driver died (signal 9); it is started again" in log
    assert "joined the cluster at " in log
    assert run_status(store, sent["run"])["cluster"]
    shown, _ = watch.communicate(timeout=60)
    assert watch.returncode == 0
    assert json.loads(shown.splitlines()[-1])["counts"]["committed"] == 2
    # the same run id as with `farm run`
    options = {"base": "tiny", "recipe": {"flip": False}}
    at_home = prepare_run(RunRequest(str(manifest), store.url, **options))
    assert sent["run"] == at_home.run_id
    assert len(at_home.committed) == 2
    # photos are in the store, named by their content; nothing refers to this machine's files
    (name,) = [one for one in store.list("submissions") if one.endswith(".parquet")]
    assert str(tmp_path / "m").encode() not in store.read(f"submissions/{name}")
    again = submit(head, manifest, store, "--retry", "2")
    assert again["manifest"] == sent["manifest"]
    assert again["job"] != sent["job"]
    assert await_end(head, again["job"]) == "SUCCEEDED"
    log = client_of(head).get_job_logs(again["job"])
    assert json.loads(log.splitlines()[-1])["reused"] == 2


def test_a_missing_or_wrong_token_is_one_clear_error(head: Head, tmp_path: Path) -> None:
    manifest = write_manifest(tmp_path / "m", 1, recipe=QUICK)
    home = {"HOME": str(tmp_path)}
    arguments = ("submit", manifest, "--store", tmp_path / "s", "--address", head.dashboard)
    without = farm(clean_environment() | home, *arguments)
    wrong = farm(clean_environment() | home | {"RAY_AUTH_TOKEN": "0" * 32}, *arguments)
    for done, words in ((without, "asks for a token"), (wrong, "refuses this token")):
        assert done.returncode == 2
        assert words in " ".join(done.stderr.split())
        assert "RAY_AUTH_TOKEN" in done.stderr
        assert "Traceback" not in done.stderr
    assert not (tmp_path / "s").exists()  # nothing was sent


def test_what_the_run_would_refuse_is_refused_before_anything_is_sent(
    head: Head, tmp_path: Path
) -> None:
    manifest = write_manifest(tmp_path / "m", 1, recipe=QUICK)
    (tmp_path / "bad").mkdir()
    not_a_photo = tmp_path / "bad" / "manifest.jsonl"
    (tmp_path / "bad" / "secret.png").write_text("not a photo")
    line = {"id": "s", "class_noun": "cat", "photos": [str(tmp_path / "bad" / "secret.png")]}
    not_a_photo.write_text(json.dumps(line))
    jobs = len(client_of(head).list_jobs())
    cases: tuple[tuple[Path, list[str], str], ...] = (
        (manifest, ["--with", "--gpu Quux"], "memory of 'Quux' is not known"),
        (manifest, ["--with", "--nope 3"], "--nope"),
        (manifest, ["--with", "--set 'a"], "No closing quotation"),
        (manifest, ["--with", "--store x"], "`farm submit` sets --store itself"),
        (not_a_photo, [], "not a photo"),
    )
    where = ("--store", tmp_path / "s", "--address", head.dashboard)
    commands = [("submit", file, *where, *options) for file, options, _ in cases]
    all_done = farm_in_one_process(commands, head.environment())
    for done, (_, _, words) in zip(all_done, cases, strict=True):
        assert done.returncode in (2, 3), done.stderr
        assert words in " ".join(done.stderr.split())
        assert "Traceback" not in done.stderr
    assert len(client_of(head).list_jobs()) == jobs
    assert not (tmp_path / "s").exists()


def test_a_run_that_cannot_begin_is_reported_by_submit(head: Head, tmp_path: Path) -> None:
    done = farm(
        head.environment(),
        *("submit", "s3://no-such-bucket-of-ours/m.jsonl", "--store", tmp_path / "s"),
        *("--address", head.dashboard),
    )
    assert done.returncode == 2
    assert "ended at once" in done.stderr
    assert "was sent:" not in done.stdout


def test_a_stopped_job_releases_its_run_at_once(head: Head, tmp_path: Path) -> None:
    manifest = write_manifest(tmp_path / "m", 1, recipe=LONG)
    store = Store(tmp_path / "store")
    sent = submit(head, manifest, store)
    await_training(store, sent["run"])
    again = submit(head, manifest, store)
    assert (again["job"], again["was_running"]) == (sent["job"], True)
    watch = farm(head.environment(), "status", sent["run"], "--store", store.url, "--json")
    assert json.loads(watch.stdout)["driver"] is not None
    client_of(head).stop_job(sent["job"])
    assert await_end(head, sent["job"]) == "STOPPED"
    assert holder(store, f"runs/{sent['run']}/drivers") is None
    # it had time to save its job
    (key,) = store.list("checkpoints")
    assert store.list(f"checkpoints/{key}")
