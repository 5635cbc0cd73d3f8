"""A stop while samples are generated: the run ends at once, and the next start completes it."""

from __future__ import annotations

import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from support.jobs import assert_close
from support.manifests import QUICK, adapters, request, write_manifest

from farm.adapters.generate import generate_by_slot
from farm.adapters.registry import Registry
from farm.adapters.weights import AdapterWeights
from farm.errors import Interrupted
from farm.storage import Store
from farm.training.execute import run_manifest
from farm.training.lane.publisher import load_checkpoint
from farm.training.lane.settings import LaneSettings, SampleSettings

STEPS = 6


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    recipe = QUICK | {"steps": STEPS, "prior_rows": 0, "num_prior_images": 0}
    return write_manifest(tmp_path_factory.mktemp("m"), 2, recipe=recipe)


@pytest.fixture(scope="module")
def undisturbed(
    manifest: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, AdapterWeights]:
    folder = tmp_path_factory.mktemp("undisturbed")
    run_manifest(request(manifest, folder / "store", slots=2))
    return adapters(Store(folder / "store"), folder / "adapters")


@pytest.mark.timeout(120)
@pytest.mark.parametrize("beside", [False, True])
def test_a_stop_while_samples_are_generated_leaves_trained_jobs_to_the_next_start(
    manifest: Path,
    undisturbed: dict[str, AdapterWeights],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    beside: bool,
) -> None:
    monkeypatch.setattr("farm.training.run.in_process.LOOK_S", 0.02)
    finish_beside = partial(LaneSettings, finish_beside=beside)
    monkeypatch.setattr("farm.training.run.driver.LaneSettings", finish_beside)
    store, stop, stopped_at = Store(tmp_path / "store"), threading.Event(), []

    def generate(*arguments: Any, **options: Any) -> Any:
        stopped_at.append(time.monotonic())
        stop.set()
        return generate_by_slot(*arguments, **options)

    monkeypatch.setattr("farm.training.slots.trainer.generate_by_slot", generate)
    endless = SampleSettings(steps=500, per_prompt=1000)
    with pytest.raises(Interrupted, match="0 of 2 adapters .* 2 jobs are left") as caught:
        run_manifest(request(manifest, store.url, slots=2, samples=endless), stop=stop)
    assert caught.value.exit_code == 130
    assert time.monotonic() - stopped_at[0] < 20  # these samples would take hours
    assert list(Registry(store).names()) == []
    assert store.list("adapters") == []
    states = [load_checkpoint(store, key) for key in store.list("checkpoints")]
    saved = sorted((state.step, state.ended) for state in states if state)
    assert saved[-1] == (STEPS, "steps")  # the job whose samples were generated
    # the other was admitted later, and may have had steps left
    assert all(step < STEPS for step, ended in saved if not ended)

    summary = run_manifest(request(manifest, store.url, slots=2))
    assert (summary.committed, summary.failed) == (2, 0)
    assert store.list("checkpoints") == []
    registry = Registry(store)
    for named in registry.names():
        record = registry.record(named.job_key)
        assert (record.steps_trained, len(record.loss_curve)) == (STEPS, STEPS)
        assert "samples/00.png" in record.files
    found = adapters(store, tmp_path / "adapters")
    for name, weights in undisturbed.items():
        assert_close(found[name], weights, 1e-4)
