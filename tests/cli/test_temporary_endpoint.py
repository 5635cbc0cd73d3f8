"""A command's own endpoint: it answers, it stops, and it reports why it cannot start."""

from __future__ import annotations

import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from farm.cli.commands.demo import _serve_line
from farm.cli.temporary_endpoint import EndpointFailed, temporary_endpoint
from farm.serving.http.image_metadata import read_image_metadata

TINY = ("--base", "tiny")


@pytest.mark.slow
def test_it_generates_explains_a_refusal_and_is_gone_afterwards(tmp_path: Path) -> None:
    with temporary_endpoint(str(tmp_path), TINY) as endpoint:
        made = endpoint.generate_all({"tiny": "a photo of a cat"}, seed=3)
        receipt = read_image_metadata(made["tiny"])
        assert receipt is not None
        assert (receipt["prompt"], receipt["seed"]) == ("a photo of a cat", 3)
        with pytest.raises(EndpointFailed, match="generated no image with rex: .*rex"):
            endpoint.generate("rex", "a photo of [V] dog", seed=3)
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(f"{endpoint.url}/health", timeout=10)


def test_one_that_cannot_start_shows_its_own_message(tmp_path: Path) -> None:
    missing = str(tmp_path / "no-base")
    with (
        pytest.raises(EndpointFailed, match=r"exited with code 2: (.|\n)*no-base"),
        temporary_endpoint(str(tmp_path), ("--base", missing)),
    ):
        pytest.fail("it cannot have started")


def test_one_that_takes_too_long_is_stopped(tmp_path: Path) -> None:
    with (
        pytest.raises(EndpointFailed, match="did not listen within 0 s"),
        temporary_endpoint(str(tmp_path), TINY, deadline_s=0),
    ):
        pytest.fail("it cannot have started")


@pytest.mark.parametrize(
    ("called", "base", "line"),
    [
        (".venv/bin/farm", "embedded", ".venv/bin/farm serve --store 'my demo/store'"),
        ("-c", "tiny", "farm serve --store 'my demo/store' --base tiny"),
    ],
)
def test_the_printed_line_works_in_the_callers_shell(
    monkeypatch: pytest.MonkeyPatch, called: str, base: str, line: str
) -> None:
    monkeypatch.setattr(sys, "argv", [called, "demo"])
    assert _serve_line("my demo/store", base) == line
