"""The built-in page in a real browser: enter a key, choose subjects, click an example, compare with
the base, change weights, follow a link; at desktop and phone sizes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from importlib import resources
from typing import Any

import httpx2
import numpy as np
import pytest
from selenium.webdriver import Chrome, ChromeOptions
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from support.endpoint import LiveEndpoint, are_same, eventually, live_endpoint, pixels_of

pytestmark = [pytest.mark.slow]
BROWSERS = ("chromium", "google-chrome")


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveEndpoint]:
    with live_endpoint(tmp_path_factory.mktemp("page"), anonymous_namespace=None) as live:
        for seed, name in enumerate(("rex", "rolf", "tom")):
            live.publish(name, namespace="acme", seed=seed, class_noun="dog")
        live.publish("hidden", namespace="globex", seed=9)
        yield live


@pytest.fixture(scope="module")
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


def in_page(browser: Chrome, script: str, *values: object) -> Any:
    return browser.execute_script(script, *values)


def choose(browser: Chrome, name: str) -> None:
    script = "document.querySelector(`.card[data-name=${arguments[0]}]`).click()"
    in_page(browser, script, name)


def wait_for_pictures(browser: Chrome, count: int) -> None:
    finished = "figure:not(.waiting) img"
    eventually(lambda: len(browser.find_elements(By.CSS_SELECTOR, finished)) == count, within_s=60)
    eventually(lambda: in_page(browser, "return !document.querySelector('#generate').disabled"))


def picture(browser: Chrome, selector: str) -> np.ndarray:
    """The decoded pixels of the first image that matches. Whether two images share a batch depends
    on when their requests arrive, so images are compared by ``are_same``."""
    source = in_page(browser, "return document.querySelector(arguments[0]).src", selector)
    return pixels_of(source.partition(",")[2])


def click_example(browser: Chrome, words: str) -> None:
    script = "[...document.querySelectorAll('.example')].find(one => one.innerText == arguments[0])"
    in_page(browser, f"{script}.click()", words)


def set_size(browser: Chrome, width_px: int, *, phone: bool) -> None:
    metrics = {"width": width_px, "height": 844, "deviceScaleFactor": 1, "mobile": phone}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)


def text_of(browser: Chrome, selector: str) -> list[str]:
    """The texts of all that matches, taken in one moment."""
    script = "return [...document.querySelectorAll(arguments[0])].map(found => found.innerText)"
    texts: list[str] = browser.execute_script(script, selector)
    return texts


def test_the_page_and_its_parts_come_from_the_endpoint_alone(endpoint: LiveEndpoint) -> None:
    page = httpx2.get(endpoint.url)
    assert page.headers["content-type"].startswith("text/html")
    assert "default-src 'self'" in page.headers["content-security-policy"]
    parts = [file.name for file in (resources.files("farm.serving.http") / "page").iterdir()]
    assert "page.js" in page.text
    assert "page.css" in page.text
    for part in set(parts) - {"index.html"}:
        assert httpx2.get(f"{endpoint.url}/{part}").status_code == 200
    assert "//" not in page.text.replace("<!doctype html>", "")


@pytest.mark.browser
def test_a_visitor_enters_a_key_chooses_an_adapter_and_generates(
    endpoint: LiveEndpoint, browser: Chrome
) -> None:
    browser.get(endpoint.url)
    key = browser.find_element(By.ID, "key")
    eventually(key.is_displayed, within_s=30)
    assert "farm keys create" in text_of(browser, "#key-hint")[0]
    assert text_of(browser, "#error") == [""]  # the hint is enough
    key.send_keys("farm_wrong")
    browser.find_element(By.CSS_SELECTOR, "#key-form button").click()
    eventually(lambda: "This key is not valid here" in text_of(browser, "#error")[0])
    key.clear()
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
    assert widths == [64] * 4  # the adapter's and the base's, twice

    browser.find_element(By.ID, "search").send_keys("RO")
    eventually(lambda: text_of(browser, ".card b") == ["rolf"])
    prompt.clear()
    prompt.send_keys("[V:nobody]")
    browser.find_element(By.ID, "generate").click()
    eventually(lambda: "no adapter of this request" in text_of(browser, "#error")[0])

    network = requested_urls(browser)
    assert network
    assert [url for url in network if not url.startswith(endpoint.url)] == []
    faults = [
        entry["message"] for entry in browser.get_log("browser") if entry["level"] == "SEVERE"
    ]
    assert [fault for fault in faults if " 401 " not in fault and " 400 " not in fault] == []


def requested_urls(browser: Chrome) -> set[str]:
    """What the page asked the network for; the browser's own pages (chrome://) are no network."""
    asked = [
        json.loads(entry["message"])["message"]["params"].get("request", {}).get("url", "")
        for entry in browser.get_log("performance")
        if "Network.requestWillBeSent" in entry["message"]
    ]
    return {url for url in asked if url.startswith(("http", "ws"))}


