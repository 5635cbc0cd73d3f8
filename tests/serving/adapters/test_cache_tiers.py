"""Tests of the bounded tiers: entries in use stay, the least recently used others are evicted."""

import os
import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from farm.errors import UserError
from farm.serving.adapters.cache_tiers import DiskTier, MemoryTier, Pinned

A, B, C = (letter * 32 for letter in "abc")
"""Job keys."""


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
    fill(tier, A, 10)
    fill(tier, B, 10)
    with tier.use(A) as folder:
        assert (folder / "file").stat().st_size == 10
    fill(tier, C, 10)
    assert sorted(path.name for path in tmp_path.iterdir()) == [A, C]
    assert tier.num_bytes == 20


def test_a_folder_in_use_is_not_evicted(tmp_path):
    tier = DiskTier(tmp_path, 10)
    fill(tier, A, 10)
    with tier.use(A) as folder:
        fill(tier, B, 10)
        assert (folder / "file").exists()
    assert [path.name for path in tmp_path.iterdir()] == [A]


def test_what_is_larger_than_the_disk_tier_can_still_be_used_once(tmp_path):
    tier = DiskTier(tmp_path, 5)
    fill(tier, A, 10)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_appears_whole_or_not_at_all(tmp_path):
    tier = DiskTier(tmp_path, 1000)

    def write(folder):
        (folder / "half").write_bytes(b"x")
        assert not (tmp_path / A).exists()
        raise OSError("the network went away")

    with pytest.raises(OSError, match="went away"), tier.bring(A, write):
        pass
    assert list(tmp_path.iterdir()) == []
    with tier.use(A) as folder:
        assert folder is None


def test_a_new_process_adopts_what_the_old_one_left_and_keeps_the_bound(tmp_path):
    fill(DiskTier(tmp_path, 100), A, 10)
    fill(DiskTier(tmp_path, 100), B, 10)
    with DiskTier(tmp_path, 100).use(A) as folder:
        assert folder is not None
    assert len(DiskTier(tmp_path, 10)) == 1


def test_what_a_dead_process_left_half_written_is_swept_away(tmp_path):
    for name, age_s in ((f".{A}.{B}", 7200), (f".{A}.{C}", 0), (".ssh", 7200)):
        (tmp_path / name).mkdir()
        when = time.time() - age_s
        os.utime(tmp_path / name, (when, when))
    DiskTier(tmp_path, 100)
    assert {path.name for path in tmp_path.iterdir()} == {f".{A}.{C}", ".ssh"}


def test_a_link_in_the_place_of_the_folder_is_refused_and_nothing_behind_it_is_touched(tmp_path):
    (tmp_path / "home" / ".ssh").mkdir(parents=True)
    os.utime(tmp_path / "home" / ".ssh", (0, 0))
    (tmp_path / "cache").symlink_to(tmp_path / "home")
    with pytest.raises(UserError, match="is a link"):
        DiskTier(tmp_path / "cache", 0)
    assert (tmp_path / "home" / ".ssh").exists()


def test_only_names_of_its_own_form_are_read_counted_or_removed(tmp_path):
    for name in (".ssh", "letters", f".{A}", f"{A}.old", "A" * 32):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_bytes(b"x" * 100)
        os.utime(tmp_path / name, (0, 0))
    (tmp_path / B).symlink_to(tmp_path / "letters")
    tier = DiskTier(tmp_path, 0)
    assert (len(tier), tier.num_bytes) == (0, 0)
    with tier.use(B) as folder:
        assert folder is None
    assert len(list(tmp_path.iterdir())) == 6
    assert (tmp_path / "letters" / "file").exists()


def test_the_folder_is_this_users_alone(tmp_path):
    DiskTier(tmp_path / "made" / "disk", 100)
    assert (tmp_path / "made" / "disk").stat().st_mode & 0o777 == 0o700
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    DiskTier(tmp_path / "open", 100)
    assert (tmp_path / "open").stat().st_mode & 0o777 == 0o700
    (tmp_path / "used").mkdir()
    (tmp_path / "used").chmod(0o755)
    (tmp_path / "used" / "letters").write_text("mine")
    with pytest.raises(UserError, match="holds other files"):
        DiskTier(tmp_path / "used", 100)
    assert (tmp_path / "used").stat().st_mode & 0o777 == 0o755


def test_another_users_folder_is_refused(tmp_path, monkeypatch):
    (tmp_path / "theirs").mkdir()
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    with pytest.raises(UserError, match="another user"):
        DiskTier(tmp_path / "theirs", 100)


def test_a_folder_above_that_is_swapped_while_it_runs_changes_nothing(tmp_path):
    tier = DiskTier(tmp_path / "one" / "disk", 100)
    fill(tier, A, 10)
    (tmp_path / "one").rename(tmp_path / "moved")
    (tmp_path / "one" / "disk" / A).mkdir(parents=True)
    (tmp_path / "one" / "disk" / A / "file").write_bytes(b"poison")
    with tier.use(A) as folder:
        assert (folder / "file").read_bytes() == b"x" * 10
    tier.drop(A)
    assert (tmp_path / "one" / "disk" / A / "file").exists()


def test_two_processes_may_share_the_folder(tmp_path):
    one, other = DiskTier(tmp_path, 100), DiskTier(tmp_path, 100)
    fill(one, A, 10)
    fill(other, A, 10)  # the same content, brought twice
    with other.use(A) as folder:
        assert folder is not None
    one.drop(A)
    with other.use(A) as folder:
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
