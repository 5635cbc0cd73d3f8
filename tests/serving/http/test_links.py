"""Links to pictures: access and expiry."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from farm.serving.http.links import ImageLinks
from farm.storage import Store


class Clock:
    def __init__(self) -> None:
        self.now_s = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now_s


def parts(link: str) -> tuple[str, str, str]:
    split = urlsplit(link)
    query = parse_qs(split.query)
    return split.path.rsplit("/", 1)[-1], query["expires"][0], query["signature"][0]


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def shelf(tmp_path: Path, clock: Clock) -> ImageLinks:
    return ImageLinks(Store(tmp_path), b"secret", lifetime_s=120, clock=clock)


def test_a_link_opens_its_picture_until_its_time(shelf: ImageLinks, clock: Clock) -> None:
    file, expires, signature = parts(shelf.put(b"pixels", "png"))
    assert shelf.get(file, expires, signature) == b"pixels"
    clock.now_s += 121
    assert shelf.get(file, expires, signature) is None


def test_another_process_with_the_same_secret_answers_too(
    shelf: ImageLinks, tmp_path: Path, clock: Clock
) -> None:
    link = parts(shelf.put(b"pixels", "jpeg"))
    twin = ImageLinks(Store(tmp_path), b"secret", clock=clock)
    stranger = ImageLinks(Store(tmp_path), b"another", clock=clock)
    assert twin.get(*link) == b"pixels"
    assert stranger.get(*link) is None


def test_a_bent_link_opens_nothing(shelf: ImageLinks) -> None:
    file, expires, signature = parts(shelf.put(b"pixels", "png"))
    later = str(int(expires) + 60)
    for bent in (
        (file, later, signature),
        (file.replace(".png", ".jpeg"), expires, signature),
        ("0" * 32 + ".png", expires, signature),
        (file, expires, signature[:-1]),
        (file, expires, ""),
        (file, "", signature),
        (f"../{file}", expires, signature),
        (file, expires, "ä\udcff"),
    ):
        assert shelf.get(*bent) is None


@given(st.text(max_size=50), st.text(max_size=20), st.text(max_size=80))
def test_no_text_is_a_good_link(file: str, expires: str, signature: str) -> None:
    shelf = ImageLinks(Store("memory://links"), b"secret")
    assert shelf.get(file, expires, signature) is None


def test_sweeping_removes_what_no_link_opens(
    shelf: ImageLinks, tmp_path: Path, clock: Clock
) -> None:
    shelf.put(b"old", "png")
    clock.now_s += 100
    fresh = parts(shelf.put(b"new", "png"))
    clock.now_s += 81
    assert shelf.sweep() == 1
    assert shelf.get(*fresh) == b"new"
    assert sum(path.is_file() for path in tmp_path.rglob("*")) == 1