@pytest.fixture
def visitor(endpoint: LiveEndpoint, browser: Chrome) -> Iterator[Chrome]:
    """A browser with the key already entered, and few steps per picture."""
    browser.get(endpoint.url)
    in_page(browser, "sessionStorage.setItem('key', arguments[0])", endpoint.key("acme"))
    browser.refresh()
    eventually(lambda: len(text_of(browser, ".card b")) == 4, within_s=30)
    in_page(browser, "document.querySelector('#steps').value = 2")
    yield browser
    set_size(browser, 1200, phone=False)


@pytest.mark.browser
def test_an_example_shows_the_subject_beside_the_base_and_the_weight_redraws_it(
    visitor: Chrome,
) -> None:
    choose(visitor, "tom")
    eventually(lambda: in_page(visitor, "return document.querySelector('#prompt').value")
               == "a photo of [V] dog")  # fmt: skip
    assert {"sleeping", "with a red hat"} <= set(text_of(visitor, ".example"))
    asks = """const [nouns, done] = arguments;
        import('/subjects.js').then((page) => done(nouns.map(page.isAlive)));"""
    nouns = ["dog", "soda can", "old woman", ""]
    assert visitor.execute_async_script(asks, nouns) == [True, False, True, False]
    click_example(visitor, "in space")
    wait_for_pictures(visitor, 2)
    assert text_of(visitor, "figcaption div:first-child") == ["a photo of sks dog in space"]
    own, base = picture(visitor, "figure img"), picture(visitor, ".base img")
    assert not are_same(own, base)

    slide = """const slider = document.querySelector('.chip input[type=range]');
        slider.value = arguments[0]; slider.dispatchEvent(new Event('input'));"""
    in_page(visitor, slide, "0")
    eventually(lambda: "weight 0.00" in text_of(visitor, "figcaption .quiet")[0], within_s=30)
    assert are_same(picture(visitor, "figure img"), base)  # without weight it is the base's picture
    assert len(text_of(visitor, "figure")) == 1  # in the same place


@pytest.mark.browser
def test_a_link_reproduces_the_picture_on_a_phone(visitor: Chrome) -> None:
    choose(visitor, "rex")
    eventually(
        lambda: "[V] dog" in in_page(visitor, "return document.querySelector('#prompt').value")
    )
    click_example(visitor, "in the snow")
    wait_for_pictures(visitor, 2)
    own = picture(visitor, "figure img")
    link = in_page(visitor, "return document.querySelector('a.link').href")
    set_size(visitor, 390, phone=True)
    visitor.get("about:blank")
    visitor.get(link)
    wait_for_pictures(visitor, 2)
    assert are_same(picture(visitor, "figure img"), own)
    eventually(lambda: in_page(visitor, "return document.documentElement.scrollWidth") == 390)


