from __future__ import annotations

from dataclasses import replace

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from farm.errors import Fault
from farm.intake.compare import NEAR_BITS, PhotoComparer, look_alikes
from farm.intake.photos.inspect import PhotoFacts, PhotoRefusal
from farm.intake.resolve import ResolvedSubject


def facts(digest: str, look: int = 0, size: tuple[int, int] = (512, 512)) -> PhotoFacts:
    return PhotoFacts(digest, *size, 1000, look)


def resolved(*uris: str, noun: str = "cat", name: str = "tom") -> ResolvedSubject:
    paths = tuple(f"/base/{uri}" for uri in uris)
    return ResolvedSubject(None, name, noun, paths, (), "m.yaml", 4, "subjects[0].photos", "/base")


def judged(resolution_px: int | None = None, **photos: PhotoFacts | PhotoRefusal) -> list[Fault]:
    verdicts = {f"/base/{name}": verdict for name, verdict in photos.items()}
    return PhotoComparer(verdicts, resolution_px).faults(resolved(*photos))


FAR = 0x0F0F0F0F0F0F0F0F


def test_good_photos_have_no_faults():
    assert judged(512, a=facts("1"), b=facts("2", FAR)) == []


def test_a_refused_photo_is_an_error_at_its_subject():
    (fault,) = judged(a=facts("1"), b=PhotoRefusal("it is truncated", "copy it again"))
    assert (fault.file, fault.line, fault.field) == ("m.yaml", 4, "subjects[0].photos")
    assert (fault.subject, fault.severity) == ("tom", "error")
    assert fault.message == "b: it is truncated"


def test_a_copy_is_told_as_a_copy_and_not_as_a_look_alike():
    (fault,) = judged(a=facts("1"), b=facts("1"))
    assert fault.message == "b is the same file as a"
    assert fault.severity == "warning"


def test_near_duplicates_are_warned_of():
    (fault,) = judged(a=facts("1", FAR), b=facts("2", FAR ^ 0b1011))
    assert fault.message == "b looks like a"
    assert fault.severity == "warning"


@given(st.lists(st.integers(0, 2**64 - 1), max_size=12), st.lists(st.integers(0, 63), max_size=6))
def test_look_alikes_are_those_that_differ_in_few_bits(looks: list[int], flips: list[int]):
    if looks:
        near = looks[0]
        for bit in flips:
            near ^= 1 << bit
        looks = [*looks, near]
    expected = []
    for late, look in enumerate(looks):
        early = [one for one in range(late) if (looks[one] ^ look).bit_count() <= NEAR_BITS]
        expected += [(late, early[0])] if early else []
    assert list(look_alikes(looks)) == expected


def test_look_alikes_are_found_across_blocks():
    random = np.random.default_rng(0)
    looks = [int(one) for one in random.integers(0, 2**63, 1500)]
    looks[1400] = looks[3] ^ 1
    assert list(look_alikes(looks)) == [(1400, 3)]


def test_photos_smaller_than_the_crop_are_counted_once():
    small = {"a": facts("1", 0, (400, 900)), "b": facts("2", FAR, (300, 300))}
    (fault,) = judged(512, **small, c=facts("3", ~FAR & (2**64 - 1)))
    assert fault.severity == "warning"
    assert "2 of 3 photos" in fault.message
    assert "b, from 300 px" in fault.message


def test_a_photo_too_small_for_the_crop_is_an_error():
    (fault,) = judged(512, a=facts("1", 0, (127, 300)))
    assert fault.severity == "error"
    assert "127 px is too small for 512 px" in fault.message
    assert judged(None, a=facts("1", 0, (127, 300))) == []


def test_a_panorama_is_warned_of():
    (fault,) = judged(a=facts("1", 0, (4000, 1000)))
    assert "a square crop sees little of it" in fault.message


def test_a_photo_of_two_classes_is_warned_of():
    judge = PhotoComparer({"/base/a": facts("1"), "/base/b": facts("1")}, None)
    assert judge.faults(resolved("a")) == []
    assert judge.faults(resolved("b", name="felix")) == []
    (fault,) = judge.faults(resolved("b", name="rex", noun="dog"))
    assert "also a photo of `tom`, which is a cat" in fault.message


def test_photos_shared_by_two_subjects_are_one_warning_for_the_pair():
    shots = {f"/base/{number}": facts(str(number)) for number in range(9)}
    judge = PhotoComparer(shots, None)
    tom = ResolvedSubject(None, "tom", "cat", tuple(shots)[:8], (), "m", 1, "photos", "/base")
    kit = replace(tom, id="kit", class_noun="robot", uris=tuple(shots)[8:])
    rex = replace(tom, id="rex", class_noun="dog", uris=tuple(shots))
    judge.faults(tom)
    judge.faults(kit)
    found = [one.message for one in judge.faults(rex) if "also" in one.message]
    assert found == [
        "8 photos are also photos of `tom`, which is a cat: 0, 1, 2, …",
        "8 is also a photo of `kit`, which is a robot",
    ]


def test_members_of_archives_are_named_by_archive_and_member():
    uri = "zip://cat/0.png::/base/a.zip"
    one = ResolvedSubject(None, "tom", "cat", (uri,), (), "m", 1, "photos", "/base")
    (fault,) = PhotoComparer({uri: PhotoRefusal("it is damaged", "r")}, None).faults(one)
    assert fault.message == "a.zip:cat/0.png: it is damaged"
