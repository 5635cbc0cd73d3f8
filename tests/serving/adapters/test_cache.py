"""Tests of the cache: adapters are verified, loaded once and in parallel, within bounds."""

import json
import threading
import time

import pytest
from safetensors.torch import load_file, save_file
from support.adapters import ATTENTION, publish, published, random_weights

from farm.adapters.bank.bank import Bank
from farm.adapters.files.folder import load_adapter
from farm.adapters.files.layer_names import layer_names
from farm.adapters.registry import Registry
from farm.base.loading import load_base
from farm.errors import AdapterFileError, AdapterNotFound, StoreError
from farm.keys import file_digest
from farm.serving.adapters.cache import AdapterCache
from farm.serving.adapters.revocations import Revocations
from farm.serving.config import CacheLimits
from farm.serving.request import AdapterRef
from farm.storage import Store

WEIGHTS = "pytorch_lora_weights.safetensors"


@pytest.fixture(scope="module")
def base():
    return load_base("tiny")


@pytest.fixture
def make_cache(tmp_path, base):
    opened = []

    def make(source, folder="disk", **options):
        cache = AdapterCache(
            source,
            lambda path: load_adapter(path, layer_names(base)),
            folder=tmp_path / folder,
            base_fingerprint=base.fingerprint,
            **options,
        )
        cache.revocations.refresh()
        opened.append(cache)
        return cache

    yield make
    for cache in opened:
        cache.close()


def bring(cache, ref):
    return cache.acquire(ref).result(20)


def tamper(registry, ref, change):
    """Change a committed adapter's weights file and commit the change, as a bad writer would."""
    folder = f"{registry.store.url}/adapters/{ref.key}"
    tensors = load_file(f"{folder}/{WEIGHTS}")
    change(tensors)
    save_file(tensors, f"{folder}/{WEIGHTS}")
    record = json.loads(registry.store.read(f"adapters/{ref.key}/adapter.json"))
    record["files"][WEIGHTS] = file_digest(f"{folder}/{WEIGHTS}")
    registry.store.write_json(f"adapters/{ref.key}/adapter.json", record)


class Counted:
    """A registry that counts and can be slowed down or broken."""

    def __init__(self, registry):
        self.registry = registry
        self.fetched = []
        self.now = 0
        self.most = 0
        self.gate = threading.Event()
        self.gate.set()
        self.fault = None

    def fetch(self, job_key, local_folder, *, names=None):
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            assert self.gate.wait(20)
            if self.fault is not None:
                raise self.fault
            self.fetched.append(job_key)
            return self.registry.fetch(job_key, local_folder, names=names)
        finally:
            self.now -= 1

    def record(self, job_key):
        return self.registry.record(job_key)

    def is_committed(self, job_key):
        return self.registry.is_committed(job_key)

    def revoked_keys(self):
        return self.registry.revoked_keys()


# -- tiers ------------------------------------------------------------------------------------


def test_an_adapter_comes_from_the_store_then_the_disk_then_memory(tmp_path, base, make_cache):
    registry, (ref,) = published(tmp_path, base, 1)
    first = make_cache(registry)
    assert bring(first, ref).value.tier == "store"
    bring(first, ref)
    assert (first.stats.store_loads, first.stats.host_hits) == (1, 1)
    assert bring(make_cache(registry), ref).value.tier == "disk"


def test_the_weights_are_those_that_were_committed(tmp_path, base, make_cache):
    registry = Registry(Store(tmp_path / "store"))
    weights = random_weights(base, 3, alpha=2.0)
    ref = publish(registry, base, weights, tmp_path / "local", "cat")
    held = bring(make_cache(registry), ref).value
    assert held.sha256 == ref.sha256
    assert held.weights.alphas == pytest.approx(weights.alphas)
    for name, layer in weights.layers.items():
        assert held.weights.layers[name].down.equal(layer.down)
        assert held.weights.layers[name].up.equal(layer.up)


@pytest.mark.parametrize("form", ["diffusers", "peft", "kohya"])
def test_whichever_form_was_committed_is_served(tmp_path, base, make_cache, form):
    registry = Registry(Store(tmp_path / "store"))
    weights = random_weights(base, 3, alpha=2.0, text=True)
    ref = publish(registry, base, weights, tmp_path / "local", "cat", forms=[form])
    held = bring(make_cache(registry), ref).value.weights
    assert held.alphas == pytest.approx(weights.alphas)
    assert set(held.layers) == set(weights.layers)


def test_only_the_files_that_are_served_travel(tmp_path, base, make_cache):
    registry = Registry(Store(tmp_path / "store"))
    weights, forms = random_weights(base, 0), ("diffusers", "peft", "kohya")
    ref = publish(registry, base, weights, tmp_path / "local", "cat", forms=forms)
    bring(make_cache(registry), ref)
    found = {path.name for path in (tmp_path / "disk" / ref.key).rglob("*") if path.is_file()}
    assert found == {WEIGHTS, "adapter.json"}