@pytest.mark.browser
def test_a_card_whose_images_are_not_finished_says_why(visitor: Chrome) -> None:
    choose(visitor, "rex")
    choose_prompt = "return document.querySelector('#prompt').value"
    eventually(lambda: in_page(visitor, choose_prompt) == "a photo of [V] dog")
    click_both = """for (const words of ['in space', 'with a red hat'])
        [...document.querySelectorAll('.example')].find(one => one.innerText == words).click();"""
    in_page(visitor, click_both)
    wait_for_pictures(visitor, 2)
    newest, replaced = text_of(visitor, "figcaption")
    assert "a photo of sks dog with a red hat" in newest
    assert replaced.startswith("a photo of [V] dog in space\nCancelled: another generation")

    cut = """const whole = window.fetch;
        window.fetch = async (...asked) => {
            const answer = await whole(...asked), reader = answer.body.getReader();
            const { value } = await reader.read();
            reader.cancel();
            const parts = [(one) => one.enqueue(value), (one) => one.error(new TypeError())];
            return new Response(new ReadableStream({ pull: (one) => parts.shift()(one) }));
        };"""
    in_page(visitor, cut)
    click_example(visitor, "in the snow")
    broken = "Not generated: the connection to the endpoint broke"
    eventually(lambda: broken in text_of(visitor, "figcaption")[0], within_s=60)
    assert not visitor.find_elements(By.CSS_SELECTOR, "figure.waiting, figure img:not(.done)")


@pytest.mark.browser
def test_settings_say_what_is_expected_and_are_shown_whole(visitor: Chrome) -> None:
    asks = """document.querySelector('#size').value = 'large';
        document.querySelector('#generate').click();
        return [document.querySelector('#size').validationMessage,
                document.querySelector('#generate-form details').open];"""
    message, is_open = in_page(visitor, asks)
    assert "512x512" in message
    assert is_open
    missing = """const menu = document.querySelector('#scheduler'), whole = menu.cloneNode(true);
        whole.style.width = 'auto';
        document.querySelector('.settings').append(whole);
        whole.style.position = 'absolute';
        const width = whole.offsetWidth;
        whole.remove();
        return width - menu.offsetWidth;"""
    for width_px in (1280, 390):
        set_size(visitor, width_px, phone=False)
        assert in_page(visitor, missing) <= 0


@pytest.mark.browser
def test_one_prompt_over_several_subjects_and_several_subjects_in_one_picture(
    visitor: Chrome,
) -> None:
    in_page(visitor, "document.querySelector('#compare').click()")  # without the base's pictures
    choose(visitor, "rex")
    in_page(visitor, "document.querySelector('input[value=strip]').click()")
    choose(visitor, "tom")
    eventually(lambda: text_of(visitor, ".chip b") == ["rex", "tom"])
    click_example(visitor, "on the beach")
    wait_for_pictures(visitor, 2)
    assert text_of(visitor, ".tag") == ["rex", "tom"]
    assert text_of(visitor, "figcaption div:first-child") == ["a photo of sks dog on the beach"] * 2
    seeds = {text.split(" ")[1] for text in text_of(visitor, "figcaption .quiet")}
    assert len(seeds) == 1

    in_page(visitor, "document.querySelector('input[value=together]').click()")
    prompt = in_page(visitor, "return document.querySelector('#prompt').value")
    assert prompt == "a photo of [V:rex] dog and [V:tom] dog on the beach"
    in_page(visitor, "document.querySelector('#generate').click()")
    wait_for_pictures(visitor, 3)
    assert "weight 1.00 + 1.00" in text_of(visitor, "figcaption .quiet")[0]


@pytest.mark.browser
def test_a_hostile_link_is_only_text(endpoint: LiveEndpoint, visitor: Chrome) -> None:
    attack = "<img src=x onerror=document.title=1>"
    visitor.get("about:blank")
    visitor.get(f"{endpoint.url}/#mode={attack}&subject={attack}:1&steps={attack}&prompt={attack}")
    eventually(lambda: in_page(visitor, "return document.querySelector('#prompt').value") == attack)
    eventually(
        lambda: attack in " ".join(text_of(visitor, "figcaption div:first-child")), within_s=60
    )
    assert visitor.title == "Farm"
    assert in_page(visitor, "return document.querySelectorAll('img[src=x]').length") == 0
