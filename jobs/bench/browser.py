"""The browser that is found on this machine, and how soon it shows a page."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import NamedTuple

from pipeline.errors import UserError


def find_browser() -> str | None:
    """Chromium or Chrome, if one is installed."""
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


class Paint(NamedTuple):
    """Seconds from the start of the navigation to the first picture or text, and until all of the page is there."""

    first_s: float
    loaded_s: float


def measure_paint(page: Path) -> Paint:
    """Open a page in a new browser without a window. Raises UserError where there is no browser."""
    from playwright.sync_api import sync_playwright

    program = find_browser()
    if program is None:
        raise UserError("no chromium or google-chrome is installed; on Debian: apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-gpu"])
        tab = browser.new_page(viewport={"width": 1280, "height": 800})
        started = time.perf_counter()
        tab.goto(page.absolute().as_uri())
        loaded_s = time.perf_counter() - started
        tab.wait_for_function("performance.getEntriesByName('first-contentful-paint').length > 0")
        first_ms = tab.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime")
        browser.close()
    return Paint(first_ms / 1000, loaded_s)
