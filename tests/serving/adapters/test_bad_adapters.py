"""Tests of the cache: adapters that cannot be used are refused with their name."""

import pytest
from support.adapters import ATTENTION, publish, published, random_weights
from support.serving.cached import WEIGHTS, Counted, bring, tamper

from farm.adapters.bank.bank import Bank
from farm.adapters.registry import Registry
from farm.base.loading import load_base
from farm.errors import AdapterFileError, AdapterNotFound, StoreError
from farm.serving.adapters.revocations import Revocations
from farm.serving.config import CacheLimits
from farm.serving.request import AdapterRef
from farm.storage import Store


def poison(tensors):
    next(iter(tensors.values()))[0, 0] = float("nan")


def drop_half(tensors):
    del tensors[next(iter(tensors))]


def reshape(tensors):
    name = next(iter(tensors))
    tensors[name] = tensors[name][:, :-1].contiguous()


@pytest.mark.parametrize(
    ("change", "reason"),
    [(poison, "finite"), (drop_half, "half"), (reshape, "shape 16 x 15")],
)
def test_a_bad_adapter_is_refused_with_its_name_and_without_a_path(
    tmp_path, base, make_cache, change, reason
):
    registry, (ref,) = published(tmp_path, base, 1)
    tamper(registry, ref, change)
    cache = make_cache(registry, prepare=_bank_check(base))
    with pytest.raises(AdapterFileError, match=reason) as refusal:
        bring(cache, ref)
    assert ref.name in refusal.value.message
    assert "cannot be used" in refusal.value.message
    assert str(tmp_path) not in str(refusal.value)


def _bank_check(base):
    def check(weights):
        bank = Bank(base, num_slots=1, max_rank=4, target_modules=ATTENTION)
        try:
            bank.check_fits(weights)
        finally:
            bank.close()
        return weights

    return check


def test_a_file_that_is_not_the_recorded_one_is_refused(tmp_path, base, make_cache):
    registry, (ref,) = published(tmp_path, base, 1)
    registry.store.write(f"adapters/{ref.key}/{WEIGHTS}", b"something else")
    with pytest.raises(AdapterFileError, match="not the file that was committed"):
        bring(make_cache(registry), ref)


def test_an_adapter_of_another_base_is_refused(tmp_path, base, make_cache):
    registry = Registry(Store(tmp_path / "store"))
    weights = random_weights(base, 0)
    ref = publish(registry, base, weights, tmp_path / "local", "cat", fingerprint="0" * 64)
    with pytest.raises(AdapterFileError, match="another base"):
        bring(make_cache(registry), ref)


def test_an_adapter_of_another_family_is_refused_by_name_before_its_file_is_read(
    tmp_path, base, make_cache
):
    registry, other = Registry(Store(tmp_path / "store")), load_base("tiny-sdxl")
    ref = publish(registry, other, random_weights(other, 0), tmp_path / "local", "cat")
    registry.store.write(f"adapters/{ref.key}/{WEIGHTS}", b"never read")
    with pytest.raises(
        AdapterFileError,
        match=r"tiny-sdxl \(Stable Diffusion XL\); the base here is "
        r"Stable Diffusion 1\.x",
    ):
        bring(make_cache(registry), ref)


def test_a_file_too_large_for_an_adapter_is_refused(tmp_path, base, make_cache):
    registry, (ref,) = published(tmp_path, base, 1)
    with pytest.raises(AdapterFileError, match="over 100 bytes"):
        bring(make_cache(registry, limits=CacheLimits(max_file_bytes=100)), ref)


def test_a_bad_adapter_is_remembered_for_a_while_and_then_tried_again(tmp_path, base, make_cache):
    registry, (ref,) = published(tmp_path, base, 1)
    good = registry.store.read(f"adapters/{ref.key}/{WEIGHTS}")
    registry.store.write(f"adapters/{ref.key}/{WEIGHTS}", b"broken")
    source, now = Counted(registry), [0.0]
    revocations = Revocations(registry.revoked_keys, max_age_s=1e9, clock=lambda: now[0])
    cache = make_cache(source, clock=lambda: now[0], revocations=revocations)
    for _ in range(3):
        with pytest.raises(AdapterFileError):
            bring(cache, ref)
    assert (cache.stats.failed, cache.stats.refused) == (1, 2)
    registry.store.write(f"adapters/{ref.key}/{WEIGHTS}", good)
    now[0] = 301.0
    assert bring(cache, ref).value.key == ref.key


def test_a_copy_that_rotted_on_the_disk_is_fetched_again(tmp_path, base, make_cache):
    registry, (ref,) = published(tmp_path, base, 1)
    bring(make_cache(registry), ref)
    (tmp_path / "disk" / ref.key / WEIGHTS).write_bytes(b"rotten")
    assert bring(make_cache(registry), ref).value.tier == "store"


def test_an_unknown_adapter_is_not_found_and_servable_once_it_is_committed(
    tmp_path, base, make_cache
):
    registry, _ = published(tmp_path, base, 0)
    cache = make_cache(registry)
    elsewhere, (ref,) = published(tmp_path / "other", base, 1)
    with pytest.raises(AdapterNotFound):
        bring(cache, ref)
    record = elsewhere.fetch(ref.key, tmp_path / "copy")
    registry.publish(record, tmp_path / "copy")
    assert bring(cache, ref).value.key == ref.key


@pytest.mark.parametrize("key", ["../../etc", "", "a/b", "x" * 200, "a\0b", ".hidden"])
def test_a_key_that_could_leave_the_folder_is_not_found(tmp_path, base, make_cache, key):
    registry, _ = published(tmp_path, base, 0)
    with pytest.raises(AdapterNotFound):
        bring(make_cache(registry), AdapterRef(key))


def test_a_store_that_does_not_answer_is_told_apart_and_not_remembered(tmp_path, base, make_cache):
    registry, (ref,) = published(tmp_path, base, 1)
    source = Counted(registry)
    cache = make_cache(source)
    source.fault = StoreError("the store did not answer")
    with pytest.raises(StoreError):
        bring(cache, ref)
    source.fault = RuntimeError("a bug")
    with pytest.raises(StoreError, match="could not be loaded"):
        bring(cache, ref)
    source.fault = None
    assert bring(cache, ref).value.key == ref.key
