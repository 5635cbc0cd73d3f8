"""The report of a large run: an overview, filled from an index, and pages of some subjects each."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import Any

import pytest
from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By
from support.assignments import assignment
from support.quality.browser import load

from farm.quality.report.collect import report_run
from farm.storage import Store
from farm.training.dispatch.ledger import Ledger
from farm.training.run.files import write_assignments, write_settings

NUM, PART, BROKEN = 120, 50, 57
HOSTILE = "</script><b onclick=alert(1)>&\u202e"


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, str, Path, dict[str, Any]]:
    """A run of 120 subjects, half of them committed, one with a hostile reason, and its report."""
    store, run_id = Store(tmp_path_factory.mktemp("store")), "large"
    jobs = [assignment(f"subject-{number:03d}") for number in range(NUM)]
    write_assignments(store, run_id, jobs)
    write_settings(store, run_id, {"base": {"name": "tiny"}})
    clock = [1000.0]
    ledger = Ledger(store, run_id, epoch=1, clock=lambda: clock[0])
    for number, job in enumerate(jobs):
        clock[0] += 1.0
        ledger.append("queued", job.key)
        if number % 2:
            ledger.append("leased", job.key, lane=f"lane-{number % 4}#x")
            clock[0] += 1.0
            if number == BROKEN:
                ledger.append("rejected", job.key, reason=HOSTILE)
            else:
                ledger.append("committed", job.key, step=number, seconds=1.0)
    ledger.flush()
    out = tmp_path_factory.mktemp("out") / "my report.html"
    summary = report_run(store, run_id, out=out, one_page=100, part=PART)
    return store, run_id, out, summary


def index_in(page: str) -> dict[str, Any]:
    """The overview's index."""
    found = re.search(r'<script type="application/json" id="index">(.*?)</script>', page, re.S)
    assert found is not None
    index: dict[str, Any] = json.loads(found[1])
    return index


def test_a_large_run_has_an_overview_and_a_page_for_every_part(
    written: tuple[Store, str, Path, dict[str, Any]],
) -> None:
    store, run_id, out, summary = written
    assert (summary["pages"], summary["subjects"], summary["committed"]) == (4, NUM, 59)
    assert summary["verdicts"] == {"failed": 1, "unfinished": 60, "not scored": 59}
    folder = f"report-{run_id}"
    parts = [store.read(f"runs/{run_id}/{folder}/{n:04d}.html").decode() for n in range(3)]
    assert [part.count("<template id=") for part in parts] == [50, 50, 20]
    assert "Subjects 51 to 100" in parts[1]
    assert 'href="0000.html"' in parts[1]
    assert 'href="0002.html"' in parts[1]
    assert 'href="../report.html"' in parts[1]
    overview = store.read(f"runs/{run_id}/report.html").decode()
    assert "<template id=" not in overview
    index = index_in(overview)
    assert sorted(index["numbers"]) == list(range(NUM))
    assert (index["folder"], index["size"]) == (folder, PART)
    first = index["numbers"][0]
    assert first == BROKEN  # the only one with a verdict
    assert f'href="{folder}/0001.html#subject-{first}"' in overview
    assert out.read_text() == overview


def test_a_copys_pages_lead_back_to_the_copy(
    written: tuple[Store, str, Path, dict[str, Any]],
) -> None:
    _, run_id, out, _ = written
    for number in range(3):
        page = (out.parent / f"report-{run_id}" / f"{number:04d}.html").read_text()
        assert 'href="../my%20report.html"' in page


def test_what_users_write_cannot_end_the_index(
    written: tuple[Store, str, Path, dict[str, Any]],
) -> None:
    store, run_id, _, _ = written
    overview = store.read(f"runs/{run_id}/report.html").decode()
    assert overview.count("</script>") == 2  # the page's script, and the index
    assert "<b onclick" not in overview
    assert "\u202e" not in overview


@pytest.mark.browser
@pytest.mark.slow
def test_the_overview_is_searched_sorted_and_leads_to_a_subject(
    desktop: Chrome, written: tuple[Store, str, Path, dict[str, Any]]
) -> None:
    _, _, out, _ = written
    desktop.get_log("browser")
    load(desktop, out)

    def names() -> list[str]:
        links = desktop.find_elements(By.CSS_SELECTOR, "#table tbody a")
        return [link.text for link in links]

    assert len(names()) == 25
    assert names()[0] == f"subject-{BROKEN:03d}"
    assert desktop.find_element(By.ID, "where").text == f"1–25 of {NUM}"
    desktop.find_element(By.CSS_SELECTOR, "[data-sort=name]").click()
    assert names() == [f"subject-{n:03d}" for n in range(25)]
    desktop.find_element(By.ID, "next").click()
    assert names()[0] == "subject-025"
    desktop.find_element(By.ID, "search").send_keys("subject-07")
    assert names() == [f"subject-07{n}" for n in range(10)]
    cells = desktop.find_elements(By.CSS_SELECTOR, "#table tbody tr:nth-child(2) td")
    assert [cell.text for cell in cells] == ["cat", "not scored", "–", "–", "–", "71", "1.0s"]
    desktop.find_element(By.CSS_SELECTOR, "#table tbody tr:nth-child(2) .c-noun").click()
    deadline = time.monotonic() + 10
    script = "const t = document.querySelector('#page-title'); return t && t.textContent"
    while desktop.execute_script(script) != "subject-071":
        assert time.monotonic() < deadline, "the subject's page did not open"
        time.sleep(0.02)
    assert desktop.current_url.endswith("/report-large/0001.html#subject-71")
    assert desktop.get_log("browser") == []  # no error, no policy violation


@pytest.mark.browser
@pytest.mark.slow
def test_the_overview_fits_a_phone(
    phone: Chrome, written: tuple[Store, str, Path, dict[str, Any]]
) -> None:
    load(phone, written[2])
    script = "return document.querySelector('.table-wrap').scrollWidth"
    assert phone.execute_script(script) <= 358
    shown = phone.execute_script(
        "return [...document.querySelectorAll('#table tbody tr:first-child > *')]"
        ".filter(cell => cell.offsetParent).map(cell => cell.dataset.label ?? cell.className)"
    )
    scores = ["Similarity", "Prompt fidelity", "Class preservation"]
    assert shown == ["c-name", "c-verdict", *scores]
