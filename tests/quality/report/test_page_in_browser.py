"""The page in a real browser, on desktop and phone: sort, filter, page, open, play."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from support.quality.browser import load
from support.quality.finished_run import make_run

from farm.quality.report.page import write_report

pytestmark = [pytest.mark.browser, pytest.mark.slow]
NUM = 60


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = make_run(8)
    subjects = [
        replace(run.subjects[n % 8], id=f"s{n}", name=f"subject-{n:03d}", seconds=float(n))
        for n in range(NUM)
    ]
    hostile = replace(subjects[-1], name="<b onclick=alert(1)>x</b>", reason="<script>1</script>")
    whole = replace(run, subjects=[*subjects[:-1], hostile])
    return write_report(whole, tmp_path_factory.mktemp("page") / "report.html")


TOO_WIDE = """return [...document.querySelectorAll('.table-wrap, .table-wrap *')]
    .filter(e => e.clientWidth > 1 && e.scrollWidth > e.clientWidth).map(e => e.className)"""
"""Tables, and what is in them, that are cut off or scroll sideways."""


def shown(driver: Chrome) -> list[str]:
    script = """return [...document.querySelectorAll("#table tbody tr")]
        .filter(row => !row.hidden).map(row => row.dataset.name)"""
    names: list[str] = driver.execute_script(script)
    return names


def wait_for(condition: Callable[[], bool]) -> None:
    """Wait: events such as hash changes arrive with a delay."""
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, "the condition was not met"
        time.sleep(0.02)


def opened(driver: Chrome) -> str | None:
    title: str | None = driver.execute_script(
        "return document.querySelector('dialog').open"
        " ? document.querySelector('#page-title').textContent : null"
    )
    return title


def test_a_page_of_subjects_is_shown_and_turned(desktop: Chrome, page: Path) -> None:
    load(desktop, page)
    first = shown(desktop)
    assert len(first) == 25
    desktop.find_element(By.ID, "next").click()
    second = shown(desktop)
    assert len(second) == 25
    assert not set(first) & set(second)
    assert desktop.find_element(By.ID, "where").text == f"26–50 of {NUM}"


def test_headings_sort_and_say_so(desktop: Chrome, page: Path) -> None:
    load(desktop, page)
    button = desktop.find_element(By.CSS_SELECTOR, "[data-sort=seconds]")
    button.click()
    assert shown(desktop)[0].startswith("<b") or shown(desktop)[0] == f"subject-{NUM - 1:03d}"
    heading = button.find_element(By.XPATH, "..")
    assert heading.get_attribute("aria-sort") == "descending"
    button.click()
    assert shown(desktop)[0] == "subject-000"
    assert heading.get_attribute("aria-sort") == "ascending"


def test_search_and_verdicts_filter(desktop: Chrome, page: Path) -> None:
    load(desktop, page)
    desktop.find_element(By.ID, "search").send_keys("subject-01")
    assert sorted(shown(desktop)) == [f"subject-01{n}" for n in range(10)]
    desktop.find_element(By.ID, "search").send_keys(" nothing like it")
    assert shown(desktop) == []
    assert desktop.find_element(By.ID, "empty").is_displayed()
    load(desktop, page)
    failed = desktop.find_element(By.CSS_SELECTOR, "button.v-failed")
    failed.click()
    assert failed.get_attribute("aria-pressed") == "true"
    verdicts = desktop.execute_script(
        """return [...document.querySelectorAll("#table tbody tr")]
        .filter(row => !row.hidden).map(row => row.dataset.verdict)"""
    )
    assert verdicts
    assert set(verdicts) == {"failed"}


def test_a_subject_opens_plays_and_closes_by_keyboard(desktop: Chrome, page: Path) -> None:
    load(desktop, page)
    name = shown(desktop)[0]
    desktop.find_element(By.LINK_TEXT, name).send_keys(Keys.ENTER)
    wait_for(lambda: opened(desktop) == name)
    player = desktop.find_element(By.CSS_SELECTOR, "[data-player]")
    slider = player.find_element(By.CSS_SELECTOR, "input")
    slider.send_keys(Keys.END)
    assert player.find_element(By.CSS_SELECTOR, "output").text == "100 steps"
    visible = [i for i in player.find_elements(By.CSS_SELECTOR, ".player-stage img")
               if i.is_displayed()]  # fmt: skip
    assert len(visible) == 1
    desktop.find_element(By.CSS_SELECTOR, "[data-go='1']").click()
    wait_for(lambda: opened(desktop) not in (None, name))
    desktop.switch_to.active_element.send_keys(Keys.ESCAPE)
    wait_for(lambda: opened(desktop) is None)


def test_a_link_leads_to_a_subject(desktop: Chrome, page: Path) -> None:
    desktop.get("about:blank")
    desktop.get(page.as_uri() + "#subject-3")
    wait_for(lambda: opened(desktop) == "subject-003")


def test_the_page_loads_nothing_and_runs_nothing_of_the_users(desktop: Chrome, page: Path) -> None:
    desktop.get_log("performance")
    desktop.get_log("browser")
    load(desktop, page)
    desktop.execute_script(f"location.hash = 'subject-{NUM - 1}'")
    wait_for(lambda: opened(desktop) is not None)
    asked = [
        message["params"]["request"]["url"]
        for entry in desktop.get_log("performance")
        if (message := json.loads(entry["message"])["message"])["method"]
        == "Network.requestWillBeSent"
    ]
    assert [url for url in asked if not url.startswith(("data:", "file:", "about:"))] == []
    assert desktop.get_log("browser") == []  # no error, no policy violation
    assert desktop.execute_script("return document.querySelectorAll('[onclick]').length") == 0


def test_a_phone_reads_it_without_scrolling_sideways(phone: Chrome, page: Path) -> None:
    for address in ("", "#subject-0"):
        phone.get("about:blank")
        phone.get(page.as_uri() + address)
        width = phone.execute_script(
            "return Math.max(document.documentElement.scrollWidth,"
            " document.querySelector('#page-body').scrollWidth)"
        )
        assert width <= 390
        phone.execute_script(
            "for (const one of document.querySelectorAll('details')) one.open = true"
        )
        assert phone.execute_script(TOO_WIDE) == []
    load(phone, page)
    small = phone.execute_script(
        """return [...document.querySelectorAll("button, select, input")]
        .filter(e => e.offsetParent && !e.closest("thead"))
        .map(e => e.getBoundingClientRect()).filter(b => b.height < 32).length"""
    )
    assert small == 0  # large enough for a thumb


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read_in_light_and_dark(desktop: Chrome, page: Path, scheme: str) -> None:
    load(desktop, page)
    desktop.execute_script(f"document.documentElement.dataset.theme = '{scheme}'")
    ratios = desktop.execute_script(CONTRAST)
    assert ratios
    worst = min(ratios, key=lambda item: item[1])
    assert worst[1] >= 4.5, worst


CONTRAST = """
const luminance = (c) => {
  const [r, g, b] = c.match(/[\\d.]+/g).map(Number).map(v => v / 255)
    .map(v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const paper = luminance(getComputedStyle(document.body).backgroundColor);
return [...document.querySelectorAll("h1, h2, p, small, .chip, dt, dd, td, th, .run-id")]
  .filter(e => e.offsetParent && e.textContent.trim())
  .map(e => {
    const ink = luminance(getComputedStyle(e).color);
    return [e.className || e.tagName,
            (Math.max(ink, paper) + 0.05) / (Math.min(ink, paper) + 0.05)];
  });
"""
