"""The page is one self-contained file, and no user text becomes markup."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from support.quality.finished_run import make_run

from farm.base.names import EMBEDDED_VERDICTS
from farm.quality.report.page import render, write_report
from farm.quality.report.thumbs import budget_for
from farm.quality.report.view import RunView, SubjectView

HOSTILE = '"><script>alert(1)</script><img src=x onerror=alert(2)>'


class Tags(HTMLParser):
    """Start tags in order, and the tags left open."""

    VOID = frozenset({"meta", "img", "input", "link", "br", "rect", "circle", "line", "path"})

    def __init__(self) -> None:
        super().__init__()
        self.starts: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.starts.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag in self.VOID:
            return
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag


def parse(page: str) -> Tags:
    tags = Tags()
    tags.feed(page)
    return tags


@pytest.fixture(scope="module")
def page() -> str:
    return render(make_run(12))


def test_the_page_is_well_formed(page: str) -> None:
    assert parse(page).open == []


def test_the_page_asks_the_network_for_nothing(page: str) -> None:
    for tag, attributes in parse(page).starts:
        assert tag not in {"link", "iframe", "object"}
        source = attributes.get("src")
        assert source is None or source.startswith("data:image/")
        href = attributes.get("href")
        assert href is None or href.startswith("#")
    policies = [attributes.get("content") for _, attributes in parse(page).starts
                if attributes.get("http-equiv") == "Content-Security-Policy"]  # fmt: skip
    assert policies[0] is not None
    assert policies[0].startswith("default-src 'none'; img-src data:;")
    assert not re.search(r"https?://", page)


def test_every_picture_is_described(page: str) -> None:
    images = [attributes for tag, attributes in parse(page).starts if tag == "img"]
    assert images
    assert all("alt" in attributes for attributes in images)


@pytest.mark.parametrize("field", ["name", "class_noun", "reason", "remedy", "prompt", "namespace"])
def test_what_users_write_is_escaped_everywhere(field: str) -> None:
    subject = SubjectView("a", "a", "default", "cat", "rejected", reason="r", remedy="m")
    run = RunView(HOSTILE, HOSTILE, HOSTILE, 3.0, [replace(subject, **{field: HOSTILE})])
    tags = parse(render(run)).starts
    assert sum(tag == "script" for tag, _ in tags) == 1
    assert not any("onerror" in attributes for _, attributes in tags)


def test_an_empty_run_makes_a_page(tmp_path: Path) -> None:
    path = write_report(RunView("r", "b", "now", 0.0, []), tmp_path / "deep" / "report.html")
    assert "0 of 0 subjects trained." in path.read_text()
    assert [file.name for file in path.parent.iterdir()] == ["report.html"]


def test_large_runs_get_smaller_and_fewer_thumbnails() -> None:
    counts = (40, 300, 1200, 4000, 10_000)
    budgets = [budget_for(num) for num in counts]
    sizes = [
        num * (b.num_photos + 2 * b.num_progress + b.num_gallery + b.num_class) * b.side_px**2
        for num, b in zip(counts, budgets, strict=True)
    ]
    # WebP takes about a fifth of a byte a pixel, base64 a third more
    assert max(sizes) * 0.2 * 1.34 < 70e6
    assert [b.side_px for b in budgets] == sorted({b.side_px for b in budgets}, reverse=True)


def test_every_row_of_a_long_table_has_its_page() -> None:
    small = make_run(6, num_failed=0)
    subjects = [replace(small.subjects[n % 6], id=f"s{n}", name=f"s{n}") for n in range(120)]
    text = render(replace(small, subjects=subjects))
    assert text.count("<template id=") == text.count("<tr data-index=") == 120


def test_classes_that_the_embedded_base_does_not_know_are_named() -> None:
    nouns = ("backpack", "tabby cat", "toy")
    subjects = [SubjectView(noun, noun, "default", noun, "committed") for noun in nouns]
    run = RunView("r", "embedded", "now", 3.0, subjects)
    assert "does not know backpack and toy:" in render(run)
    assert EMBEDDED_VERDICTS in render(replace(run, subjects=subjects[1:2]))
    assert EMBEDDED_VERDICTS not in render(replace(run, base="sd15"))
    assert "does not know" not in render(replace(run, base="sd15"))
    assert "does not know" not in render(replace(run, subjects=subjects[1:2]))


def test_what_messages_put_between_backticks_is_code() -> None:
    remedy = "Run `farm run m.yaml --set seed=1`, not `<b>`, or pass --slots 2."
    subject = SubjectView("a", "a", "default", "cat", "rejected", reason="r", remedy=remedy)
    page = render(RunView("r", "b", "now", 3.0, [subject]))
    shown = re.sub(r'<span class="option">|</span>', "", page)
    assert shown.count("<code>farm run m.yaml --set seed=1</code>, not <code>&lt;b&gt;</code>") == 2
    assert '<span class="option">--slots 2</span>' in page
    assert "`" not in page.partition("<script>")[0]
