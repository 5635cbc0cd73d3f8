"""A stop while class images are generated: quiet, and Ray ends only after the threads that call
it."""

from __future__ import annotations

import threading
from collections.abc import Generator, Sequence
from pathlib import Path

import pytest
import ray

from farm.intake.job import PriorSpec
from farm.storage import Store
from farm.training.cluster import run as run_module
from farm.training.cluster.ray_threads import names_of_ray_threads
from farm.training.priors.builder import PartFailure, PriorBuilder
from farm.training.priors.storage import PartRecord


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
