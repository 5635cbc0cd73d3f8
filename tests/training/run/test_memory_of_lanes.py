"""Lanes that run out of memory: photos wait, slots are reduced, no job is lost."""

from __future__ import annotations

from collections import Counter
from functools import partial
from pathlib import Path

import pytest
import torch
from support.manifests import QUICK, adapters, request, write_manifest

from farm.base.interface import Base
from farm.base.loading import load_base
from farm.intake.job import JobSpec
from farm.recipe import Recipe
from farm.storage import Store
from farm.training.dispatch.ledger import read_events
from farm.training.execute import prepare_run, run_manifest
from farm.training.lane.encode import PreparedPhotos, prepare_photos
from farm.training.plan.costs import beside_bytes, lane_bytes
from farm.training.plan.hardware import Hardware
from farm.training.plan.shape import workload_of
from farm.training.run.files import list_runs
from farm.training.slots.trainer import SlotTrainer
from farm.training.slots.training_pass import TrainingPass


def test_a_run_planned_for_a_gpu_counts_half_precision(tmp_path: Path) -> None:
    manifest = write_manifest(tmp_path / "m", 1)
    gpu = Hardware("NVIDIA L4", 22 * 2**30, 1, 8)
    plan = prepare_run(request(manifest, tmp_path / "store", hardware=gpu)).plan
    facts = load_base("tiny").memory
    assert plan is not None
    assert facts.weight_bytes == 4 * facts.num_parameters
    work = workload_of([Recipe(**QUICK)], 64)
    bytes_of = partial(
        lane_bytes, shape=work.shape, slots=plan.slots, checkpointing=plan.checkpointing
    )
    beside = beside_bytes(facts.halved(), work.shape)  # samples are generated beside training
    assert plan.lane_bytes == bytes_of(facts.halved()) + beside
    assert bytes_of(facts.halved()) < bytes_of(facts)


def test_photos_that_find_too_little_memory_beside_training_are_no_fault_of_their_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused: list[str] = []

    def small_memory(base: Base, spec: JobSpec) -> PreparedPhotos:
        if len(refused) < 2:
            refused.append(spec.key)
            raise torch.OutOfMemoryError("pretend")
        return prepare_photos(base, spec)

    monkeypatch.setattr("farm.training.lane.prefetch.prepare_photos", small_memory)
    manifest = write_manifest(tmp_path / "m", 2)
    store = Store(tmp_path / "store")
    summary = run_manifest(request(manifest, store.url, slots=8))
    assert (summary.committed, summary.failed) == (2, 0)
    (run_id,) = list_runs(store)
    kinds = Counter(event.kind for event in read_events(store, run_id))
    assert kinds["failed"] == 0
    assert kinds["released"] >= 2


def test_photos_that_do_not_fit_beside_one_slot_fail_their_own_job_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused: list[str] = []

    def small_memory(base: Base, spec: JobSpec) -> PreparedPhotos:
        if spec.subject.id == "s001" and not refused:
            refused.append(spec.key)
            raise torch.OutOfMemoryError("pretend")
        return prepare_photos(base, spec)

    monkeypatch.setattr("farm.training.lane.prefetch.prepare_photos", small_memory)
    manifest = write_manifest(tmp_path / "m", 3, recipe=QUICK | {"steps": 15})
    store = Store(tmp_path / "store")
    summary = run_manifest(request(manifest, store.url, slots=1))
    assert (summary.committed, summary.failed) == (3, 0)
    (run_id,) = list_runs(store)
    failed = [event.job for event in read_events(store, run_id) if event.kind == "failed"]
    assert failed == refused


@pytest.mark.parametrize("where", ["step", "allocate"])
def test_a_lane_that_runs_out_of_memory_goes_on_with_fewer_slots(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    owner, name = {"step": (SlotTrainer, "step"), "allocate": (TrainingPass, "_allocate")}[where]
    original, refused = getattr(owner, name), []

    def small_memory(trainer: SlotTrainer | TrainingPass, *given: object) -> object:
        if trainer.num_slots > 1:
            refused.append(trainer.num_slots)
            raise torch.OutOfMemoryError("pretend")
        return original(trainer, *given)

    monkeypatch.setattr(owner, name, small_memory)
    manifest = write_manifest(tmp_path / "m", 3)
    store = Store(tmp_path / "store")
    summary = run_manifest(request(manifest, store.url, slots=4))
    assert (summary.committed, summary.failed) == (3, 0)
    assert refused
    assert len(adapters(store, tmp_path / "adapters")) == 3