def test_both_tiers_keep_their_bounds(tmp_path, base, make_cache):
    registry, refs = published(tmp_path, base, 5)
    probe = make_cache(registry, "probe")
    one = bring(probe, refs[0]).value.num_bytes
    on_disk = probe.stats.disk_bytes
    limits = CacheLimits(host_bytes=2 * one, disk_bytes=int(3.5 * on_disk))
    cache = make_cache(registry, limits=limits)
    for ref in refs:
        bring(cache, ref).release()
    assert cache.stats.host_bytes == 2 * one
    assert len(list((tmp_path / "disk").iterdir())) == 3
    assert bring(cache, refs[0]).value.tier == "store"  # the oldest had left both


def test_an_adapter_in_use_outlives_the_bound(tmp_path, base, make_cache):
    registry, refs = published(tmp_path, base, 3)
    cache = make_cache(registry, limits=CacheLimits(host_bytes=1))
    held = bring(cache, refs[0])
    bring(cache, refs[1]).release()
    assert cache.is_hosted(refs[0].key)
    assert not cache.is_hosted(refs[1].key)
    held.release()
    assert not cache.is_hosted(refs[0].key)


# -- flights ----------------------------------------------------------------------------------


def test_many_requests_for_one_adapter_cause_one_load(tmp_path, base, make_cache):
    registry, (ref,) = published(tmp_path, base, 1)
    source = Counted(registry)
    source.gate.clear()
    cache = make_cache(source)
    futures = [cache.acquire(ref) for _ in range(20)]
    source.gate.set()
    held = [future.result(20) for future in futures]
    assert source.fetched == [ref.key]
    assert cache.stats.joined_loads == 19
    assert len({id(pinned.value) for pinned in held}) == 1


def test_loads_of_different_adapters_run_side_by_side(tmp_path, base, make_cache):
    registry, refs = published(tmp_path, base, 4)
    source = Counted(registry)
    source.gate.clear()
    cache = make_cache(source)
    futures = [cache.acquire(ref) for ref in refs]
    deadline_s = time.monotonic() + 20
    while source.now < 4 and time.monotonic() < deadline_s:
        time.sleep(0.005)
    source.gate.set()
    for future in futures:
        future.result(20)
    assert source.most == 4


def test_asking_never_waits_for_a_load(tmp_path, base, make_cache):
    registry, refs = published(tmp_path, base, 2)
    source = Counted(registry)
    cache = make_cache(source, limits=CacheLimits(num_loaders=1))
    bring(cache, refs[1])
    source.gate.clear()
    slow = cache.acquire(refs[0])
    assert bring(cache, refs[1]).value.key == refs[1].key  # while the only loader is busy
    assert not slow.done()
    source.gate.set()
    slow.result(20)


def test_who_gives_up_waiting_does_not_end_the_load_for_others(tmp_path, base, make_cache):
    registry, (ref,) = published(tmp_path, base, 1)
    source = Counted(registry)
    source.gate.clear()
    cache = make_cache(source)
    quitter, other = cache.acquire(ref), cache.acquire(ref)
    assert quitter.cancel()
    source.gate.set()
    assert other.result(20).value.key == ref.key


# -- bad adapters -----------------------------------------------------------------------------


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


# -- revocation -------------------------------------------------------------------------------


def test_a_revoked_adapter_leaves_every_tier_and_is_refused(tmp_path, base, make_cache):
    registry, (ref, other) = published(tmp_path, base, 2)
    cache = make_cache(registry)
    bring(cache, ref).release()
    bring(cache, other).release()
    registry.revoke("default", ref.name, reason="withdrawn")
    cache.revocations.refresh()
    assert not cache.is_hosted(ref.key)
    assert not (tmp_path / "disk" / ref.key).exists()
    with pytest.raises(AdapterNotFound):
        bring(cache, ref)
    assert bring(cache, other).value.key == other.key


def test_an_adapter_revoked_while_it_loads_is_refused(tmp_path, base, make_cache):
    registry, (ref,) = published(tmp_path, base, 1)
    source = Counted(registry)
    source.gate.clear()
    cache = make_cache(source)
    future = cache.acquire(ref)
    registry.revoke(job_key=ref.key)
    cache.revocations.refresh()
    source.gate.set()
    with pytest.raises(AdapterNotFound):
        future.result(20)
    assert not cache.is_hosted(ref.key)


def test_the_watch_sees_a_revocation_by_itself(tmp_path, base, make_cache):
    registry, (ref,) = published(tmp_path, base, 1)
    seen = threading.Event()
    revocations = Revocations(registry.revoked_keys, interval_s=0.01)
    cache = make_cache(registry, revocations=revocations)
    revocations.listen(lambda keys: seen.set() if ref.key in keys else None)
    cache.start()
    registry.revoke(job_key=ref.key)
    assert seen.wait(20)
    with pytest.raises(AdapterNotFound):
        cache.check(ref)


def test_while_the_store_is_silent_adapters_are_served_for_a_while_and_then_refused():
    now, is_up = [0.0], [True]

    def read():
        if not is_up[0]:
            raise StoreError("silent")
        return {"gone"}

    revocations = Revocations(read, max_age_s=30, clock=lambda: now[0])
    assert revocations.refresh()
    is_up[0] = False
    now[0] = 29.0
    assert not revocations.refresh()
    revocations.check("good", "good")
    with pytest.raises(AdapterNotFound):
        revocations.check("gone", "gone")
    now[0] = 31.0
    with pytest.raises(StoreError, match="revoked adapters are not known"):
        revocations.check("good", "good")
    is_up[0] = True
    revocations.refresh()
    revocations.check("good", "good")
