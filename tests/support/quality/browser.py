"""Pages in a headless Chromium."""

from __future__ import annotations

from pathlib import Path

from selenium.webdriver import Chrome

__all__ = ["load"]


def load(driver: Chrome, page: Path) -> None:
    """Open a local page afresh."""
    driver.get("about:blank")
    driver.get(page.as_uri())
