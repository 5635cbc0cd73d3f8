"""A stop while class images are generated: quiet, and Ray ends only after the threads that call
it."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
import ray
from support.manifests import request, write_manifest

from farm.cli.execute import stop_on_signals
from farm.errors import Interrupted
from farm.intake.job import PriorSpec
from farm.storage import Store
from farm.training.cluster import prior_thread
from farm.training.cluster import run as run_module
from farm.training.cluster.ray_threads import names_of_ray_threads
from farm.training.cluster.start import _hushed_stderr
from farm.training.execute import execute_run, prepare_run
from farm.training.priors.builder import PartFailure, PriorBuilder
from farm.training.priors.storage import PartRecord
from farm.training.run.driver import Driver
from farm.training.run.earlier import refuse_driven


def test_the_line_of_a_stop_is_seen_while_ray_starts(capfd: pytest.CaptureFixture[str]) -> None:
    with stop_on_signals() as (stop, _), _hushed_stderr():
        os.write(2, b"of Ray")
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.wait(10)
    assert capfd.readouterr().err == "stopping: running jobs are being saved …\n"


def test_a_stop_before_or_while_ray_starts_begins_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = request(write_manifest(tmp_path / "m", 1), tmp_path / "store", executor="ray")
    prepared, stop = prepare_run(asked), threading.Event()

    @contextmanager
    def connected(driver: Driver) -> Iterator[None]:
        assert not driver.stop.is_set()
        stop.set()
        yield

    monkeypatch.setattr(run_module, "_connected", connected)
    for _ in range(2):  # first while Ray starts, then before
        with pytest.raises(Interrupted, match="1 job is left"):
            execute_run(prepared, stop=stop)
    assert not ray.is_initialized()
    refuse_driven(asked)  # its lock is released


def test_a_stop_waits_for_no_class_images_whose_workers_have_not_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared = prepare_run(request(write_manifest(tmp_path / "m", 1), tmp_path / "store"))
    killed, begun = threading.Event(), threading.Event()

    def generate(*_: object) -> Generator[PartRecord | PartFailure]:
        begun.set()
        killed.wait(60)
        raise ray.exceptions.ActorDiedError
        yield  # type: ignore[unreachable]

    monkeypatch.setattr(prior_thread, "generate_with_ray", generate)
    monkeypatch.setattr(prior_thread, "end_actors", lambda name: killed.set())
    monkeypatch.setattr(prior_thread, "keep_ray_stopped", lambda: None)
    monkeypatch.setattr(prior_thread, "has_started", lambda name: False)
    monkeypatch.setattr(prior_thread, "STOP_S", 600.0)
    thread = prior_thread.PriorThread(prepared, ready=lambda key: None, failed=lambda *why: None)
    thread.start()
    assert begun.wait(30)
    thread.end(time.monotonic())
    assert "priors" not in names_of_ray_threads()


def test_an_error_after_the_stop_fails_no_set(tmp_path: Path) -> None:
    spec = PriorSpec(
        base_fingerprint="0", class_prompt="a cat", num_images=1, resolution_px=32, steps=2
    )
    failed: list[str] = []

    def generate(specs: Sequence[PriorSpec], attempt: str) -> Generator[PartRecord | PartFailure]:
        builder.stopped.set()
        raise AttributeError("'Worker' object has no attribute 'core_worker'")
        yield  # type: ignore[unreachable]

    builder = PriorBuilder(
        Store(str(tmp_path)),
        [spec],
        generate,
        ready=lambda key: None,
        failed=lambda key, reason, remedy: failed.append(key),
    )
    builder.run()
    assert failed == []


@pytest.mark.parametrize("name", ["priors", "lanes-1-0", "StreamingExecutor-dataset_1_0"])
def test_ray_is_not_shut_down_under_a_thread_that_calls_it(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    monkeypatch.setattr(ray, "shutdown", lambda: calls.append("shutdown"))
    monkeypatch.setattr(run_module, "_kill_own_ray", lambda: calls.append("kill"))
    end = threading.Event()
    thread = threading.Thread(target=end.wait, name=name)
    thread.start()
    try:
        assert name in names_of_ray_threads()
        run_module._end_ray(None)
        assert calls == ["kill"]
    finally:
        end.set()
        thread.join()
    run_module._end_ray(None)
    assert calls == ["kill", "shutdown"]
