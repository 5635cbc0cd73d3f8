"""Tests of the bounded tiers: what is in use stays, the rest leaves by last use."""

import os
import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from farm.serving.tiers import DiskTier, MemoryTier, Pinned


def test_the_least_recently_used_leaves_memory_first():
    tier = MemoryTier(20)
    for key in ("a", "b"):
        tier.add(key, key.upper(), 10).release()
    tier.pin("a").release()
    tier.add("c", "C", 10).release()
    assert "b" not in tier
    assert tier.pin("a").value == "A"
    assert tier.num_bytes == 20


def test_what_is_in_use_stays_beyond_the_bound_and_leaves_when_released():
    tier = MemoryTier(10)
    first, second = tier.add("a", 1, 10), tier.add("b", 2, 10)
    assert (len(tier), tier.num_bytes) == (2, 20)
    first.release()
    assert "a" not in tier
    assert "b" in tier
    second.release()
    assert tier.num_bytes == 10


def test_a_second_release_does_nothing():
    tier = MemoryTier(10)
    held, again = tier.add("a", 1, 10), tier.pin("a")
    held.release()
    held.release()
    tier.add("b", 2, 10).release()
    assert "a" in tier  # ``again`` still uses it
    again.release()
    Pinned("free of any tier").release()


def test_a_value_dropped_and_brought_back_is_not_confused_with_the_old_one():
    tier = MemoryTier(10)
    old = tier.add("a", "old", 10)
    tier.drop("a")
    new = tier.add("a", "new", 10)
    old.release()
    tier.add("b", "b", 10).release()
    assert "a" in tier  # the old one's release did not unpin the new one
    assert (old.value, new.value) == ("old", "new")


@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.integers(1, 40)), max_size=40))
def test_memory_never_exceeds_its_bound_once_nothing_is_in_use(items):
    tier = MemoryTier(50)
    for key, num_bytes in items:
        pinned = tier.pin(key) or tier.add(key, key, num_bytes)
        pinned.release()
        assert tier.num_bytes <= 50


def fill(tier, key, num_bytes):
    with tier.bring(key, lambda folder: (folder / "file").write_bytes(b"x" * num_bytes)) as folder:
        assert (folder / "file").stat().st_size == num_bytes


def test_the_least_recently_used_leaves_the_disk_first(tmp_path):
    tier = DiskTier(tmp_path, 20)
    fill(tier, "a", 10)
    fill(tier, "b", 10)
    with tier.use("a") as folder:
        assert (folder / "file").stat().st_size == 10
    fill(tier, "c", 10)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "c"]
    assert tier.num_bytes == 20


def test_a_folder_in_use_is_not_evicted(tmp_path):
    tier = DiskTier(tmp_path, 10)
    fill(tier, "a", 10)
    with tier.use("a") as folder:
        fill(tier, "b", 10)
        assert (folder / "file").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_what_is_larger_than_the_disk_tier_can_still_be_used_once(tmp_path):
    tier = DiskTier(tmp_path, 5)
    fill(tier, "a", 10)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_appears_whole_or_not_at_all(tmp_path):
    tier = DiskTier(tmp_path, 1000)

    def write(folder):
        (folder / "half").write_bytes(b"x")
        assert not (tmp_path / "a").exists()
        raise OSError("the network went away")

    with pytest.raises(OSError, match="went away"), tier.bring("a", write):
        pass
    assert list(tmp_path.iterdir()) == []
    with tier.use("a") as folder:
        assert folder is None


def test_a_new_process_adopts_what_the_old_one_left_and_keeps_the_bound(tmp_path):
    fill(DiskTier(tmp_path, 100), "a", 10)
    fill(DiskTier(tmp_path, 100), "b", 10)
    with DiskTier(tmp_path, 100).use("a") as folder:
        assert folder is not None
    assert len(DiskTier(tmp_path, 10)) == 1


def test_what_a_dead_process_left_half_written_is_swept_away(tmp_path):
    for name, age_s in ((".a.dead", 7200), (".b.alive", 0)):
        (tmp_path / name).mkdir()
        when = time.time() - age_s
        os.utime(tmp_path / name, (when, when))
    DiskTier(tmp_path, 100)
    assert [path.name for path in tmp_path.iterdir()] == [".b.alive"]


def test_two_processes_may_share_the_folder(tmp_path):
    one, other = DiskTier(tmp_path, 100), DiskTier(tmp_path, 100)
    fill(one, "a", 10)
    fill(other, "a", 10)  # the same content, brought twice
    with other.use("a") as folder:
        assert folder is not None
    one.drop("a")
    with other.use("a") as folder:
        assert folder is None
    assert other.num_bytes == 0


def test_memory_survives_many_threads():
    tier = MemoryTier(30)

    def work(seed):
        for turn in range(300):
            key = "abcdef"[(seed * 7 + turn * 3) % 6]
            pinned = tier.pin(key) or tier.add(key, key, 10)
            assert pinned.value == key
            pinned.release()

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert tier.num_bytes == 10 * len(tier) <= 30
