"""``farm serve`` and ``farm keys`` as a user runs them."""

from __future__ import annotations

import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx2
import openai
import pytest
import torch
from PIL import Image
from support.cli.commands import farm_here
from support.ray_head import FEW_STATISTICS
from typer.testing import CliRunner

from farm.cli import app
from farm.cli.listening import bind_sockets
from farm.errors import UserError

FARM = [sys.executable, "-c", "from farm.cli import main; main()"]


@contextmanager
def serving(*arguments: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """A served endpoint's address and process, once it reports that it is serving."""
    process = subprocess.Popen(
        [*FARM, "serve", "--base", "tiny", "--port", "0", *arguments],
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    told = []
    try:
        for line in process.stderr:
            told.append(line)
            found = re.search(r"at (http://\S+)", line)
            if found:
                yield found.group(1), process
                break
        else:
            raise AssertionError("".join(told))
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        process.wait(60)
        process.stderr.close()


def keys(*arguments: str) -> list[str]:
    """The lines that ``farm keys`` prints, in this process."""
    done = CliRunner().invoke(app, ["keys", *arguments])
    assert done.exit_code == 0, done.output
    return done.stdout.splitlines()


def test_a_key_is_made_shown_once_listed_and_revoked(tmp_path: Path) -> None:
    store = ("--store", str(tmp_path))
    made = json.loads(
        keys("create", *store, "--namespace", "acme", "--label", "the shop", "--json")[-1]
    )
    assert made["key"].startswith(f"farm_{made['key_id']}_")
    listed = keys("list", *store, "--json")
    assert made["key"].split("_", 2)[2] not in "".join(listed)
    (row,) = json.loads(listed[-1])
    assert (row["namespace"], row["label"], row["status"]) == ("acme", "the shop", "valid")
    keys("revoke", made["key_id"], *store)
    (row,) = json.loads(keys("list", *store, "--json")[-1])
    assert row["status"] == "revoked"
    assert any(made["key_id"] in line for line in keys("list", *store))


def test_the_first_key_of_a_store_warns_that_others_are_locked_out(tmp_path: Path) -> None:
    first, second = (farm_here("keys", "create", "--store", str(tmp_path)) for _ in range(2))
    assert first.stdout.startswith("farm_")
    assert "answer 401 to requests without a key" in first.stderr
    assert second.stderr == ""


def test_revoking_an_unknown_key_says_where_to_look(tmp_path: Path) -> None:
    unknown = farm_here("keys", "revoke", "nothing", "--store", str(tmp_path))
    assert (unknown.returncode, "farm keys list" in unknown.stderr) == (2, True)


def test_without_a_good_key_it_does_not_listen_to_a_network(tmp_path: Path) -> None:
    store = ("--store", str(tmp_path))
    revoked = json.loads(keys("create", *store, "--json")[-1])["key_id"]
    keys("revoke", revoked, *store)
    refused = farm_here("serve", *store, "--base", "tiny", "--host", "0.0.0.0")
    assert refused.returncode == 2
    assert "farm keys create" in refused.stderr


@pytest.mark.parametrize("options", [(), ("--ray",)], ids=["here", "ray"])
def test_a_taken_port_is_reported_with_a_remedy_before_the_base_is_loaded(
    tmp_path: Path, options: tuple[str, ...]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        command = ["serve", "--store", str(tmp_path), "--port", str(port), *options]
        done = CliRunner().invoke(app, command)
    assert isinstance(done.exception, UserError)
    assert f"port {port} on 127.0.0.1 is already in use" in done.exception.message
    assert f"--port {port + 1}" in done.exception.remedy
    assert "loading" not in done.output


def test_a_host_of_another_machine_is_reported_with_a_remedy() -> None:
    for host in ("192.0.2.1", "no.such.host.invalid"):
        with pytest.raises(UserError, match=host) as caught:
            bind_sockets(host, 0)
        assert "127.0.0.1" in caught.value.remedy


def test_a_wrong_config_file_is_explained(tmp_path: Path) -> None:
    config = tmp_path / "serve.yaml"
    config.write_text("limits: {max_picture: 3}\n")
    told = farm_here("serve", "--store", str(tmp_path), "--config", str(config))
    assert told.returncode == 2
    assert "limits.max_picture" in told.stderr


def test_without_a_store_it_says_where_one_may_be_named(tmp_path: Path) -> None:
    config = tmp_path / "serve.yaml"
    config.write_text("base: tiny\n")
    told = CliRunner().invoke(app, ["serve", "--config", str(config)], env={"FARM_STORE": ""})
    assert isinstance(told.exception, UserError)
    assert "--store" in told.exception.remedy


def test_the_store_may_be_in_the_config_file_and_options_win(tmp_path: Path) -> None:
    from farm.cli.commands.serve import ServeOptions, _settings

    config = tmp_path / "serve.yaml"
    config.write_text(f"store: {tmp_path}/of-the-file\nengine: {{max_rank: 8, num_slots: 5}}\n")
    made = _settings(ServeOptions(config=str(config)))
    assert (made.store, made.engine.max_rank) == (f"{tmp_path}/of-the-file", 8)
    options = ServeOptions(config=str(config), store="./other", max_rank=32, slots=9)
    made = _settings(options)
    assert (made.store, made.engine.max_rank, made.engine.num_slots) == ("./other", 32, 10)


@pytest.fixture
def ray_of_its_own(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Processes started here find no cluster, and start one in a temporary folder."""
    folder = tempfile.mkdtemp(prefix="ray-")  # short, because socket paths are limited
    monkeypatch.setenv("RAY_TMPDIR", folder)
    for variable, value in {**FEW_STATISTICS, "RAY_worker_niceness": "0"}.items():
        monkeypatch.setenv(variable, value)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    yield
    shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.slow
@pytest.mark.usefixtures("ray_of_its_own")
def test_on_ray_it_starts_generates_and_stops_when_told(tmp_path: Path) -> None:
    config = tmp_path / "serve.yaml"
    config.write_text(
        "engine: {num_slots: 4, batch_rows: 4}\n"
        "replicas: {cpus_per_engine: 0.5, cpus_per_ingress: 0.2, num_ingresses: 1}\n"
        f"cache_folder: {tmp_path / 'disk'}\n"
    )
    (tmp_path / "store").mkdir()
    options = ("--store", str(tmp_path / "store"), "--config", str(config), "--ray")
    with serving(*options) as (url, process):
        until_s = time.monotonic() + 120
        while httpx2.get(f"{url}/ready", timeout=30).status_code != 200:
            assert time.monotonic() < until_s
            time.sleep(0.5)
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
        assert [model.id for model in client.models.list()] == ["tiny"]
        ask = {"extra_body": {"seed": 1, "num_inference_steps": 2}}
        generated = client.images.generate(model="tiny", prompt="a photo", **ask).data[0]
        assert generated.receipt["engine"]
        process.send_signal(signal.SIGTERM)
        body = {"prompt": "a photo", "seed": 1, "num_inference_steps": 2}
        statuses = set()
        while process.poll() is None:
            with suppress(httpx2.TransportError):
                answer = httpx2.post(f"{url}/v1/images/generations", json=body, timeout=30)
                statuses.add((answer.status_code, answer.headers.get("retry-after")))
            time.sleep(0.05)
        assert process.wait(60) == 0
        assert statuses == {(200, None), (503, "1")}
        assert process.stderr is not None
        printed = process.stderr.read()
        assert "stopping" in printed
        assert not re.search("INFO|WARNING|ray::|died|Traceback", printed)
    with pytest.raises(httpx2.ConnectError):
        httpx2.get(f"{url}/health")


def test_engines_that_do_not_fit_are_refused_before_ray_starts(tmp_path: Path) -> None:
    told = farm_here(
        *("serve", "--ray", "--engines", "4000", "--port", "0"),
        *("--store", str(tmp_path), "--base", "tiny"),
        RAY_ADDRESS="",
    )
    assert told.returncode == 2
    assert "4000 engines of 1 CPU" in told.stderr
    assert "remedy: --engines " in told.stderr or "add nodes" in told.stderr


@pytest.mark.slow
def test_train_then_serve_without_a_redeploy(tmp_path: Path) -> None:
    """A run commits an adapter while the endpoint is up; the next request generates with it."""
    (tmp_path / "store").mkdir()
    store = str(tmp_path / "store")
    manifest = tmp_path / "manifest.jsonl"
    subject = {
        "id": "rex",
        "class_noun": "dog",
        "photos": [],
        "recipe": {"steps": 4, "num_prior_images": 2, "crops_per_photo": 1},
        "prior": {"steps": 2},
    }
    for index in range(2):
        photo = tmp_path / f"{index}.png"
        Image.effect_noise((72, 72), 50 + 50 * index).convert("RGB").save(photo)
        subject["photos"].append(str(photo))  # type: ignore[attr-defined]
    manifest.write_text(json.dumps(subject) + "\n")
    with serving("--store", store, "--slots", "4") as (url, process):
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
        ask = {"extra_body": {"seed": 1, "num_inference_steps": 2}}
        with pytest.raises(openai.NotFoundError):
            client.images.generate(model="rex", prompt="a photo of [V] dog", **ask)
        done = farm_here(
            "run",
            str(manifest),
            "--store",
            store,
            "--base",
            "tiny",
            "--in-process",
            "--json",
            "--no-cards",
            "--sample-steps",
            "2",
        )
        assert done.returncode == 0, done.stderr
        generated = client.images.generate(model="rex", prompt="a photo of [V] dog", **ask).data[0]
        assert generated.revised_prompt == "a photo of sks dog"
        assert generated.receipt["adapters"][0]["name"] == "rex"
        assert "rex" in {model.id for model in client.models.list()}
        sample = httpx2.get(f"{url}/v1/models/rex/samples/0")
        assert sample.status_code == 200
        # SIGTERM ends it when no request is running
        process.send_signal(signal.SIGTERM)
        until_s = time.monotonic() + 60
        while process.poll() is None and time.monotonic() < until_s:
            time.sleep(0.1)
        assert process.poll() == 0
        assert process.stderr is not None
        assert re.search(r"stopped; [1-9]\d* images? served", process.stderr.read())


@pytest.mark.parametrize(
    ("gpus", "engines", "share"),
    [(0, 2, 0.0), (1, 1, 1.0), (1, 2, 0.5), (1, 3, 0.25), (2, 2, 1.0), (8, 9, 0.5)],
)
def test_engines_on_one_machine_share_its_gpus_equally(monkeypatch, gpus, engines, share):
    from farm.cli.commands.serve import _gpu_share

    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    assert _gpu_share(engines) == share
