"""Tests of the cache: adapters are verified, loaded once and in parallel, within bounds."""

import threading
import time

import pytest
from support.adapters import publish, published, random_weights
from support.serving.cached import WEIGHTS, Counted, bring

from farm.adapters.registry import Registry
from farm.errors import AdapterNotFound, StoreError
from farm.serving.adapters.revocations import Revocations
from farm.serving.config import CacheLimits
from farm.storage import Store

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
