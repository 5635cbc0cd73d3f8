"""One way of showing durations, in the terminal and on the report."""

from __future__ import annotations

import pytest

from farm.text.durations import duration


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        *((0, "0s"), (3.21, "3.2s"), (9.96, "10s"), (45, "45s"), (59.6, "1m 00s")),
        *((61, "1m 01s"), (600, "10m 00s"), (3_661, "1h 01m"), (9_000, "2h 30m")),
    ],
)
def test_durations_read_at_a_glance(seconds: float, text: str) -> None:
    assert duration(seconds) == text
