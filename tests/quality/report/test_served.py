"""Pictures that an endpoint generated, kept beside a run for its report."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from farm.quality.report.served import keep_served, kept_names, read_served
from farm.serving.http.image_metadata import encode_picture
from farm.storage import Store


def picture(prompt: str) -> bytes:
    return encode_picture(np.zeros((64, 64, 3), np.uint8), {"prompt": prompt})


def test_each_picture_is_shown_with_its_adapter_and_prompt(tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert read_served(store, "r", 64) == []
    keep_served(store, "r", {"rex": picture("a dog"), "tom.2": picture("a cat")})
    shown = read_served(store, "r", 64)
    assert [one.text for one in shown] == ["rex: a dog", "tom.2: a cat"]
    assert kept_names(store, "r") == {"rex", "tom.2"}
    assert all(one.uri.startswith("data:image/webp;base64,") for one in shown)


def test_pictures_of_an_earlier_time_are_replaced(tmp_path: Path) -> None:
    store = Store(tmp_path)
    keep_served(store, "r", {"rex": picture("a dog"), "tom": picture("a cat")})
    keep_served(store, "r", {"tom": picture("a cat in space")})
    assert [one.text for one in read_served(store, "r", 64)] == ["tom: a cat in space"]
