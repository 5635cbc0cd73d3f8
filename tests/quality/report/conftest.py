"""The machine's headless Chromium; tests that need it are skipped without one."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest
from selenium.webdriver import Chrome, ChromeOptions
from selenium.webdriver.chrome.service import Service


def find_browser() -> tuple[str, str] | None:
    """(browser, driver) or None."""
    browser = next(filter(None, map(shutil.which, ("chromium", "google-chrome"))), None)
    driver = shutil.which("chromedriver")
    return (browser, driver) if browser and driver else None


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chrome]:
    found = find_browser()
    if found is None:
        pytest.skip("no Chromium with chromedriver on this machine")
    options = ChromeOptions()
    options.binary_location = found[0]
    profile = tmp_path_factory.mktemp("profile")
    for flag in (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--hide-scrollbars",
        f"--user-data-dir={profile}",
    ):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = Chrome(options=options, service=Service(found[1]))
    yield driver
    driver.quit()


def emulate(driver: Chrome, *, width_px: int, height_px: int, scheme: str, phone: bool) -> None:
    """Screen, colour scheme, and no motion, so that nothing depends on a timer."""
    driver.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width_px, "height": height_px, "deviceScaleFactor": 1, "mobile": phone},
    )
    driver.execute_cdp_cmd(
        "Emulation.setEmulatedMedia",
        {
            "features": [
                {"name": "prefers-color-scheme", "value": scheme},
                {"name": "prefers-reduced-motion", "value": "reduce"},
            ]
        },
    )


@pytest.fixture
def desktop(browser: Chrome) -> Chrome:
    emulate(browser, width_px=1280, height_px=900, scheme="light", phone=False)
    return browser


@pytest.fixture
def phone(browser: Chrome) -> Chrome:
    emulate(browser, width_px=390, height_px=844, scheme="dark", phone=True)
    return browser
