"""Prior sets: generated once, reproducible, complete or absent."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from support.manifests import write_photo

from farm.base.interface import Base
from farm.base.loading import load_base
from farm.errors import BaseModelError, StoreError, StoreUnusable, UserError
from farm.intake.job import PriorSpec
from farm.keys import file_digest
from farm.locks import StoreLock
from farm.storage import Store
from farm.training.priors.builder import PartFailure, PriorBuilder, missing_priors
from farm.training.priors.generate import as_prior_set, generate_part
from farm.training.priors.storage import (
    PartRecord,
    commit_prior_set,
    is_ready,
    parts_of,
    read_prior_set,
    write_part,
)
from farm.training.run.in_process import generate_here


@pytest.fixture(scope="module")
def base() -> Base:
    return load_base("tiny")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def spec_of(base: Base, noun: str = "cat", num_images: int = 5) -> PriorSpec:
    return PriorSpec(
        base_fingerprint=base.fingerprint,
        class_prompt=f"a photo of a {noun}",
        num_images=num_images,
        resolution_px=base.resolution_px,
        steps=2,
    )


def generate(base: Base, store: Store, spec: PriorSpec, attempt: str = "a1") -> list[PartRecord]:
    outcomes = list(generate_here(base, store, [spec], attempt))
    assert not any(isinstance(outcome, PartFailure) for outcome in outcomes)
    return [outcome for outcome in outcomes if isinstance(outcome, PartRecord)]


def test_a_set_is_read_as_it_was_generated(base: Base, store: Store) -> None:
    spec = spec_of(base)
    (part,) = parts_of(spec)
    arrays = generate_part(base, spec, part)
    assert commit_prior_set(store, spec, "a1", generate(base, store, spec))
    found = read_prior_set(store, spec.key)
    np.testing.assert_array_equal(found["moments"], arrays["moments"])
    prior = as_prior_set(found, base)
    expected = base.encode_prompts([spec.class_prompt])
    torch.testing.assert_close(prior.conditioning.hidden_RTD, expected.hidden_RTD)
    assert prior.tokens is not None
    assert len(prior.moments) == 5
    # the moments are those of the stored image
    pixels = torch.from_numpy(arrays["image"]).permute(0, 3, 1, 2).float() / 127.5 - 1
    torch.testing.assert_close(
        base.encode_photos(pixels), torch.from_numpy(arrays["moments"]), atol=1e-5, rtol=1e-4
    )


def test_a_set_generated_again_is_the_same_byte_for_byte(base: Base, store: Store) -> None:
    spec = spec_of(base)
    first, second = generate(base, store, spec, "a1"), generate(base, store, spec, "a2")
    assert [record.sha256 for record in first] == [record.sha256 for record in second]


def test_an_image_depends_on_its_own_number_alone(base: Base) -> None:
    longer, shorter = spec_of(base, num_images=40), spec_of(base, num_images=5)
    first = generate_part(base, longer, parts_of(longer, 5)[0])
    np.testing.assert_array_equal(
        first["image"], generate_part(base, shorter, parts_of(shorter)[0])["image"]
    )
    images = first["image"].reshape(5, -1)
    assert len(np.unique(images, axis=0)) == 5


def test_a_set_without_its_marker_does_not_exist(base: Base, store: Store) -> None:
    spec = spec_of(base)
    records = generate(base, store, spec)
    assert not is_ready(store, spec.key)
    assert missing_priors(store, [spec, spec]) == [spec]
    with pytest.raises(StoreError, match="parts are there"):
        commit_prior_set(store, spec, "a1", records[1:])
    assert not is_ready(store, spec.key)


def test_parts_of_a_killed_attempt_are_never_mixed_in(base: Base, store: Store) -> None:
    spec = spec_of(base, num_images=3)
    (part,) = parts_of(spec)
    wrong = generate_part(base, spec_of(base, "dog", 3), part)
    write_part(store, "killed", part, wrong)
    commit_prior_set(store, spec, "a1", generate(base, store, spec))
    moments = read_prior_set(store, spec.key)["moments"]
    assert len(moments) == 3
    assert not np.array_equal(moments, wrong["moments"])


def test_what_other_attempts_left_is_removed_with_the_commit(base: Base, store: Store) -> None:
    spec = spec_of(base)
    generate(base, store, spec, "killed")
    StoreLock.take(store, f"priors/{spec.key}/claims", ttl_s=60)
    commit_prior_set(store, spec, "a1", generate(base, store, spec, "a1"))
    assert store.list(f"priors/{spec.key}") == ["a1", "claims", "prior.json"]
    generate(base, store, spec, "late")
    assert not commit_prior_set(store, spec, "late", generate(base, store, spec, "late"))
    assert store.list(f"priors/{spec.key}") == ["a1", "claims", "prior.json"]
    assert len(read_prior_set(store, spec.key)["moments"]) == 5


def test_the_first_commit_stays(base: Base, store: Store) -> None:
    spec = spec_of(base)
    records = generate(base, store, spec, "a1")
    assert commit_prior_set(store, spec, "a1", records)
    assert not commit_prior_set(store, spec, "a2", generate(base, store, spec, "a2"))
    assert store.read_json(f"priors/{spec.key}/prior.json")["attempt"] == "a1"


def test_a_damaged_part_is_detected(base: Base, store: Store) -> None:
    spec = spec_of(base)
    commit_prior_set(store, spec, "a1", generate(base, store, spec))
    store.write(f"priors/{spec.key}/a1/part-000000.parquet", b"rotten")
    with pytest.raises(StoreError, match="not the file that was committed"):
        read_prior_set(store, spec.key)


def test_the_users_own_class_images_are_used_instead(
    base: Base, store: Store, tmp_path: Path
) -> None:
    files = sorted(write_photo(tmp_path / f"{n}.png", n) for n in range(3))
    brought = spec_of(base).model_copy(
        update={
            "num_images": 3,
            "image_uris": tuple(map(str, files)),
            "image_digests": tuple(map(file_digest, files)),
        }
    )
    commit_prior_set(store, brought, "a1", generate(base, store, brought))
    assert read_prior_set(store, brought.key)["moments"].shape[0] == 3
    write_photo(files[0], 99)
    with pytest.raises(UserError, match="changed since it was checked"):
        generate_part(base, brought, parts_of(brought)[0])


class Recorder:
    """Generates like ``generate_here`` and records every call and callback."""

    def __init__(self, base: Base, store: Store) -> None:
        self.base, self.store = base, store
        self.generated: list[str] = []
        self.ready: list[str] = []
        self.failed: dict[str, str] = {}
        self.remedies: dict[str, str] = {}

    def generate(
        self, specs: Sequence[PriorSpec], attempt: str
    ) -> Iterator[PartRecord | PartFailure]:
        self.generated += [spec.key for spec in specs]
        yield from generate_here(self.base, self.store, specs, attempt)

    def builder(self, specs: Sequence[PriorSpec]) -> PriorBuilder:
        return PriorBuilder(
            self.store, specs, self.generate, ready=self.ready.append, failed=self.take_failure
        )

    def take_failure(self, key: str, reason: str, remedy: str) -> None:
        self.failed[key], self.remedies[key] = reason, remedy


def test_two_runs_never_generate_the_same_set_twice(
    base: Base, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("farm.training.priors.builder.WAIT_S", 0.05)
    specs = [spec_of(base, noun, 3) for noun in ("cat", "dog", "bird")]
    runs = [Recorder(base, store), Recorder(base, store)]
    orders = [specs, specs[::-1]]
    threads = [
        threading.Thread(target=run.builder(order).run)
        for run, order in zip(runs, orders, strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(runs[0].generated + runs[1].generated) == sorted(spec.key for spec in specs)
    for run in runs:
        assert sorted(run.ready) == sorted(spec.key for spec in specs)
        assert not run.failed


def test_a_set_whose_builder_died_is_generated_by_the_next(base: Base, store: Store) -> None:
    spec = spec_of(base, num_images=3)
    dead = StoreLock.take(store, f"priors/{spec.key}/claims", ttl_s=0.0)
    assert dead is not None
    seen = Recorder(base, store)
    seen.builder([spec]).run()
    assert seen.ready == [spec.key]


def test_one_bad_set_fails_alone(base: Base, store: Store, tmp_path: Path) -> None:
    bad = spec_of(base).model_copy(
        update={"num_images": 1, "image_uris": ("/nowhere.png",), "image_digests": ("0" * 64,)}
    )
    good = spec_of(base, "dog", 3)
    seen = Recorder(base, store)
    seen.builder([bad, good]).run()
    assert seen.ready == [good.key]
    assert "there is no such file" in seen.failed[bad.key]
    assert seen.remedies[bad.key]


def test_a_generator_that_breaks_fails_the_sets_that_are_left(base: Base, store: Store) -> None:
    def broken(specs: Sequence[PriorSpec], attempt: str) -> Iterator[PartRecord | PartFailure]:
        raise BaseModelError("the base is gone", "fetch it again")

    seen = Recorder(base, store)
    spec = spec_of(base)
    PriorBuilder(store, [spec], broken, ready=seen.ready.append, failed=seen.take_failure).run()
    assert "the base is gone" in seen.failed[spec.key]
    assert seen.remedies[spec.key] == "fetch it again"
    assert StoreLock.take(store, f"priors/{spec.key}/claims", ttl_s=1) is not None


def test_a_store_that_fails_costs_no_set(
    base: Base, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("farm.training.priors.builder.STORE_PAUSE_S", 0.01)
    spec = spec_of(base, num_images=3)
    faults: list[Exception | PartFailure] = [
        StoreError("no answer", "wait"),
        StoreUnusable("the store is full", "free space"),
        PartFailure.of_error(spec.key, StoreError("no answer", "wait")),
        PartFailure.of_error(spec.key, StoreUnusable("the store is full", "free space")),
    ]
    recorder = Recorder(base, store)
    seen: list[bool] = []

    def draw(specs: Sequence[PriorSpec], attempt: str) -> Iterator[PartRecord | PartFailure]:
        trouble = work.trouble.current()
        seen.append(trouble is not None and trouble.is_permanent)
        if not faults:
            yield from recorder.generate(specs, attempt)
            return
        fault = faults.pop(0)
        if isinstance(fault, Exception):
            raise fault
        yield fault

    work = PriorBuilder(
        store, [spec], draw, ready=recorder.ready.append, failed=recorder.take_failure
    )
    work.run()
    assert recorder.ready == [spec.key]
    assert recorder.failed == {}
    assert seen == [False, False, True, False, True]
    assert work.trouble.current() is None
