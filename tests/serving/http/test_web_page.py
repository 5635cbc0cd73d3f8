"""The built-in page in a real browser: enter a key, choose an adapter, generate, search."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator

import httpx2
import pytest
from selenium.webdriver import Chrome, ChromeOptions
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from support.endpoint import LiveEndpoint, eventually, live_endpoint

pytestmark = [pytest.mark.slow]
BROWSERS = ("chromium", "google-chrome")


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveEndpoint]:
    with live_endpoint(tmp_path_factory.mktemp("page"), anonymous_namespace=None) as live:
        for seed, name in enumerate(("rex", "rolf", "tom")):
            live.publish(name, namespace="acme", seed=seed, class_noun="dog")
        live.publish("hidden", namespace="globex", seed=9)
        yield live


@pytest.fixture
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chrome]:
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    driver = shutil.which("chromedriver")
    if program is None or driver is None:
        pytest.skip("no Chromium with chromedriver on this machine")
    options = ChromeOptions()
    options.binary_location = program
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(flag)
    options.add_argument(f"--user-data-dir={tmp_path_factory.mktemp('profile')}")
    options.add_argument("--window-size=1200,900")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    chrome = Chrome(options=options, service=Service(driver))
    yield chrome
    chrome.quit()


def text_of(browser: Chrome, selector: str) -> list[str]:
    """The texts of all that matches, taken in one moment."""
    script = "return [...document.querySelectorAll(arguments[0])].map(found => found.innerText)"
    texts: list[str] = browser.execute_script(script, selector)
    return texts


def test_the_page_and_its_parts_come_from_the_endpoint_alone(endpoint: LiveEndpoint) -> None:
    page = httpx2.get(endpoint.url)
    assert page.headers["content-type"].startswith("text/html")
    assert "default-src 'self'" in page.headers["content-security-policy"]
    for part in ("page.js", "page.css"):
        assert part in page.text
        assert httpx2.get(f"{endpoint.url}/{part}").status_code == 200
    assert "//" not in page.text.replace("<!doctype html>", "")


@pytest.mark.browser
def test_a_visitor_enters_a_key_chooses_an_adapter_and_generates(
    endpoint: LiveEndpoint, browser: Chrome
) -> None:
    browser.get(endpoint.url)
    key = browser.find_element(By.ID, "key")
    eventually(key.is_displayed, within_s=30)
    key.send_keys(endpoint.key("acme"))
    browser.find_element(By.CSS_SELECTOR, "#key-form button").click()
    eventually(lambda: text_of(browser, ".card b") == ["tiny", "rex", "rolf", "tom"], within_s=30)
    eventually(lambda: len(browser.find_elements(By.CSS_SELECTOR, ".card img")) == 3, within_s=30)
    assert not key.is_displayed()

    browser.find_element(By.CSS_SELECTOR, ".card[data-name=rex]").click()
    prompt = browser.find_element(By.ID, "prompt")
    eventually(lambda: prompt.get_property("value") == "a photo of [V] dog")
    browser.execute_script("document.querySelector('details').open = true")
    for field, value in (("steps", "6"), ("seed", "7"), ("count", "2")):
        entry = browser.find_element(By.ID, field)
        entry.clear()
        entry.send_keys(value)
    browser.find_element(By.ID, "generate").click()
    eventually(lambda: len(text_of(browser, "figure:not(.waiting)")) == 2, within_s=60)
    captions = text_of(browser, "figcaption div:first-child")
    assert captions == ["a photo of sks dog"] * 2
    seeds = sorted(text.split(" ")[1] for text in text_of(browser, "figcaption .quiet"))
    assert seeds == ["7", "8"]
    widths = browser.execute_script(
        "return [...document.querySelectorAll('figure img')].map(image => image.naturalWidth)"
    )
    assert widths == [64, 64]

    browser.find_element(By.ID, "search").send_keys("RO")
    eventually(lambda: text_of(browser, ".card b") == ["rolf"])
    prompt.clear()
    prompt.send_keys("[V:nobody]")
    browser.find_element(By.ID, "generate").click()
    eventually(lambda: "no adapter of this request" in text_of(browser, "#error")[0])

    asked = [
        json.loads(entry["message"])["message"]["params"].get("request", {}).get("url", "")
        for entry in browser.get_log("performance")
        if "Network.requestWillBeSent" in entry["message"]
    ]
    # the browser's own pages (chrome://) are no network
    network = {url for url in asked if url.startswith(("http", "ws"))}
    assert network
    assert [url for url in network if not url.startswith(endpoint.url)] == []
    faults = [
        entry["message"] for entry in browser.get_log("browser") if entry["level"] == "SEVERE"
    ]
    assert [fault for fault in faults if " 401 " not in fault and " 400 " not in fault] == []
